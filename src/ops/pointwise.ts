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
  fusedLayerSquaredError,
} from "../../kernels/fused_layer.ts";
import { batchNormStatistics } from "../../kernels/batch_norm.ts";
import { padded } from "../../kernels/kernel.ts";
import { rememberSquaredError } from "../../kernels/mse.ts";
import type { Tensor } from "../gpu/tensor.ts";
import {
  type ActivationQuantizer,
  type BoundKernel,
  type LiveBatchNorm,
  type OpContext,
  rowsAndChannels,
  type SquaredError,
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
  origin: PointwiseOrigin,
): void {
  const { recorder, tape } = context;
  if (tape === undefined) return;
  const { residual, bias } = origin;
  const trains = end.batchNorm !== undefined || gradientsOf(end, bias).length > 0;
  tape.push(residual ? [x, residual] : [x], y, (dy) => {
    const kernel = fusedLayerBackward(specOf(x, end), recorder.device.target);
    recordBackward(context, x, end, origin, { kernel, bindings: { dy } });
  }, trains);
}

/**
 * Records the squared error of the result of a pointwise end, without making the result: one pass gives the error and
 * the gradient.
 *
 * @param context where to record; with a tape
 * @param x what the end is applied to
 * @param end what to apply
 * @param origin what else x came from, without statistics
 * @param error the term of the loss
 */
export function recordSquaredError(
  context: OpContext,
  x: Tensor,
  end: PointwiseEnd,
  origin: PointwiseOrigin,
  { teacher, weight, state, losses, ...term }: SquaredError,
): void {
  const { recorder } = context;
  const { target } = recorder.device;
  const spec = specOf(x, end);
  const statistics = end.batchNorm && recordStatistics(context, x, end.batchNorm);
  const chunks = fusedLayerChunks(spec, target);
  const errors = recorder.tensor([chunks, spec.channels], "squared errors");
  recordBackward(context, x, end, { ...origin, statistics }, {
    kernel: fusedLayerSquaredError(spec, term.scale, target),
    bindings: { teacher, weight, errors },
  });
  const vectors = chunks * padded(spec.channels) / 4;
  recorder.run(rememberSquaredError({ ...spec, ...term }, vectors, target), {
    partials: errors,
    weight,
    state,
    losses,
  });
  recorder.release(errors);
}

/** Records the backward pass and gives the gradients on. */
function recordBackward(
  { recorder, tape }: OpContext,
  x: Tensor,
  end: PointwiseEnd,
  { residual, bias, statistics, label }: PointwiseOrigin,
  { kernel, bindings }: BoundKernel,
): void {
  if (tape === undefined) throw new TypeError(`The gradient of "${label}" needs a tape`);
  const { target } = recorder.device;
  const { batchNorm } = end;
  const spec = specOf(x, end);
  const { rows, channels } = spec;
  const dz = recorder.tensor(x.shape, `gradient before ${label}`);
  const partials = recorder.tensor([fusedLayerChunks(spec, target) * 3, channels], "partial sums");
  const coefficients = recorder.tensor([3, channels], "batch norm coefficients");
  const saved = statistics && { saved: statistics.saved };
  recorder.run(kernel, { ...readsOf(x, end, statistics), ...saved, ...bindings, dz, partials });
  const wanted = gradientsOf(end, bias);
  if (batchNorm || wanted.length > 0) {
    const names = new Set(wanted.map(([name]) => name));
    recorder.run(
      fusedLayerReduce(spec, {
        dshift: names.has("dshift"),
        dscale: names.has("dscale"),
        scaleSums: names.has("scale_sums"),
      }, target),
      {
        partials,
        ...Object.fromEntries(wanted),
        ...(batchNorm && statistics &&
          { affine: statistics.affine, state: batchNorm.state, coefficients }),
      },
    );
  }
  recorder.release(partials);
  if (residual) tape.share(residual, dz);
  if (saved) {
    const through = batchNormBackward({ rows, channels }, target);
    tape.give(x, (dx) => recorder.run(through, { x, ...saved, coefficients, dz, dx }));
  } else {
    tape.share(x, dz);
  }
  recorder.release(coefficients);
  tape.releaseUnlessShared(dz);
}

/** Gradients of parameters that the backward pass gives, by the names of its bindings. */
function gradientsOf(
  { batchNorm, quantizer }: PointwiseEnd,
  bias: Trainable | undefined,
): [name: string, tensor: Tensor][] {
  const gradients = {
    dshift: batchNorm ? batchNorm.beta.gradient : bias?.gradient,
    dscale: batchNorm?.gamma.gradient,
    scale_sums: quantizer?.scaleSums,
  };
  return Object.entries(gradients).flatMap(([name, tensor]) => tensor ? [[name, tensor]] : []);
}

function specOf(x: Tensor, { batchNorm, residual, activation, quantizer }: PointwiseEnd) {
  return {
    ...rowsAndChannels(x.shape),
    batchNorm: batchNorm !== undefined,
    residual: residual !== undefined,
    ...(activation && { activation }),
    ...(quantizer && { fakeQuantize: true }),
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
