// A quantizer as a step of its own: where training quantizes only a share of a tensor, or by another gradient than LSQ's,
// it cannot be fused into the layer.
import {
  fakeQuantizeBackward,
  fakeQuantizeForward,
  type FakeQuantizeSpec,
} from "../../kernels/fake_quantize.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { type ActivationQuantizer, type OpContext, rowsAndChannels } from "./context.ts";

/**
 * Records y = x + k (Q(x) - x) for the quantizer's share k.
 *
 * @param context where to record
 * @param x [.., C]
 * @param quantizer grid, share, and where the gradient of the scale goes
 * @param label name of y
 * @returns y, of the shape of x
 */
export function recordFakeQuantize(
  { recorder, tape }: OpContext,
  x: Tensor,
  { qparams, scaleSums, zeroPointSums, partial, gradient }: ActivationQuantizer,
  label: string,
): Tensor {
  const { target } = recorder.device;
  const spec: FakeQuantizeSpec = {
    ...rowsAndChannels(x.shape),
    ...(partial && { share: partial.share }),
    ...(gradient && { gradient }),
  };
  const reads = { x, qparams, ...(partial && { state: partial.state }) };
  const y = recorder.tensor(x.shape, label);
  recorder.run(fakeQuantizeForward(spec, target), { ...reads, y });
  tape?.push([x], y, (dy) => {
    const dx = recorder.tensor(x.shape, `gradient before ${label}`);
    const unused: Tensor[] = [];
    const sums = (wanted: Tensor | undefined) => {
      if (wanted) return wanted;
      const tensor = recorder.tensor([spec.channels], "gradient of a fixed grid");
      unused.push(tensor);
      return tensor;
    };
    recorder.run(fakeQuantizeBackward(spec, target), {
      ...reads,
      dy,
      dx,
      scale_sums: sums(scaleSums),
      zero_point_sums: sums(zeroPointSums),
    });
    for (const tensor of unused) recorder.release(tensor);
    tape.share(x, dx);
    tape.releaseUnlessShared(dx);
  }, scaleSums !== undefined);
  return y;
}
