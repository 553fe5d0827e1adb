// How the time of a distillation grows with what is distilled: residual networks with random weights on random images,
// one size varied at a time. Where it grows in proportion, the time a unit stays the same from row to row.
import { type NdArray, ndArray, sizeOf } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import type { ImageSet } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import type { Report } from "../../src/distill/report.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Graph, Node } from "../../src/graph/graph.ts";
import { type Row, row, type Subject } from "../harness.ts";
import { checkImproved, residualBlocks, StepClock, stepsFor } from "../training_run.ts";

const IMAGE_SIZE = 16;
const CLASSES = 10;
/** What is not varied. */
const USUAL = { batch: 64, channels: 32, blocks: 1, images: 256 };
/** Timings of a block step: the largest takes long. */
const MOST_SAMPLES = 4;
/** Steps of a block where whole distillations are timed, and how often. */
const STEPS = 10, MOST_RUNS = 3;

type Sizes = typeof USUAL;

/** Milliseconds in all, and a unit of what is varied. */
export const scaling: Subject = {
  about: "time against batch, channels, blocks and images, at W4A4",
  needsData: false,
  onlyByName: false,
  run: async function* ({ device, samples }) {
    const timings = Math.min(samples, MOST_SAMPLES);
    for (const batch of [16, 32, 64, 128]) {
      const { times } = await blockSteps(device, timings, { ...USUAL, batch });
      yield* rowsOf(`block step, batch ${batch}`, times, batch, "image");
    }
    for (const channels of [16, 32, 64, 128]) {
      const { times, operations } = await blockSteps(device, timings, { ...USUAL, channels });
      yield* rowsOf(`block step, channels ${channels}`, times, operations / 1e9, "GFLOP");
    }
    const runs = Math.min(samples, MOST_RUNS);
    for (const blocks of [1, 2, 4, 8]) {
      const times = await distillations(device, runs, { ...USUAL, blocks }, STEPS);
      yield* rowsOf(`distillation, blocks ${blocks}`, times, blocks, "block");
    }
    for (const images of [256, 512, 1024, 2048]) {
      const times = await distillations(device, runs, { ...USUAL, images }, 0);
      yield* rowsOf(`frontier, images ${images}`, times, images, "image");
    }
  },
};

function* rowsOf(
  name: string,
  times: readonly number[],
  units: number,
  unit: string,
): Generator<Row> {
  yield row({ case: name, metric: "time" }, "ms", times);
  yield row({ case: name, metric: `per ${unit}` }, "ms", times.map((ms) => ms / units));
}

/** Training steps of residual blocks, all alike. */
async function blockSteps(
  device: Device,
  samples: number,
  sizes: Sizes,
): Promise<{ readonly times: number[]; readonly operations: number }> {
  const clock = new StepClock();
  const { onProgress } = clock;
  const model = residualNetwork(sizes);
  const { report } = await distill(model, { calibration: randomImages(sizes.images) }, {
    ...recipeOf(sizes),
    steps: stepsFor(samples),
  }, { device, onProgress });
  checkImproved(report);
  const blocks = residualBlocks(model, sizes.batch);
  return {
    times: blocks.flatMap(({ name }) => clock.times(name)),
    operations: blocks[0]!.operations, // there is at least one
  };
}

/** Milliseconds of whole distillations, after one that compiles everything; without steps only the frontier moves. */
async function distillations(
  device: Device,
  runs: number,
  sizes: Sizes,
  steps: number,
): Promise<number[]> {
  const model = residualNetwork(sizes);
  const calibration = randomImages(sizes.images);
  const recipe = { ...recipeOf(sizes), steps };
  const times: number[] = [];
  for (let i = 0; i <= runs; i++) {
    const { report } = await distill(model, { calibration }, recipe, { device });
    if (steps > 0) checkImproved(report);
    else checkUnchanged(report);
    if (i > 0) times.push(1000 * report.seconds.distill);
  }
  return times;
}

function recipeOf({ batch, images }: Sizes): Partial<Recipe> {
  return { weightBits: 4, activationBits: 4, batchSize: batch, samples: images, networkSteps: 0 };
}

/** Checks that a student that was not trained is what it was. */
function checkUnchanged({ layers }: Report): void {
  const changed = layers.find(({ mseBefore, mseAfter }) => mseBefore !== mseAfter);
  if (changed) throw new Error(`"${changed.name}" changed without training`);
}

/** A stem, residual blocks of two 3x3 convolutions, and a linear head. */
function residualNetwork({ channels, blocks }: Sizes): Graph {
  const rng = new Rng(1);
  const initializers = new Map<string, NdArray>();
  const nodes: Node[] = [];
  const weights = (name: string, shape: readonly number[], gain: number) => {
    const fanIn = sizeOf(shape) / shape[0]!; // no shape here is empty
    const std = gain * Math.sqrt(2 / fanIn);
    const data = Float32Array.from({ length: sizeOf(shape) }, () => std * rng.normal());
    initializers.set(name, ndArray("float32", shape, data));
  };
  const add = (opType: string, inputs: string[], output: string, attributes = {}) => {
    nodes.push({ name: output, opType, inputs, outputs: [output], attributes });
    return output;
  };
  const convolution = (input: string, inChannels: number, output: string, gain: number) => {
    weights(`${output}.weight`, [channels, inChannels, 3, 3], gain);
    const attributes = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };
    return add("Conv", [input, `${output}.weight`], output, attributes);
  };
  let x = add("Relu", [convolution("images", 3, "stem", 1)], "stem.relu");
  for (let i = 0; i < blocks; i++) {
    const inner = add("Relu", [convolution(x, channels, `${i}.first`, 1)], `${i}.inner`);
    const sum = add("Add", [convolution(inner, channels, `${i}.second`, 0.5), x], `${i}.sum`);
    x = add("Relu", [sum], `${i}.relu`);
  }
  weights("head.weight", [CLASSES, channels], 1);
  const pooled = add("Flatten", [add("GlobalAveragePool", [x], "pool")], "features");
  add("Gemm", [pooled, "head.weight"], "logits", { transB: 1 });
  return {
    name: "residual",
    opset: 17,
    inputs: [{ name: "images", dtype: "float32", shape: ["N", 3, IMAGE_SIZE, IMAGE_SIZE] }],
    outputs: [{ name: "logits", dtype: "float32", shape: ["N", CLASSES] }],
    nodes,
    initializers,
  };
}

function randomImages(count: number): ImageSet {
  const rng = new Rng(2);
  const data = Uint8Array.from({ length: count * IMAGE_SIZE ** 2 * 3 }, () => rng.integer(256));
  const size = { height: IMAGE_SIZE, width: IMAGE_SIZE, channels: 3 };
  return { count, ...size, layout: "NHWC", dtype: "uint8", data };
}
