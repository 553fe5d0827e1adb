// The pointwise end of a layer: batch norm or bias, residual, activation, fake quantization. Conv, Gemm and every
// standalone pointwise node (BatchNormalization, Add, Relu ...) end here, so their gradients are derived once.
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
  /** [C]; only without batch norm. */
  readonly bias?: Trainable | undefined;
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
  const { recorder, tape } = context;
  const { target } = recorder.device;
  const { batchNorm, bias, residual, activation, quantizer } = end;
  if (!batchNorm && !bias && !residual && !activation && !quantizer) return x;
  const { rows, channels } = rowsAndChannels(x.shape);
  const spec: FusedLayerSpec = {
    rows,
    channels,
    input: batchNorm ? "affine" : bias ? "bias" : "plain",
    residual: residual !== undefined,
    ...(activation && { activation }),
    ...(quantizer && { fakeQuantize: quantizer.grid }),
  };
  const statistics = batchNorm && recordStatistics(context, x, batchNorm);
  const forward = {
    x,
    ...(statistics && { affine: statistics.affine }),
    ...(!batchNorm && bias && { bias: bias.value }),
    ...(residual && { residual }),
    ...(quantizer && { qparams: quantizer.qparams }),
  };
  const y = recorder.tensor(x.shape, label);
  recorder.run(fusedLayerForward(spec, target), { ...forward, y });
  if (tape === undefined) return y;

  const trains = batchNorm !== undefined || bias?.gradient !== undefined ||
    quantizer?.scaleSums !== undefined;
  tape.push(residual ? [x, residual] : [x], y, (dy) => {
    const dz = recorder.tensor(x.shape, `gradient before ${label}`);
    const partials = recorder.tensor(
      [fusedLayerChunks(spec, target) * 3, channels],
      "partial sums",
    );
    const coefficients = recorder.tensor([3, channels], "batch norm coefficients");
    const saved = statistics && { saved: statistics.saved };
    recorder.run(fusedLayerBackward(spec, target), { ...forward, ...saved, dy, dz, partials });
    const dshift = batchNorm ? batchNorm.beta.gradient : bias?.gradient;
    const dscale = batchNorm?.gamma.gradient;
    const scaleSums = quantizer?.scaleSums;
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
      tape.give(
        x,
        (dx) =>
          recorder.run(batchNormBackward({ rows, channels }, target), {
            x,
            saved,
            coefficients,
            dz,
            dx,
          }),
      );
    } else {
      tape.share(x, dz);
    }
    recorder.release(coefficients);
    tape.releaseUnlessShared(dz);
  }, trains);
  return y;
}

/** Affine map and saved statistics of a batch norm on x, both [2, C]. */
function recordStatistics(
  { recorder }: OpContext,
  x: Tensor,
  { gamma, beta, runningMean, runningVariance, epsilon, momentum, state }: LiveBatchNorm,
): { affine: Tensor; saved: Tensor } {
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
