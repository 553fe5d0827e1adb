// What a layer reads whose input is quantized with the range it has at run time. The tensor itself stays float: other
// readers see it as it is. Nothing trains through it, so it has no gradient.
import { dynamicFakeQuantize } from "../../kernels/dynamic_quantize.ts";
import type { Recorder } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";

/**
 * Records the fake quantization of a tensor, each sample with its own range.
 *
 * @param recorder where to record
 * @param x [samples, ..]
 * @returns a new tensor of the shape of x
 */
export function recordDynamicQuantize(recorder: Recorder, x: Tensor): Tensor {
  const y = recorder.tensor(x.shape, `quantized ${x.label}`);
  recorder.run(dynamicFakeQuantize(x.shape, recorder.device.target), { x, y });
  return y;
}
