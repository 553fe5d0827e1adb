import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { calibrate } from "../../src/distill/calibrate.ts";
import { RowSet } from "../../src/distill/frontier.ts";
import { type NetworkValues, teacherValues } from "../../src/distill/inference.ts";
import { type Network, prepareNetwork } from "../../src/distill/network.ts";
import { leastOutputError } from "../../src/distill/output_error.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Graph } from "../../src/graph/graph.ts";
import type { ActivationState } from "../../src/quant/student.ts";
import { testDevice } from "../_gpu.ts";

/** y = max(x, 0): u holds it, and five times as much beside it, which the second layer leaves out. */
const GRAPH: Graph = {
  name: "spread",
  opset: 13,
  inputs: [{ name: "x", dtype: "float32", shape: ["N", 1, 1, 2] }],
  outputs: [{ name: "y", dtype: "float32", shape: ["N", 1, 1, 2] }],
  nodes: [
    { name: "a", opType: "Conv", inputs: ["x", "spread"], outputs: ["z"], attributes: {} },
    { name: "r", opType: "Relu", inputs: ["z"], outputs: ["u"], attributes: {} },
    { name: "b", opType: "Conv", inputs: ["u", "pick"], outputs: ["y"], attributes: {} },
  ],
  initializers: new Map([
    ["spread", ndArray("float32", [2, 1, 1, 1], Float32Array.of(5, 1))],
    ["pick", ndArray("float32", [1, 2, 1, 1], Float32Array.of(0, 1))],
  ]),
};
/** Inputs: the network's first layer has 8 bits, what it gives 2. */
const INPUTS = Float32Array.of(0.1, 0.2, 0.1, 0.2, 0.3, 0.1, 9, 0.2);

/** The quantizer of u, by its scale; codes 0 to 3. */
function ofScale(scale: number): ActivationState[] {
  return [{
    tensor: "u",
    bits: 2,
    scale,
    zeroPoint: 0,
    quantMin: 0,
    quantMax: 3,
    learned: true,
  }];
}

/** Mean squared error of the first inputs on a scale. */
function errorOf(scale: number, inputs: Float32Array): number {
  const errors = Array.from(inputs, (x) => {
    const code = Math.min(3, Math.max(0, Math.round(x / scale)));
    return (code * scale - x) ** 2;
  });
  return errors.reduce((sum, error) => sum + error) / errors.length;
}

async function withNetwork(
  inputs: Float32Array<ArrayBuffer>,
  run: (...place: [Device, Network, NetworkValues, RowSet]) => Promise<void>,
): Promise<void> {
  const device = await testDevice();
  const network = prepareNetwork(
    GRAPH,
    { weightBits: 8, activationBits: 2, firstLastBits: 2 },
    true,
  );
  using values = teacherValues(device, network);
  const rows = inputs.length / 2;
  using images = new RowSet(device, rows, [1, 2, 1], "images", { residence: "host" });
  images.upload(0, inputs);
  await run(device, network, values, images);
}

Deno.test("leastOutputError() chooses what takes the output the least far, on the inputs that it may see", async () => {
  const scales = [3, 0.1, 1, 0.5];
  const best = (inputs: Float32Array) =>
    scales.reduce((a, b) => errorOf(b, inputs) < errorOf(a, inputs) ? b : a);
  // With the outlier the widest scale is best, without it the finest.
  assert.deepEqual([best(INPUTS), best(INPUTS.subarray(0, 6))], [3, 0.1]);
  await withNetwork(INPUTS, async (...place) => {
    for (const [samples, batch] of [[4, 2], [3, 2], [3, 3], [9, 4]] as const) {
      const chosen = await leastOutputError(...place, scales.map(ofScale), { samples, batch });
      assert.equal(scales[chosen], best(INPUTS.subarray(0, 2 * samples)), `${samples} inputs`);
    }
  });
});

Deno.test("leastOutputError() keeps the first unless another is better by a tenth", async () => {
  const inputs = INPUTS.slice(0, 6);
  const first = errorOf(0.15, inputs), other = errorOf(0.13, inputs);
  assert.ok(other < first && other > 0.9 * first, `${other / first}`);
  await withNetwork(inputs, async (...place) => {
    const chosen = async (...scales: number[]) => {
      const options = { samples: 3, batch: 3 };
      return scales[await leastOutputError(...place, scales.map(ofScale), options)];
    };
    assert.equal(await chosen(0.15, 0.13), 0.15);
    assert.equal(await chosen(0.2, 0.15, 0.13), 0.13);
  });
});

Deno.test("calibrate() has the output choose the exponent where none is given", async () => {
  const rng = new Rng(3);
  const inputs = Float32Array.from({ length: 256 }, () => Math.abs(rng.normal()));
  await withNetwork(inputs, async (...place) => {
    const options = { samples: 128, batch: 32, observer: "mse" as const };
    const exponents = [2.4, 2, 1.5, 1, 3];
    const calibrated = async (p?: number) => {
      const { states, exponent } = await calibrate(...place, {
        ...options,
        ...(p !== undefined && { p }),
      });
      return { scale: states.find(({ tensor }) => tensor === "u")!.scale, exponent };
    };
    const scales: number[] = [];
    for (const p of exponents) {
      const { scale, exponent } = await calibrated(p);
      assert.equal(exponent, p);
      scales.push(scale);
    }
    assert.equal(new Set(scales).size, 5);
    const least = scales.reduce((a, b) => errorOf(b, inputs) < errorOf(a, inputs) ? b : a);
    assert.ok(errorOf(least, inputs) < 0.9 * errorOf(scales[0]!, inputs));
    const exponent = exponents[scales.indexOf(least)];
    assert.deepEqual(await calibrated(), { scale: least, exponent });
    const { exponent: none } = await calibrate(...place, { ...options, observer: "minmax" });
    assert.equal(none, null);
  });
});
