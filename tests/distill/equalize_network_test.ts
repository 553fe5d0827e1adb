// Equalization, migration and bias correction in whole students on the GPU.
import assert from "node:assert/strict";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import type { ImageSet } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import { RowSet } from "../../src/distill/frontier.ts";
import {
  NetworkValues,
  partBetween,
  recordForward,
  teacherValues,
} from "../../src/distill/inference.ts";
import { fakeQuantizeInput } from "../../src/distill/input_quantizer.ts";
import { migrateActivations } from "../../src/distill/migration.ts";
import { type Network, prepareNetwork } from "../../src/distill/network.ts";
import type { WeightPreparation } from "../../src/distill/prepare_weights.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { assertClose, forEachTarget, randomArray, testDevice } from "../_gpu.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { part, realNetwork } from "../e2e/_networks.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node, normal } from "../graph/_graphs.ts";

const BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };
const SIZE = 6, COUNT = 16;
const FILTER = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };

/** A convolution with batch norm, a depthwise one without bias, a sum, and a linear layer; rows of very different size. */
const GRAPH: Graph = makeGraph(["N", 2, SIZE, SIZE], [
  node("Conv", "x c.weight", "a", FILTER),
  node("BatchNormalization", batchNormInputs("a", "c"), "b"),
  node("Relu", "b", "r"),
  node("Conv", "r wd", "d", { ...FILTER, group: 6 }),
  node("Relu", "d", "s"),
  node("Conv", "s we be", "e"),
  node("Add", "e s", "t"),
  node("GlobalAveragePool", "t", "p"),
  node("Flatten", "p", "f"),
  node("Gemm", "f wf", "y", { transB: 1 }),
], {
  ...convBatchNorm("c", [6, 2, 3, 3]),
  "c.gamma": ndArray("float32", [6], Float32Array.of(0.1, 30, 1, 5, 0.3, 10)),
  "c.beta": ndArray("float32", [6], Float32Array.of(0.2, 10, -1, 0, 0.4, 30)),
  wd: [6, 1, 3, 3],
  we: [6, 6, 1, 1],
  be: [6],
  wf: [3, 6],
});

const IMAGES: ImageSet = {
  count: COUNT,
  height: SIZE,
  width: SIZE,
  channels: 2,
  layout: "NCHW",
  dtype: "float32",
  data: Float32Array.from(randomArray(3, COUNT * 2 * SIZE * SIZE)),
};

/** The calibration inputs on the GPU, channels last as the GPU has them. */
function upload(device: Device): RowSet {
  const rows = new RowSet(device, COUNT, [SIZE, SIZE, 2], "images");
  const pixels = SIZE * SIZE, { data } = IMAGES;
  rows.upload(
    0,
    Float32Array.from(data, (_, i) => {
      const n = Math.floor(i / pixels / 2), p = Math.floor(i / 2) % pixels, c = i % 2;
      return data[(n * 2 + c) * pixels + p]!;
    }),
  );
  return rows;
}

/** Tensors of all inputs. */
async function forward(
  device: Device,
  network: Network,
  values: NetworkValues,
  names: readonly string[],
): Promise<Float32Array[]> {
  const whole = partBetween(network.teacher, [network.input], [network.output]);
  using rows = upload(device);
  using plan = new Plan(device);
  const x = plan.tensor([COUNT, ...rows.rowShape], "x");
  rows.copyOut(0, COUNT, x);
  const input = fakeQuantizeInput(plan, x, values.quantizer("x"));
  const all = recordForward(plan, whole, values, new Map([["x", input]]), new Set(names));
  plan.replay();
  return await Promise.all(names.map((name) => device.read(all.get(name)!)));
}

forEachTarget(
  "prepareNetwork() and migrateActivations() keep the function on the GPU",
  async (device) => {
    const output = async (network: Network) => {
      using values = teacherValues(device, network);
      return (await forward(device, network, values, ["y"]))[0]!;
    };
    const plain = prepareNetwork(GRAPH, BITS, false);
    const wanted = await output(plain);
    const magnitude = Math.max(...wanted.map(Math.abs));
    // float32 sums of a few hundred products of other sizes, whose errors add up over four layers
    const near = { rtol: 0, atol: 1e-5 * magnitude };
    const equalized = prepareNetwork(GRAPH, BITS, false, { equalization: "crossLayer" });
    assert.deepEqual([...equalized.notEqualized.keys()], ["Conv_d", "Conv_e", "Gemm_y"]);
    assertClose(await output(equalized), wanted, near, "equalized");
    using rows = upload(device);
    const migrated = await migrateActivations(device, plain, rows, 0.5, {
      batch: 8,
      samples: COUNT,
    });
    assertClose(await output(migrated), wanted, near, "migrated");
    // s = sqrt(max|x|) / sqrt(max|w|), with max|x| over all inputs: the ratio of the ranges before and after.
    const largest = async (network: Network) => {
      using values = teacherValues(device, network);
      const ranges = new Float64Array(6);
      const [r] = await forward(device, network, values, ["r"]);
      r!.forEach((v, i) => ranges[i % 6] = Math.max(ranges[i % 6]!, v));
      return ranges;
    };
    const before = await largest(plain), after = await largest(migrated);
    const w = (plain.folded.initializers.get("wd") as NdArray<"float32">).data;
    after.forEach((range, c) => {
      const kernel = Math.max(...w.slice(9 * c, 9 * c + 9).map(Math.abs));
      const expected = before[c]! === 0 ? 0 : Math.sqrt(before[c]! * kernel);
      assert.ok(Math.abs(range - expected) <= 1e-4 * expected, `${range} beside ${expected}`);
    });
  },
);

Deno.test("prepareNetwork() keeps the statistics of batch norm in step with the weights", () => {
  const prepare = (changes: WeightPreparation) => {
    const { folded, statistics } = prepareNetwork(GRAPH, BITS, false, changes);
    const { mean, deviation } = statistics.get("Conv_a")!;
    const weight = (folded.initializers.get("c.weight") as NdArray<"float32">).data;
    return { mean, deviation, weight };
  };
  const plain = prepare({}), equalized = prepare({ equalization: "crossLayer" });
  for (const [c, deviation] of plain.deviation.entries()) {
    const factor = equalized.weight[18 * c]! / plain.weight[18 * c]!;
    assert.ok(Math.abs(factor - 1) > 0.01, "there was something to do");
    assert.ok(Math.abs(equalized.deviation[c]! / (factor * deviation) - 1) < 1e-5);
    const shift = equalized.mean[c]! - factor * plain.mean[c]!;
    assert.ok(Math.abs(shift) < 1e-5 * Math.abs(factor), `${c}: ${shift}`);
  }
});

/** Of every output channel of every layer, before the activation. */
interface MeanError {
  /** Mean of student less teacher. */
  readonly error: number;
  /** What the integer bias is a multiple of: half of it cannot be corrected. */
  readonly step: number;
}

async function meanErrors(device: Device, changes: Partial<Recipe>): Promise<MeanError[]> {
  const { student } = await distill(GRAPH, { calibration: IMAGES }, {
    method: "ptq",
    weightBits: 3,
    samples: COUNT,
    heldOut: 0,
    augment: { copies: 1, shift: 0, flip: false },
    ...changes,
  }, { device });
  const tensors = ["b", "d", "e", "y"];
  const outputs = async (graph: Graph, quantizers: typeof student.activations) => {
    const network = prepareNetwork(graph, BITS, false);
    using values = new NetworkValues(device, network.teacher.graph.initializers, quantizers);
    return await forward(device, network, values, tensors);
  };
  const taught = await outputs(GRAPH, new Map());
  const learnt = await outputs(student.graph, student.activations);
  const layers = student.graph.nodes.filter((n) => n.opType === "Conv" || n.opType === "Gemm");
  return layers.flatMap(({ inputs }, t) => {
    const steps = student.biases.get(inputs[2] ?? "")?.scale;
    const channels = t === 3 ? 3 : 6, rows = taught[t]!.length / channels;
    const means = new Array<number>(channels).fill(0);
    taught[t]!.forEach((v, i) => means[i % channels]! += (learnt[t]![i]! - v) / rows);
    return means.map((error, c) => ({ error, step: steps?.[c] ?? 0 }));
  });
}

forEachTarget(
  "distill() with empirical bias correction leaves no mean error in any layer",
  async (device) => {
    const before = await meanErrors(device, {});
    assert.ok(
      before.filter(({ error }) => Math.abs(error) > 0.1).length > 12,
      "nothing to correct",
    );
    // Several batches, of which the means are averaged.
    assertCorrected(await meanErrors(device, { biasCorrection: "empirical", batchSize: 8 }));
  },
);

Deno.test("distill() with gptq and bias correction does both", async () => {
  const device = await testDevice();
  const both = { weightRounding: "gptq", biasCorrection: "empirical" } as const;
  assertCorrected(await meanErrors(device, both));
});

/** float32 sums of outputs up to some hundreds, whose means are of order 10 */
const SUMS = 1e-4;

function assertCorrected(errors: readonly MeanError[]): void {
  assert.equal(errors.length, 21);
  errors.forEach(({ error, step }, i) => {
    assert.ok(step > 0 && Math.abs(error) <= 0.5 * step + SUMS, `${i}: ${error}, step ${step}`);
  });
}

Deno.test("distill() with analytic bias correction lowers the mean error behind batch norm", async () => {
  const device = await testDevice();
  // Of the depthwise layer, whose inputs a batch norm made; its weights have three bits.
  const of = async (changes: Partial<Recipe>) =>
    (await meanErrors(device, changes)).slice(6, 12)
      .reduce((sum, { error }) => sum + error ** 2, 0);
  const plain = await of({}), corrected = await of({ biasCorrection: "analytic" });
  assert.ok(corrected < 0.3 * plain, `${corrected} beside ${plain}`);
});

Deno.test("prepareNetwork() refuses analytic bias correction without any batch norm", () => {
  const graph = makeGraph(["N", 4], [node("Gemm", "x w", "y", { transB: 1 })], { w: [3, 4] });
  assert.throws(() => prepareNetwork(graph, BITS, false, { biasCorrection: "analytic" }), {
    name: "RangeError",
    message: /the network has no batch norm, use biasCorrection "empirical"/,
  });
  const { folded } = prepareNetwork(graph, BITS, false, { biasCorrection: "empirical" });
  assert.deepEqual([...folded.initializers.keys()], ["w", "w_bias"]);
});

/** The same function with channels of very different range: behind every batch norm one is r times as wide. */
function spread(graph: Graph, seed: number): Graph {
  const initializers = new Map(graph.initializers);
  const edit = (name: string, change: (value: number, i: number) => number) => {
    const { shape, data } = initializers.get(name) as NdArray<"float32">;
    initializers.set(name, ndArray("float32", shape, data.map(change)));
  };
  for (const batchNorm of graph.nodes.filter((n) => n.opType === "BatchNormalization")) {
    const relu = graph.nodes.find((n) => n.inputs[0] === batchNorm.outputs[0])!;
    const reader = graph.nodes.find((n) => n.inputs[0] === relu.outputs[0])!;
    if (reader.opType !== "Conv") continue;
    const channels = initializers.get(batchNorm.inputs[1]!)!.shape[0]!;
    const factors = randomArray(seed++, channels).map((v) => 2 ** (2 * v));
    for (const name of batchNorm.inputs.slice(1, 3)) edit(name, (v, c) => v * factors[c]!);
    const [, inputs = 1, height = 1, width = 1] = initializers.get(reader.inputs[1]!)!.shape;
    edit(reader.inputs[1]!, (w, i) => {
      const row = Math.floor(i / inputs / height / width);
      const c = inputs === 1 ? row : Math.floor(i / height / width) % inputs;
      return w / factors[c]!;
    });
  }
  return { ...graph, initializers };
}

Deno.test({
  name:
    "distill() ptq W8A8 per tensor: a depthwise network with spread ranges collapses, and is rescued",
  ignore: sharedDataMissing,
  fn: async () => {
    const device = await testDevice(), real = realNetwork("dscnn", 256);
    const run = async (changes: Partial<Recipe>) => {
      const data = { calibration: part(real.images, 0, 256), evaluation: real.images };
      const { report } = await distill(spread(real.graph, 11), data, {
        ...real.preprocessing,
        method: "ptq",
        weightGranularity: "tensor",
        samples: 256,
        heldOut: 0,
        augment: { copies: 1, shift: 0, flip: false },
        ...changes,
      }, { device });
      return { agreement: report.network.agreement!, left: Object.keys(report.notEqualized) };
    };
    const plain = await run({});
    const rescued = await run({ equalization: "crossLayer", absorbBiases: true });
    assert.ok(plain.agreement < 0.6, `${plain.agreement}`);
    assert.ok(rescued.agreement > 0.96, `${rescued.agreement}`);
    assert.deepEqual([plain.left, rescued.left], [[], ["/fc/Gemm"]]);
  },
});

Deno.test("distill() with migration loses less where activations are uneven", async () => {
  const device = await testDevice();
  const factors = Float32Array.from(randomArray(5, 8), (v) => 2 ** (2 * v));
  const scaled = (shape: number[], factor: (i: number) => number) => {
    const { data } = normal(shape[0]!, shape) as NdArray<"float32">;
    return ndArray("float32", shape, data.map((w, i) => w * factor(i)));
  };
  const graph = makeGraph(["N", 2, SIZE, SIZE], [
    node("Conv", "x wa", "a"),
    node("Relu", "a", "r"),
    node("Conv", "r wb", "y"),
  ], {
    wa: scaled([8, 2, 1, 1], (i) => factors[Math.floor(i / 2)]!),
    wb: scaled([5, 8, 1, 1], (i) => 1 / factors[i % 8]!),
  });
  const error = async (migration: number | null) => {
    const recipe = {
      method: "ptq",
      activationBits: 4,
      firstLastBits: 4,
      samples: COUNT,
      heldOut: 0,
    };
    const { report } = await distill(graph, { calibration: IMAGES }, {
      ...recipe as Partial<Recipe>,
      weightBits: 8,
      migration,
    }, { device });
    return report.layers.at(-1)!.mseAfter;
  };
  const plain = await error(null), migrated = await error(0.5);
  assert.ok(migrated < 0.5 * plain, `${migrated} beside ${plain}`);
});
