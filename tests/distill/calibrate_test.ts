import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { observeActivations } from "../../src/distill/activation_statistics.ts";
import { calibrate, type CalibrationOptions } from "../../src/distill/calibrate.ts";
import { createStudent } from "../../src/distill/create_student.ts";
import { distill } from "../../src/distill/distill.ts";
import { RowSet } from "../../src/distill/frontier.ts";
import { type NetworkValues, teacherValues } from "../../src/distill/inference.ts";
import { inputPowers, weightImportance } from "../../src/distill/input_powers.ts";
import { type Network, prepareNetwork } from "../../src/distill/network.ts";
import { type Recipe, RECIPE_FIELDS } from "../../src/distill/recipe.ts";
import { Device } from "../../src/gpu/device.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { tensorStatistics } from "../../src/quant/statistics.ts";
import { testDevice } from "../_gpu.ts";

/** Two 1x1 convolutions with a Relu between: the identity on channel 0, minus it on channel 1. */
const GRAPH: Graph = {
  name: "two",
  opset: 13,
  inputs: [{ name: "x", dtype: "float32", shape: ["N", 1, 2, 2] }],
  outputs: [{ name: "y", dtype: "float32", shape: ["N", 1, 2, 2] }],
  nodes: [
    { name: "a", opType: "Conv", inputs: ["x", "wa"], outputs: ["z"], attributes: {} },
    { name: "r", opType: "Relu", inputs: ["z"], outputs: ["u"], attributes: {} },
    { name: "b", opType: "Conv", inputs: ["u", "wb"], outputs: ["y"], attributes: {} },
  ],
  initializers: new Map([
    ["wa", ndArray("float32", [2, 1, 1, 1], Float32Array.of(1, -1))],
    ["wb", ndArray("float32", [1, 2, 1, 1], Float32Array.of(1, 1))],
  ]),
};

/** Calls back with a device, the network and normal numbers as inputs of it. */
async function withInputs<T>(
  rows: number,
  run: (device: Device, network: Network, values: NetworkValues, images: RowSet) => Promise<T>,
  device?: Device,
): Promise<{ data: Float32Array; found: T }> {
  device ??= await testDevice();
  const bits = { weightBits: 4, activationBits: 4, firstLastBits: 8 };
  const network = prepareNetwork(GRAPH, bits, true);
  using values = teacherValues(device, network);
  using images = new RowSet(device, rows, [2, 2, 1], "images", { residence: "host" });
  const rng = new Rng(5);
  const data = Float32Array.from({ length: 4 * rows }, () => Math.fround(rng.normal()));
  images.upload(0, data);
  return { data, found: await run(device, network, values, images) };
}

async function states(
  observer: Recipe["activationObserver"],
  changes: Partial<CalibrationOptions> = {},
) {
  const options = { batch: 4, samples: 12, observer, ...changes };
  return await withInputs(12, async (...inputs) => (await calibrate(...inputs, options)).states);
}

Deno.test("calibrate() covers the range of the data with min-max", async () => {
  const { data, found } = await states("minmax");
  const [input, hidden] = found;
  const lowest = Math.min(...data), highest = Math.max(...data);
  assert.equal(input?.tensor, "x");
  assert.equal(input?.learned, false);
  const { scale, zeroPoint, quantMin, quantMax } = input!;
  assert.ok((quantMin - zeroPoint - 0.5) * scale <= lowest, "the lowest input is clipped");
  assert.ok((quantMax - zeroPoint + 0.5) * scale >= highest, "the highest input is clipped");
  // Behind the Relu are |x| of one sign each: unsigned, zero point 0, the largest magnitude on the last code.
  assert.deepEqual([hidden?.tensor, hidden?.zeroPoint, hidden?.quantMin], ["u", 0, 0]);
  const largest = Math.max(-lowest, highest);
  assert.ok(Math.abs(hidden!.scale * hidden!.quantMax - largest) < 1e-5 * largest);
});

Deno.test("calibrate() clips with every other observer no wider than min-max", async () => {
  const widest = (await states("minmax")).found[1]!;
  const observers = RECIPE_FIELDS.find(({ key }) => key === "activationObserver")!.expected;
  const names = observers.replace("one of ", "").split(", ") as Recipe["activationObserver"][];
  assert.equal(names.length, 9);
  for (const observer of names) {
    // IFMR's factors go beyond 1.
    if (observer === "ifmr") continue;
    const { found } = await states(observer);
    const { scale } = found[1]!;
    assert.ok(scale > 0 && scale <= widest.scale * (1 + 1e-6), `${observer} gives ${scale}`);
  }
});

Deno.test("calibrate() gives values on both sides of 0 the grid that is asked for", async () => {
  for (const observer of ["minmax", "mse", "kl"] as const) {
    const [input, hidden] = (await states(observer, { grid: "symmetric" })).found;
    assert.deepEqual([input!.zeroPoint, input!.quantMin, input!.quantMax], [0, -128, 127]);
    assert.deepEqual([hidden!.zeroPoint, hidden!.quantMin, hidden!.quantMax], [0, 0, 255]);
  }
  const affine = await states("minmax", { grid: "affine" });
  assert.deepEqual(affine, await states("minmax"));
  assert.notEqual(affine.found[0]!.zeroPoint, 0);
});

Deno.test("calibrate() hands the observers their settings", async () => {
  const scale = async (...asked: Parameters<typeof states>) =>
    (await states(...asked)).found[1]!.scale;
  assert.ok(await scale("percentile", { percentile: 50 }) < await scale("percentile") / 2);
  assert.ok(await scale("mse", { p: 0.5 }) < await scale("mse", { p: 8 }));
});

Deno.test("calibrate() looks at whole batches of as many inputs as it may", async () => {
  for (const [samples, seen] of [[4, 4], [11, 8], [3, 3]] as const) {
    const { data, found } = await states("minmax", { samples });
    const largest = Math.max(...data.subarray(0, 4 * seen).map(Math.abs));
    assert.equal(found[1]!.scale, Math.fround(largest / 255));
  }
});

Deno.test("observeActivations() counts as the host does, over all batches", async () => {
  for (const absolute of [false, true]) {
    const observer = { needsHistogram: true, bins: 64, absolute };
    const options = { batch: 4, samples: 60, observer };
    const { data, found } = await withInputs(
      60,
      (...inputs) => observeActivations(...inputs, options),
    );
    const batches = Array.from({ length: 15 }, (_, b) => data.subarray(16 * b, 16 * b + 16));
    const x = tensorStatistics(batches, { bins: 64, absolute });
    const hidden = batches.map((batch) =>
      Float32Array.from([...batch, ...batch.map((v) => -v)], (v) => Math.max(0, v))
    );
    const u = tensorStatistics(hidden, { bins: 64, absolute });
    for (const [name, expected] of [["x", x], ["u", u]] as const) {
      const { histogram, min, max } = found.get(name)!;
      assert.deepEqual([min, max], [expected.min, expected.max]);
      assert.deepEqual(
        [histogram.low, histogram.high],
        [expected.histogram.low, expected.histogram.high],
      );
      // The GPU finds a value's bin in float32: one on an edge may count beside.
      let difference = 0;
      histogram.counts.forEach((count, i) =>
        difference += Math.abs(count - expected.histogram.counts[i]!)
      );
      assert.ok(difference <= 2, `${name}: ${difference}`);
    }
  }
});

Deno.test("observeActivations() takes counts over before they could overflow", async () => {
  const observer = { needsHistogram: true };
  const device = await testDevice();
  const readUint32 = device.readUint32.bind(device);
  const counts = async (mostCount: number) => {
    let reads = 0;
    device.readUint32 = (tensor) => {
      reads++;
      return readUint32(tensor);
    };
    const options = { batch: 4, samples: 60, observer, mostCount };
    const { found } = await withInputs(60, (...inputs) => observeActivations(...inputs, options));
    return { reads, counts: found.get("u")!.histogram.counts };
  };
  try {
    const all = await counts(2 ** 32 - 1);
    assert.equal(all.counts.reduce((sum, count) => sum + count, 0), 480);
    assert.equal(all.reads, 2);
    // 15 batches of 32 values: behind every one, every second, every third, of two tensors; and at the end.
    for (const [most, times] of [[1, 15], [64, 7], [100, 5]] as const) {
      assert.deepEqual(await counts(most), { reads: 2 * (times + 1), counts: all.counts });
    }
  } finally {
    device.readUint32 = readUint32;
  }
});

Deno.test("observeActivations() needs the same GPU memory for 8 and for 800 inputs", async () => {
  // A device of its own, whose peak nothing else has raised.
  using device = await Device.open({ family: "software" });
  const observer = { needsHistogram: true };
  const observe = async (samples: number) => {
    const options = { batch: 4, samples, observer };
    await withInputs(samples, (...inputs) => observeActivations(...inputs, options), device);
    return [device.liveBytes, device.peakBytes];
  };
  const few = await observe(8);
  assert.equal(few[0], 0, "a buffer was kept");
  assert.deepEqual(await observe(800), few);
});

Deno.test("distill() calibrates on as many inputs as the recipe says", async () => {
  const rng = new Rng(6);
  const data = Float32Array.from({ length: 80 }, () => Math.fround(rng.normal()));
  const largest = (rows: Float32Array) => Math.fround(Math.max(...rows.map(Math.abs)) / 255);
  const scaleWith = async (calibrationSamples: number) => {
    const { student } = await distill(
      GRAPH,
      { calibration: ndArray("float32", [20, 1, 2, 2], data) },
      {
        method: "ptq",
        calibrationSamples,
        heldOut: 0,
        activationObserver: "minmax",
        augment: { copies: 1, shift: 0, flip: false },
        weightObserver: "hessian",
      },
      // Where kernels are not compiled ahead, in threads that take their time to start.
      { device: await testDevice("gpu") },
    );
    return student.activations.get("u")!.scale;
  };
  const one = await scaleWith(1);
  const rows = Array.from({ length: 20 }, (_, i) => largest(data.subarray(4 * i, 4 * i + 4)));
  assert.ok(rows.includes(one) && one < largest(data));
  assert.equal(await scaleWith(256), largest(data));
});

Deno.test("inputPowers() are the mean squares of the layers' input channels", async () => {
  const options = { batch: 4, samples: 12 };
  const { data, found } = await withInputs(12, (...inputs) => inputPowers(...inputs, options));
  const mean = (of: (v: number) => number) => data.reduce((sum, v) => sum + of(v), 0) / data.length;
  const expected = {
    x: [mean((v) => v * v)],
    u: [mean((v) => Math.max(0, v) ** 2), mean((v) => Math.max(0, -v) ** 2)],
  };
  assert.deepEqual([...found.keys()], ["x", "u"]);
  for (const [name, power] of Object.entries(expected)) {
    found.get(name)!.forEach((value, c) => {
      // 48 sums in float32
      assert.ok(Math.abs(value / power[c]! - 1) < 1e-6, `${name} ${c}`);
    });
  }
});

Deno.test("weightImportance() gives every weight the power of the channel that it multiplies", () => {
  const damped = (power: number[]) => {
    const mean = power.reduce((sum, v) => sum + v) / power.length;
    return power.map((v) => v + 0.01 * mean);
  };
  const of = (
    shape: number[],
    axis: number,
    power: number[],
  ) => [...weightImportance(shape, axis, Float64Array.from(power))];
  const [a, b, c, d] = damped([1, 0, 4, 3]) as [number, number, number, number];
  // [O, KW, C], then two groups of one output and two input channels, then depthwise [KW, C]
  assert.deepEqual(of([1, 2, 4], 0, [1, 0, 4, 3]), [a, b, c, d, a, b, c, d]);
  assert.deepEqual(of([2, 1, 2], 0, [1, 0, 4, 3]), [a, b, c, d]);
  assert.deepEqual(of([2, 4], 1, [1, 0, 4, 3]), [a, b, c, d, a, b, c, d]);
  assert.deepEqual(of([2, 2], 0, [0, 0]), [1, 1, 1, 1]);
});

Deno.test("createStudent() gives a layer one scale, or weighs its errors by the inputs", async () => {
  const { found: activations } = await states("minmax");
  const wide: Graph = {
    ...GRAPH,
    initializers: new Map([
      ["wa", ndArray("float32", [2, 1, 1, 1], Float32Array.of(0.3, -4))],
      ["wb", ndArray("float32", [1, 2, 1, 1], Float32Array.of(1, 0.3))],
    ]),
  };
  const bits = { weightBits: 4, activationBits: 4, firstLastBits: 4 };
  const network = prepareNetwork(wide, bits, false);
  const base = { method: "ptq", weightGrid: "auto", weightObserver: "minmax" } as const;
  const scalesOf = (
    ...[recipe, powers]: [Parameters<typeof createStudent>[2], Map<string, Float64Array>?]
  ) =>
    Array.from(
      createStudent(network, activations, recipe, powers).layers.values(),
      ({ logScale }) => Array.from(logScale, Math.exp),
    );
  const channels = scalesOf(base)[0]!;
  const tensor = scalesOf({ ...base, weightGranularity: "tensor" })[0]!;
  assert.ok(channels[0]! < channels[1]! / 10);
  assert.deepEqual(tensor, [channels[1], channels[1]]);
  // The error of 0.3 counts alone where its input is the only one: its scale divides 0.3 almost exactly.
  const powers = new Map([["x", Float64Array.of(1)], ["u", Float64Array.of(0, 1)]]);
  const [scale] = scalesOf({ ...base, weightObserver: "hessian" }, powers)[1]!;
  const [plain] = scalesOf({ ...base, weightObserver: "mse", weightExponent: 2 })[1]!;
  const error = (s: number) => Math.abs(Math.round(0.3 / s) * s - 0.3);
  assert.ok(error(scale!) < error(plain!), `${error(scale!)} ${error(plain!)}`);
});
