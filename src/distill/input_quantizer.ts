// The quantizer of the network's input. Inside the network a quantizer belongs to the step that makes its tensor; the
// input has no such step.
import { fusedLayerForward } from "../../kernels/fused_layer.ts";
import type { Recorder } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { type ActivationQuantizer, rowsAndChannels } from "../ops/context.ts";

/**
 * Records the fake quantization of the network's input.
 *
 * @param recorder where to record
 * @param x the input
 * @param quantizer its quantizer, if it has one
 * @returns the quantized input, or x itself
 */
export function fakeQuantizeInput(
  recorder: Recorder,
  x: Tensor,
  quantizer: ActivationQuantizer | undefined,
): Tensor {
  if (quantizer === undefined) return x;
  const y = recorder.tensor(x.shape, `quantized ${x.label}`);
  const spec = { ...rowsAndChannels(x.shape), batchNorm: false, residual: false } as const;
  const kernel = fusedLayerForward(
    { ...spec, fakeQuantize: true },
    recorder.device.target,
  );
  recorder.run(kernel, { x, qparams: quantizer.qparams, y });
  return y;
}
