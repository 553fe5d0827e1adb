// What a training step does besides products, on the activations of a first-stage block of ResNet-20 at batch 64:
// elementwise kernels, the pointwise end of a layer, and batch norm. All of it is bound by memory, so the share is that
// of the bandwidth of a copy, had every tensor been moved once by each kernel that needs it.
import { batchNormStatistics } from "../../../kernels/batch_norm.ts";
import { activationLayerForward, binaryForward } from "../../../kernels/elementwise.ts";
import { fakeQuantizeForward } from "../../../kernels/fake_quantize.ts";
import {
  batchNormBackward,
  fusedLayerBackward,
  fusedLayerChunks,
  fusedLayerForward,
  fusedLayerReduce,
} from "../../../kernels/fused_layer.ts";
import type { Kernel, KernelSequence } from "../../../kernels/kernel.ts";
import { STATE_SIZE } from "../../../kernels/schedule.ts";
import { Rng } from "../../../src/core/rng.ts";
import type { Device } from "../../../src/gpu/device.ts";
import { Plan } from "../../../src/gpu/plan.ts";
import type { Tensor } from "../../../src/gpu/tensor.ts";
import { checkElements, deviceTimes, gigaRates, type Row, row } from "../../harness.ts";
import type { Ceilings } from "./ceilings.ts";

/** Elements checked of each result, drawn at random. */
const CHECKED = 256;

const SHAPE = [64, 32, 32, 16];
const CHANNELS = 16, ROWS = 64 * 32 * 32, SIZE = ROWS * CHANNELS;

const RELU = { kind: "relu" } as const;
const GRID = { quantMin: 0, quantMax: 15 };
const SCALE = 0.125;
const EPSILON = 1e-5;
const LAYER = { rows: ROWS, channels: CHANNELS, residual: false };
const LAYER_END = { ...LAYER, batchNorm: false, activation: RELU, fakeQuantize: true };
const BATCH_NORM = { ...LAYER, batchNorm: true };

/** What is timed, and what comes out of it. */
interface Case {
  readonly label: string;
  /** Kernels in order, each with its tensors. */
  readonly work: readonly (readonly [Kernel | KernelSequence, Readonly<Record<string, Tensor>>])[];
  /** Full tensors that the kernels read and write. */
  readonly passes: number;
  readonly result: Tensor;
  /** Element of the result in float64. */
  readonly expected: (index: number) => number;
  /** Largest absolute error in float32. */
  readonly tolerance: number;
}

/**
 * Measures every case.
 *
 * @param device the adapter
 * @param samples timings of each
 * @param ceilings of the adapter
 */
export async function* measurePointwise(
  device: Device,
  samples: number,
  { gigabytes }: Ceilings,
): AsyncGenerator<Row> {
  using memory = new DisposableStack();
  for (const { label, work, passes, result, expected, tolerance } of casesOn(device, memory)) {
    using plan = new Plan(device);
    for (const [kernel, bindings] of work) plan.run(kernel, bindings);
    plan.replay();
    const rng = new Rng(2);
    const some = Array.from({ length: CHECKED }, () => {
      const index = rng.integer(SIZE);
      return [index, expected(index)] as const;
    });
    checkElements(label, await device.read(result), some, tolerance);
    const times = await deviceTimes(device, samples, plan.commands);
    yield row({ case: label, metric: "rate" }, "Gelem/s", gigaRates(SIZE, times), {
      ceiling: gigabytes / (4 * passes),
      note: `${passes} tensors of 4 MiB moved`,
    });
  }
}

function casesOn(device: Device, memory: DisposableStack): Case[] {
  const own = (tensor: Tensor) => memory.adopt(tensor, (one) => device.release(one));
  const rng = new Rng(1);
  const random = (length: number) => Float32Array.from({ length }, () => rng.normal());
  const xs = random(SIZE), dys = random(SIZE), gammas = random(CHANNELS), betas = random(CHANNELS);
  const x = own(device.fromArray(SHAPE, xs)), dy = own(device.fromArray(SHAPE, dys));
  const y = own(device.tensor(SHAPE)), dz = own(device.tensor(SHAPE));
  const dx = own(device.tensor(SHAPE));
  const qparams = own(device.fromArray([4], [SCALE, 0, GRID.quantMin, GRID.quantMax]));
  const chunks = fusedLayerChunks(LAYER, device.target);
  const partials = own(device.tensor([3 * chunks, CHANNELS]));
  const vector = (rows: number) => own(device.tensor([rows, CHANNELS]));
  const affine = vector(2), saved = vector(2), coefficients = vector(3);
  // state[4] = 1: the statistics are those of the batch.
  const state = own(
    device.fromArray([STATE_SIZE], Array.from({ length: STATE_SIZE }, (_, i) => i === 4 ? 1 : 0)),
  );
  const parameters = {
    gamma: own(device.fromArray([CHANNELS], gammas)),
    beta: own(device.fromArray([CHANNELS], betas)),
    running_mean: own(device.tensor([CHANNELS])),
    running_variance: own(device.tensor([CHANNELS])),
  };
  const batchNorm = batchNormOnHost(xs, dys, gammas, betas);
  const { target } = device;
  return [
    {
      label: "add",
      work: [[binaryForward({ operator: "add", a: SHAPE, b: SHAPE }), { a: x, b: dy, y }]],
      passes: 3,
      result: y,
      expected: (i) => xs[i]! + dys[i]!,
      tolerance: 1e-6,
    },
    {
      label: "relu",
      work: [[activationLayerForward({ activation: RELU, shape: SHAPE }), { x, y }]],
      passes: 2,
      result: y,
      expected: (i) => Math.max(xs[i]!, 0),
      tolerance: 0,
    },
    {
      label: "fake-quantize",
      work: [[fakeQuantizeForward(LAYER, target), { x, qparams, y }]],
      passes: 2,
      result: y,
      expected: (i) => SCALE * Math.min(Math.max(Math.round(xs[i]! / SCALE), 0), 15),
      tolerance: 0,
    },
    {
      label: "relu + fake-quantize forward",
      work: [[fusedLayerForward(LAYER_END, target), { x, qparams, y }]],
      passes: 2,
      result: y,
      expected: (i) => SCALE * Math.min(Math.max(Math.round(xs[i]! / SCALE), 0), 15),
      tolerance: 0,
    },
    {
      label: "relu + fake-quantize backward",
      work: [[fusedLayerBackward(LAYER_END, target), { x, qparams, dy, dz, partials }]],
      passes: 3,
      result: dz,
      expected: (i) => xs[i]! > 0 && xs[i]! < 15 * SCALE ? dys[i]! : 0,
      tolerance: 0,
    },
    {
      label: "batch norm forward",
      work: [
        [
          batchNormStatistics({ ...LAYER, epsilon: EPSILON, momentum: 0.1 }, target),
          { x, state, ...parameters, affine, saved },
        ],
        [fusedLayerForward(BATCH_NORM, target), { x, affine, y }],
      ],
      passes: 3,
      result: y,
      expected: batchNorm.y,
      tolerance: 1e-4, // sums over 65,536 rows in float32
    },
    {
      label: "batch norm backward",
      work: [
        [fusedLayerBackward(BATCH_NORM, target), { x, affine, saved, dy, dz, partials }],
        [
          fusedLayerReduce(BATCH_NORM, { dshift: false, dscale: false, scaleSums: false }, target),
          { partials, affine, state, coefficients },
        ],
        [batchNormBackward(LAYER, target), { x, saved, coefficients, dz, dx }],
      ],
      passes: 6,
      result: dx,
      expected: batchNorm.dx,
      tolerance: 1e-4,
    },
  ];
}

/** Elements of batch norm and of its gradient in float64. */
function batchNormOnHost(
  x: Float32Array,
  dy: Float32Array,
  gamma: Float32Array,
  beta: Float32Array,
): { readonly y: (index: number) => number; readonly dx: (index: number) => number } {
  const meanOf = (value: (index: number) => number) => {
    const sums = new Float64Array(CHANNELS);
    for (let i = 0; i < SIZE; i++) sums[i % CHANNELS]! += value(i) / ROWS;
    return sums;
  };
  const mean = meanOf((i) => x[i]!);
  const variance = meanOf((i) => (x[i]! - mean[i % CHANNELS]!) ** 2);
  const std = variance.map((value) => Math.sqrt(value + EPSILON));
  const normal = (i: number) => (x[i]! - mean[i % CHANNELS]!) / std[i % CHANNELS]!;
  const meanGradient = meanOf((i) => dy[i]!);
  const meanProduct = meanOf((i) => dy[i]! * normal(i));
  return {
    y: (i) => gamma[i % CHANNELS]! * normal(i) + beta[i % CHANNELS]!,
    dx: (i) => {
      const c = i % CHANNELS;
      return gamma[c]! / std[c]! * (dy[i]! - meanGradient[c]! - normal(i) * meanProduct[c]!);
    },
  };
}
