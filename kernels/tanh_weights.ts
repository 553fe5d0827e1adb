// Weights as DoReFa-Net quantizes them (Zhou et al. 2016, eq. 9), over the rows of weight_quantization.ts with fixed
// scales: v = quantMax * tanh(latent) / max |tanh(latent)| of the row, w = scale * q(v). Where quantMin = -quantMax, q
// rounds to the nearest odd code, so that 2^bits levels lie evenly from end to end; else to the nearest code. A weight
// that is exactly 0 (padding, pruned) stays 0 and has no gradient.
import type { Kernel, Target } from "./kernel.ts";
import {
  codeOrOddCode,
  rowKernel,
  storeFloats,
  type WeightQuantizationSpec,
} from "./weight_quantization.ts";

/**
 * largest = max |tanh(latent)| of each row, in all lanes, or of each lane where the lanes are channels.
 *
 * Bindings: parameters (read), rows (read, u32), largest (write, [rows, 4]).
 */
export function largestTanh(spec: WeightQuantizationSpec, target: Target): Kernel {
  return rowKernel({
    label: `largest_tanh ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "largest", access: "read_write" },
    ],
    combine: "max",
    body: "sum = max(sum, abs(tanh(parameters[start + i * stride])));",
    finish: `let all = vec4f(max(max(sum.x, sum.y), max(sum.z, sum.w)));
    largest[row] = select(all, sum, lanes);`,
  }, target);
}

/**
 * w = scale * q(v).
 *
 * Bindings: parameters, largest (read), rows (read, u32), w (write).
 */
export function quantizeTanhWeights(spec: WeightQuantizationSpec, target: Target): Kernel {
  return rowKernel({
    label: `quantize_tanh_weights ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "largest", access: "read" },
      { name: "w", access: "read_write" },
    ],
    body: `${NORMALIZED}
    let q = ${codeOrOddCode("v")};
    w[output + i * stride] = select(q * scale, vec4f(0.0), latent == vec4f(0.0));`,
  }, target);
}

/**
 * dL/dlatent = dw * scale * quantMax / max |tanh(latent)| * (1 - tanh(latent)^2): straight through q, the largest taken
 * as a constant.
 *
 * Bindings: parameters, largest, dw (read), rows (read, u32), gradients (write, f32: the rows' weights only).
 */
export function quantizeTanhWeightsBackward(
  spec: WeightQuantizationSpec,
  target: Target,
): Kernel {
  return rowKernel({
    label: `quantize_tanh_weights_backward ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "largest", access: "read" },
      { name: "dw", access: "read" },
      { name: "gradients", access: "read_write" },
    ],
    types: { gradients: "f32" },
    body: `${NORMALIZED}
    let slope = scale * hi / m * (1.0 - t * t);
    let d = select(dw[output + i * stride] * slope, vec4f(0.0), latent == vec4f(0.0));
    let at = start + i * stride;
    ${storeFloats("at", "d")}`,
  }, target);
}

/** WGSL of t = tanh(latent), m = the largest of them, v. */
const NORMALIZED = `let latent = parameters[start + i * stride];
    let t = tanh(latent);
    let m = max(largest[row], vec4f(1e-30));
    let v = t / m * hi;`;
