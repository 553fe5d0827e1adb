// Weights as N2UQ quantizes them (Liu et al. 2022, sec. 3.3), over the rows of weight_quantization.ts: each row is divided
// by gamma * mean |latent|, gamma = (2^bits - 1) / 2^(bits - 1), cut to -1 .. 1, and rounded to 2^bits levels from end to
// end. In codes: scale = mean |latent| / 2^(bits - 1), and the nearest odd code of quantMin = -quantMax .. quantMax =
// 2^bits - 1. Rows with another quantMin (8 bits, where odd codes would leave int8) keep their scale and take the nearest
// code. A weight that is exactly 0 (padding, pruned) stays 0, has no gradient, and counts in the mean of a depthwise
// channel only, where there is no padding.
import type { Kernel, Target } from "./kernel.ts";
import {
  codeOrOddCode,
  rowKernel,
  scaleKernel,
  storeFloats,
  type WeightQuantizationSpec,
} from "./weight_quantization.ts";

/**
 * Sets each row's scale from the mean magnitude of its weights. A row of zeros keeps its scale.
 *
 * Bindings: parameters (read_write, f32), rows (read, u32).
 */
export function scaleByMagnitude(spec: WeightQuantizationSpec, target: Target): Kernel {
  return scaleKernel({
    label: `scale_by_magnitude ${spec.rows}`,
    rows: spec.rows,
    // of a row its sum and count; of four channels their sums, all as long as the row
    body: `let size = abs(latent);
    let counted = dot(select(vec4f(1.0), vec4f(0.0), latent == vec4f(0.0)), vec4f(1.0));
    sum += select(vec4f(dot(size, vec4f(1.0)), counted, 0.0, 0.0), size, lanes);`,
    lanes: "select(vec4f(0.0), sum / f32(length) * 2.0 / (hi + 1.0), lo == -hi)",
    whole: "select(0.0, sum.x / sum.y * 2.0 / (hi.x + 1.0), lo.x == -hi.x && sum.y > 0.0)",
  }, target);
}

/**
 * w = scale * clamp(nearest odd code of latent / scale).
 *
 * Bindings: parameters (read), rows (read, u32), w (write).
 */
export function quantizeMagnitudeWeights(spec: WeightQuantizationSpec, target: Target): Kernel {
  return rowKernel({
    label: `quantize_magnitude_weights ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "w", access: "read_write" },
    ],
    body: `let latent = parameters[start + i * stride];
    let q = ${codeOrOddCode("latent / scale")};
    w[output + i * stride] = select(q * scale, vec4f(0.0), latent == vec4f(0.0));`,
  }, target);
}

/**
 * dL/dlatent = dw: straight through rounding and cut, as the authors' code has it, the mean taken as a constant.
 *
 * Bindings: parameters, dw (read), rows (read, u32), gradients (write, f32: the rows' weights only).
 */
export function quantizeMagnitudeWeightsBackward(
  spec: WeightQuantizationSpec,
  target: Target,
): Kernel {
  return rowKernel({
    label: `quantize_magnitude_weights_backward ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "dw", access: "read" },
      { name: "gradients", access: "read_write" },
    ],
    types: { gradients: "f32" },
    body: `let at = start + i * stride;
    let d = select(dw[output + i * stride], vec4f(0.0), parameters[at] == vec4f(0.0));
    ${storeFloats("at", "d")}`,
  }, target);
}
