// A quantizer as a step of its own: where training quantizes only a share of a tensor, by another gradient than LSQ's, or
// by thresholds, it cannot be fused into the layer.
import {
  fakeQuantizeBackward,
  fakeQuantizeForward,
  type FakeQuantizeSpec,
} from "../../kernels/fake_quantize.ts";
import {
  thresholdQuantizeBackward,
  thresholdQuantizeForward,
} from "../../kernels/threshold_quantize.ts";
import type { Tensor } from "../gpu/tensor.ts";
import {
  type ActivationQuantizer,
  type ActivationThresholds,
  type OpContext,
  rowsAndChannels,
} from "./context.ts";

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
  context: OpContext,
  x: Tensor,
  quantizer: ActivationQuantizer,
  label: string,
): Tensor {
  const { recorder, tape } = context;
  const { qparams, scaleSums, zeroPointSums, partial, gradient, thresholds } = quantizer;
  if (thresholds) return recordThresholds(context, x, thresholds, label);
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

/** A quantizer with thresholds. */
function recordThresholds(
  { recorder, tape }: OpContext,
  x: Tensor,
  { count, grid, sums }: ActivationThresholds,
  label: string,
): Tensor {
  const { target } = recorder.device;
  const spec = { ...rowsAndChannels(x.shape), thresholds: count };
  const y = recorder.tensor(x.shape, label);
  recorder.run(thresholdQuantizeForward(spec, target), { x, grid, y });
  tape?.push([x], y, (dy) => {
    const dx = recorder.tensor(x.shape, `gradient before ${label}`);
    const terms = sums ?? recorder.tensor([count + 2, spec.channels], "gradient of a fixed grid");
    recorder.run(thresholdQuantizeBackward(spec, target), { x, grid, dy, dx, sums: terms });
    if (!sums) recorder.release(terms);
    tape.share(x, dx);
    tape.releaseUnlessShared(dx);
  }, sums !== undefined);
  return y;
}
