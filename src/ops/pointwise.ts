// The pointwise end of a layer: batch norm, residual, activation, fake quantization. Conv, Gemm and every standalone
// pointwise node (BatchNormalization, Add, Relu ...) end here, so their gradients are derived once.
import type { Activation } from "../../kernels/activation.ts";
import {
  batchNormBackward,
  fusedLayerBackward,
  fusedLayerChunks,
  fusedLayerForward,
  fusedLayerReduce,
  type FusedLayerSpec,
} from "../../kernels/fused_layer.ts";
import { batchNormStatistics } from "../../kernels/batch_norm.ts";
import type { Tensor } from "../gpu/tensor.ts";
import {
  type ActivationQuantizer,
  type LiveBatchNorm,
  type OpContext,
  rowsAndChannels,
  type Trainable,
} from "./context.ts";

/** What follows a linear layer. */
export interface PointwiseEnd {
  readonly batchNorm?: LiveBatchNorm | undefined;
  readonly residual?: Tensor | undefined;
  readonly activation?: Activation | undefined;
  readonly quantizer?: ActivationQuantizer | undefined;
}

/**
 * Records y = fakeQuantize(activation(normalize(x) + residual)).
 *
 * @param context where to record
 * @param x [.., C]
 * @param end what to apply
 * @param label name of y
 * @returns y, of the shape of x; x itself when there is nothing to apply
 */
export function recordPointwise(
  context: OpContext,
  x: Tensor,
  end: PointwiseEnd,
  label: string,
): Tensor {
  const { recorder } = context;
  const { batchNorm, residual, activation, quantizer } = end;
  if (!batchNorm && !residual && !activation && !quantizer) return x;
  const statistics = batchNorm && recordStatistics(context, x, batchNorm);
  const y = recorder.tensor(x.shape, label);
  const kernel = fusedLayerForward(specOf(x, end), recorder.device.target);
  recorder.run(kernel, { ...readsOf(x, end, statistics), y });
  pushPointwise(context, x, y, end, { residual, statistics, label });
  return y;
}

/** How y came out of x, besides the pointwise end itself. */
export interface PointwiseOrigin {
  /** What shares the gradient of the sum; x may hold the sum already. */
  readonly residual: Tensor | undefined;
  /** [C]; a bias that x already holds. */
  readonly bias?: Trainable | undefined;
  readonly statistics?: BatchNormStatistics | undefined;
  /** Name of y. */
  readonly label: string;
}

/** Affine map and saved statistics of a batch norm, both [2, C]. */
interface BatchNormStatistics {
  readonly affine: Tensor;
  readonly saved: Tensor;
}

/**
 * Puts the derivative of a recorded pointwise end on the tape, where there is one.
 *
 * @param context where to record
 * @param x what the end was applied to
 * @param y the result
 * @param end what was applied
 * @param origin what else x and y came from
 */
export function pushPointwise(
  context: OpContext,
  x: Tensor,
  y: Tensor,
  end: PointwiseEnd,
  { residual, bias, statistics, label }: PointwiseOrigin,
): void {
  const { recorder, tape } = context;
  if (tape === undefined) return;
  const { target } = recorder.device;
  const { batchNorm, quantizer } = end;
  const spec = specOf(x, end);
  const { rows, channels } = spec;
  const dshift = batchNorm ? batchNorm.beta.gradient : bias?.gradient;
  const dscale = batchNorm?.gamma.gradient;
  const scaleSums = quantizer?.scaleSums;
  const trains = batchNorm !== undefined || dshift !== undefined || scaleSums !== undefined;
  tape.push(residual ? [x, residual] : [x], y, (dy) => {
    const dz = recorder.tensor(x.shape, `gradient before ${label}`);
    const partials = recorder.tensor(
      [fusedLayerChunks(spec, target) * 3, channels],
      "partial sums",
    );
    const coefficients = recorder.tensor([3, channels], "batch norm coefficients");
    recorder.run(fusedLayerBackward(spec, target), {
      ...readsOf(x, end, statistics),
      ...(statistics && { saved: statistics.saved }),
      dy,
      dz,
      partials,
    });
    if (trains) {
      const kernel = fusedLayerReduce(spec, {
        dshift: dshift !== undefined,
        dscale: dscale !== undefined,
        scaleSums: scaleSums !== undefined,
      }, target);
      recorder.run(kernel, {
        partials,
        ...(dshift && { dshift }),
        ...(dscale && { dscale }),
        ...(scaleSums && { scale_sums: scaleSums }),
        ...(batchNorm && statistics &&
          { affine: statistics.affine, state: batchNorm.state, coefficients }),
      });
    }
    recorder.release(partials);
    if (residual) tape.share(residual, dz);
    if (statistics) {
      const { saved } = statistics;
      const kernel = batchNormBackward({ rows, channels }, target);
      tape.give(x, (dx) => recorder.run(kernel, { x, saved, coefficients, dz, dx }));
    } else {
      tape.share(x, dz);
    }
    recorder.release(coefficients);
    tape.releaseUnlessShared(dz);
  }, trains);
}

function specOf(x: Tensor, { batchNorm, residual, activation, quantizer }: PointwiseEnd) {
  return {
    ...rowsAndChannels(x.shape),
    batchNorm: batchNorm !== undefined,
    residual: residual !== undefined,
    ...(activation && { activation }),
    ...(quantizer && { fakeQuantize: quantizer.grid }),
  } satisfies FusedLayerSpec;
}

/** Bindings that forward and backward pass share. */
function readsOf(
  x: Tensor,
  { residual, quantizer }: PointwiseEnd,
  statistics: BatchNormStatistics | undefined,
): Record<string, Tensor> {
  return {
    x,
    ...(statistics && { affine: statistics.affine }),
    ...(residual && { residual }),
    ...(quantizer && { qparams: quantizer.qparams }),
  };
}

/** Records the statistics of a batch norm on x. */
function recordStatistics(
  { recorder }: OpContext,
  x: Tensor,
  { gamma, beta, runningMean, runningVariance, epsilon, momentum, state }: LiveBatchNorm,
): BatchNormStatistics {
  const { rows, channels } = rowsAndChannels(x.shape);
  const affine = recorder.tensor([2, channels], "batch norm affine");
  const saved = recorder.tensor([2, channels], "batch norm statistics");
  const spec = { rows, channels, epsilon, momentum };
  recorder.run(batchNormStatistics(spec, recorder.device.target), {
    x,
    gamma: gamma.value,
    beta: beta.value,
    state,
    running_mean: runningMean,
    running_variance: runningVariance,
    affine,
    saved,
  });
  return { affine, saved };
}
