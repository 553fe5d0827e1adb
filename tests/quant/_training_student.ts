// A student with one layer of each kind, and its training parameters ready to run.
import assert from "node:assert/strict";
import { STATE_SIZE } from "../../kernels/schedule.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { convLayout, linearLayout } from "../../src/graph/weight_layout.ts";
import { fakeQuantizeArray } from "../../src/quant/fake_quantize.ts";
import { type LayerState, Student } from "../../src/quant/student.ts";
import {
  type LearningRates,
  TrainingParameters,
  type WeightQuantizer,
} from "../../src/quant/training_parameters.ts";
import { randomArray } from "../_gpu.ts";
import { awayFromThresholds } from "../_reference_quant.ts";

const NAMES = ["conv", "depthwise", "gemm"] as const;
/** Nothing trains. */
export const NO_RATES: LearningRates = {
  weights: 0,
  weightScales: 0,
  activationScales: 0,
  biases: 0,
};
/** Adam's first step at rate factor 1: m / (1 - beta1) is the gradient itself. */
const FIRST_STEP = [0, 1, 0.1, 0.01, 1, 2, 0];

/** Training parameters at a step. */
export interface Run {
  readonly parameters: TrainingParameters;
  /** Quantizes. */
  readonly forward: () => void;
  /** Steps the optimizer. */
  readonly step: () => void;
  /** Gives every parameter a gradient. */
  readonly fill: () => void;
}

/** Makes the parameters of a student for a test, and disposes of them. */
export async function withParameters(
  device: Device,
  student: Student,
  { weightQuantizer = "lsq", rates = NO_RATES, state: start = FIRST_STEP, ...rounding }: {
    weightQuantizer?: WeightQuantizer;
    rates?: LearningRates;
    state?: readonly number[];
    roundingRegularizer?: number;
    roundingWeights?: ReadonlyMap<string, number>;
  },
  test: (run: Run) => Promise<void>,
): Promise<void> {
  const values = [...start, ...Array(STATE_SIZE - start.length).fill(0)];
  const state = device.fromArray([STATE_SIZE], values);
  {
    using parameters = new TrainingParameters(
      device,
      student,
      NAMES,
      new Map([["r", 5], ["x", 3]]),
      state,
      {
        rates,
        weightQuantizer,
        batchNormMomentum: 0.1,
        roundingRegularizer: 0,
        ...rounding,
        beta1: 0.9,
        beta2: 0.99,
      },
    );
    using forward = new Plan(device);
    parameters.recordForward(forward);
    using step = new Plan(device);
    parameters.recordStep(step);
    const fill = () => {
      for (const layer of student.layers.values()) {
        const batchNorm = layer.batchNorm && parameters.batchNorm(layer.batchNorm.node);
        const bias = layer.batchNorm ? undefined : parameters.parameter(layer.biasName!);
        const all = [parameters.parameter(layer.weight), bias, batchNorm?.gamma, batchNorm?.beta];
        all.forEach((trainable, i) => {
          if (trainable === undefined) return;
          const size = trainable.value.shape.reduce((product, n) => product * n, 1);
          device.upload(trainable.gradient!, randomArray(20 + i, size));
        });
      }
      const terms = parameters.quantizer("r")!.scaleSums;
      if (terms) device.upload(terms, [1, 2, 3, -1, 0]);
      assert.equal(parameters.quantizer("x")!.scaleSums, undefined, "x does not learn");
    };
    await test({ parameters, forward: () => forward.replay(), step: () => step.replay(), fill });
  }
  device.release(state);
}

/** A convolution with batch norm, a depthwise one with a grid for each channel, a linear layer with bias. */
export function makeStudent(): Student {
  const conv = layer("conv", [5, 2, 3, 3], 0, { batchNorm: true });
  const depthwise = layer("depthwise", [3, 3, 6], 2, {});
  const gemm = layer("gemm", [3, 7], 0, {});
  const quantizer = { zeroPoint: 0, quantMin: 0, quantMax: 15, bits: 4 };
  return new Student([conv, depthwise, gemm], [
    { tensor: "r", scale: Math.fround(0.37), learned: true, ...quantizer },
    { tensor: "x", scale: Math.fround(0.11), learned: false, ...quantizer },
  ]);
}

function layer(
  node: string,
  shape: readonly number[],
  axis: number,
  { batchNorm = false }: { batchNorm?: boolean },
): LayerState {
  const channels = shape[axis]!;
  const size = shape.reduce((product, n) => product * n, 1);
  const logScale = Float32Array.from(randomArray(3, channels), (v) => -2 + 0.2 * v);
  const drawn = randomArray(size, size, { scale: 0.8 });
  const inner = axis === 0 ? size / channels : 1;
  const latent = Float32Array.from(drawn, (value, i) => {
    const c = Math.floor(i / inner) % channels;
    return awayFromThresholds([value], Math.exp(logScale[c]!))[0]!;
  });
  const vector = (seed: number) => Float32Array.from(randomArray(seed, channels));
  return {
    node,
    weight: `${node}.weight`,
    biasName: `${node}.bias`,
    input: "x",
    latent: ndArray("float32", shape, latent),
    layout: shape.length === 2 ? linearLayout(shape) : convLayout([channels, 2, 3, 3], 1),
    axis,
    bits: 4,
    logScale,
    // every third channel has mirrored codes
    quantMin: Int32Array.from({ length: channels }, (_, c) => c % 3 === 0 ? -7 : -8),
    quantMax: Int32Array.from({ length: channels }, (_, c) => c % 3 === 0 ? 8 : 7),
    ...(batchNorm
      ? {
        batchNorm: {
          node: `${node}.bn`,
          gamma: vector(5),
          beta: vector(6),
          mean: vector(7),
          variance: vector(8).map((v) => v * v + 0.5),
          epsilon: 1e-5,
        },
      }
      : { bias: vector(4) }),
  };
}

/** Quantized weights as the host makes them. */
export function hostWeights(layer: LayerState): Float32Array<ArrayBuffer> {
  const { logScale, quantMin, quantMax, latent, axis } = layer;
  const zeroPoint = new Int32Array(logScale.length);
  const scale = logScale.map(Math.exp);
  return fakeQuantizeArray(latent, { scale, zeroPoint, quantMin, quantMax }, axis).data;
}

/** Logarithms of the least scales that clip no weight. */
export function coveringScales(layer: LayerState): Float32Array<ArrayBuffer> {
  const { latent, axis, logScale, quantMin, quantMax } = layer;
  const scales = new Float32Array(logScale.length);
  const inner = axis === 0 ? latent.data.length / scales.length : 1;
  latent.data.forEach((value, i) => {
    const c = Math.floor(i / inner) % scales.length;
    scales[c] = Math.max(scales[c]!, value / quantMax[c]!, value / quantMin[c]!);
  });
  return scales.map(Math.log);
}

/** latent / scale of every weight, with its grid. */
export function codes({ latent, logScale, axis, quantMin, quantMax }: LayerState) {
  const channels = logScale.length;
  const inner = axis === 0 ? latent.data.length / channels : 1;
  return Array.from(latent.data, (value, i) => {
    const c = Math.floor(i / inner) % channels;
    const scale = Math.exp(logScale[c]!);
    return { code: value / scale, scale, low: quantMin[c]!, high: quantMax[c]! };
  });
}
