import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { STATE_SIZE } from "../../kernels/schedule.ts";
import { FloatParameters } from "../../src/distill/float_parameters.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import {
  floatAccuracy,
  type FloatTrainingRecipe,
  type LabelledImages,
  trainFloat,
} from "../../src/distill/pretrain.ts";
import { DivergedError } from "../../src/distill/training.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { mnistNetwork } from "../../src/run/mnist_network.ts";
import { assertClose, testDevice } from "../_gpu.ts";

const SIZE = 8;
const RECIPE: FloatTrainingRecipe = {
  epochs: 20,
  batchSize: 16,
  learningRate: 0.02,
  shift: 1,
  seed: 3,
  mean: [0.5],
  std: [0.5],
  scale: null,
};

/** A bright column (class 0) or row (class 1) on noise, anywhere: a linear classifier of pixels would not do. */
function bars(count: number, seed: number): LabelledImages {
  const rng = new Rng(seed);
  const labels = Uint32Array.from({ length: count }, () => rng.integer(2));
  const data = new Uint8Array(count * SIZE * SIZE);
  for (let image = 0; image < count; image++) {
    const at = 1 + rng.integer(SIZE - 2);
    for (let i = 0; i < SIZE * SIZE; i++) {
      const lit = (labels[image] === 0 ? i % SIZE : Math.floor(i / SIZE)) === at;
      data[image * SIZE * SIZE + i] = (lit ? 180 : 0) + rng.integer(60);
    }
  }
  return { images: grey(count, data), labels };
}

function grey(count: number, data: Uint8Array<ArrayBuffer>): LabelledImages["images"] {
  return { count, height: SIZE, width: SIZE, channels: 1, layout: "NCHW", dtype: "uint8", data };
}

/** Convolution with a bias, batch norm, ReLU, global pooling, linear layer. */
function smallNetwork(bias = 0): Graph {
  const rng = new Rng(5);
  const normal = (size: number) => Float32Array.from({ length: size }, () => 0.3 * rng.normal());
  const fill = (value: number) => ndArray("float32", [5], new Float32Array(5).fill(value));
  return {
    name: "small",
    opset: 13,
    inputs: [{ name: "x", dtype: "float32", shape: ["N", 1, SIZE, SIZE] }],
    outputs: [{ name: "y", dtype: "float32", shape: ["N", 2] }],
    nodes: [
      {
        name: "conv",
        opType: "Conv",
        inputs: ["x", "w", "b"],
        outputs: ["c"],
        attributes: { kernel_shape: [3, 3], pads: [1, 1, 1, 1] },
      },
      {
        name: "norm",
        opType: "BatchNormalization",
        inputs: ["c", "gamma", "beta", "mean", "variance"],
        outputs: ["n"],
        attributes: { epsilon: 1e-5 },
      },
      { name: "relu", opType: "Relu", inputs: ["n"], outputs: ["r"], attributes: {} },
      { name: "pool", opType: "GlobalAveragePool", inputs: ["r"], outputs: ["p"], attributes: {} },
      { name: "flat", opType: "Flatten", inputs: ["p"], outputs: ["f"], attributes: { axis: 1 } },
      {
        name: "gemm",
        opType: "Gemm",
        inputs: ["f", "v", "vb"],
        outputs: ["y"],
        attributes: { transB: 1 },
      },
    ],
    initializers: new Map([
      ["w", ndArray("float32", [5, 1, 3, 3], normal(45))],
      ["b", fill(bias)],
      ["gamma", fill(1)],
      ["beta", fill(0)],
      ["mean", fill(0)],
      ["variance", fill(1)],
      ["v", ndArray("float32", [2, 5], normal(10))],
      ["vb", ndArray("float32", [2], new Float32Array(2))],
    ]),
  };
}

function values(graph: Graph, name: string): Float32Array {
  return graph.initializers.get(name)!.data as Float32Array;
}

Deno.test("trainFloat() learns to tell rows from columns it has not seen", async () => {
  const device = await testDevice();
  const losses: number[] = [];
  const test = bars(200, 2);
  const before = await floatAccuracy(device, smallNetwork(), test, RECIPE);
  const network = await trainFloat(device, smallNetwork(), bars(96, 1), RECIPE, {
    onStep: (_done, _total, loss) => losses.push(loss),
  });
  const after = await floatAccuracy(device, network, test, RECIPE);
  assert.ok(before < 0.8, `${before} before training`);
  assert.ok(after > 0.95, `${after} after training`);
  assert.ok(losses.at(-1)! < 0.5 * losses[0]!, `losses ${losses[0]} .. ${losses.at(-1)}`);
});

Deno.test("trainFloat() gives the same bytes for the same seed and others for another", async () => {
  const device = await testDevice();
  const run = (seed: number) =>
    trainFloat(device, smallNetwork(), bars(48, 1), { ...RECIPE, epochs: 2, seed });
  const [a, b, c] = [await run(3), await run(3), await run(4)];
  for (const name of a.initializers.keys()) assert.deepEqual(values(a, name), values(b, name));
  assert.notDeepEqual(values(a, "w"), values(c, "w"));
});

Deno.test("trainFloat() keeps running statistics of the convolution, its bias included", async () => {
  const device = await testDevice();
  const { images, labels } = bars(16, 1);
  const bias = 0.7, steps = 4;
  const network = await trainFloat(device, smallNetwork(bias), { images, labels }, {
    ...RECIPE,
    epochs: steps, // one batch an epoch
    learningRate: 0,
    shift: 0,
  });
  const { mean, variance } = channelStatistics(images.data, values(smallNetwork(), "w"));
  const kept = (1 - 0.05) ** steps;
  // f32 sums over 1024 values
  const tolerance = { rtol: 1e-4, atol: 1e-5 };
  // The start, 0, counts as a mean with bias.
  const expected = mean.map((value) => bias + kept * -bias + (1 - kept) * value);
  assertClose(values(network, "mean"), expected, tolerance, "mean");
  const unbiased = 1024 / 1023;
  assertClose(
    values(network, "variance"),
    variance.map((value) => kept + (1 - kept) * value * unbiased),
    tolerance,
    "variance",
  );
  for (const name of ["w", "b", "gamma", "beta", "v", "vb"]) {
    assert.deepEqual(values(network, name), values(smallNetwork(bias), name), name);
  }
});

/** Mean and variance of each channel of the convolution without its bias, in float64. */
function channelStatistics(pixels: ArrayLike<number>, w: Float32Array) {
  const count = pixels.length / SIZE ** 2;
  const x = (n: number, row: number, column: number) =>
    row < 0 || column < 0 || row >= SIZE || column >= SIZE
      ? 0
      : (pixels[(n * SIZE + row) * SIZE + column]! / 255 - 0.5) / 0.5;
  const mean: number[] = [], variance: number[] = [];
  for (let channel = 0; channel < 5; channel++) {
    let sum = 0, squares = 0;
    for (let i = 0; i < count * SIZE ** 2; i++) {
      const [n, row, column] = [
        Math.floor(i / SIZE ** 2),
        Math.floor(i / SIZE) % SIZE,
        i % SIZE,
      ];
      let y = 0;
      for (let k = 0; k < 9; k++) {
        y += w[channel * 9 + k]! * x(n, row + Math.floor(k / 3) - 1, column + k % 3 - 1);
      }
      sum += y;
      squares += y * y;
    }
    mean.push(sum / pixels.length);
    variance.push(squares / pixels.length - (sum / pixels.length) ** 2);
  }
  return { mean, variance };
}

Deno.test("trainFloat() stops with DivergedError when the loss is not finite", async () => {
  const device = await testDevice();
  const model = smallNetwork();
  values(model, "v").fill(NaN);
  await assert.rejects(trainFloat(device, model, bars(16, 1), RECIPE), DivergedError);
});

Deno.test("trainFloat() stops when the signal aborts", async () => {
  const device = await testDevice();
  await assert.rejects(
    trainFloat(device, smallNetwork(), bars(16, 1), RECIPE, { signal: AbortSignal.abort() }),
    { name: "AbortError" },
  );
});

Deno.test("FloatParameters.store() gives every array back as it was, in ONNX's layout", async () => {
  const device = await testDevice();
  const model = mnistNetwork(1); // strided, depthwise and 1 x 1 convolutions, Gemm
  const bits = { weightBits: 8, activationBits: 8, firstLastBits: 8 };
  const { trained } = prepareNetwork(model, bits, true);
  const state = device.tensor([STATE_SIZE], { label: "state" });
  using parameters = new FloatParameters(device, trained, state, {
    learningRate: 0.1,
    batchNormMomentum: 0.1,
    beta1: 0.9,
    beta2: 0.99,
  });
  await parameters.store();
  assert.deepEqual([...parameters.stored.keys()].sort(), [...model.initializers.keys()].sort());
  for (const [name, array] of parameters.stored) {
    assert.deepEqual(array, model.initializers.get(name), name);
  }
  device.release(state);
});
