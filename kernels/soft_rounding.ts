// Learned rounding of weights (AdaRound, Nagel 2020) over the rows of weight_quantization.ts, with fixed scales:
//   w = scale * clamp(floor(latent / scale) + h(V), quantMin, quantMax),  h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)
// V lies in `parameters` from vec4 `roundingStart` on, in the layout of `w`. A weight that is exactly 0 (padding, pruned)
// stays 0 and has no gradient.
import { literal } from "./activation.ts";
import type { Kernel, Target } from "./kernel.ts";
import { rowKernel, storeFloats } from "./weight_quantization.ts";

/** The rows and where their rounding variables are. */
export interface SoftRoundingSpec {
  /** Rows of the table. */
  readonly rows: number;
  /** vec4 index in `parameters` of the rounding variable of the first vec4 of `w`. */
  readonly roundingStart: number;
}

/**
 * V = -log(1.2 / (rest + 0.1) - 1) with rest = latent / scale - floor(latent / scale), so that h(V) = rest.
 *
 * Bindings: parameters (read_write), rows (read, u32).
 */
export function initializeSoftRounding(spec: SoftRoundingSpec, target: Target): Kernel {
  return rowKernel({
    label: `initialize_soft_rounding ${spec.rows}`,
    rows: spec.rows,
    bindings: [{ name: "parameters", access: "read_write" }, { name: "rows", access: "read" }],
    body: `${latentAndVariable(spec)}
    parameters[variable] = -log(1.2 / (v - floor(v) + 0.1) - 1.0);`,
  }, target);
}

/**
 * w = scale * clamp(floor(latent / scale) + h(V), quantMin, quantMax).
 *
 * Bindings: parameters (read), rows (read, u32), w (write).
 */
export function softRoundWeights(spec: SoftRoundingSpec, target: Target): Kernel {
  return rowKernel({
    label: `soft_round_weights ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "w", access: "read_write" },
    ],
    body: `${latentAndVariable(spec)}
    ${RECTIFIED_SIGMOID}
    let soft = clamp(floor(v) + h, lo, hi) * scale;
    w[output + i * stride] = select(soft, vec4f(0.0), latent == vec4f(0.0));`,
  }, target);
}

/** As {@linkcode SoftRoundingSpec}, with the weight of the regulariser. */
export interface SoftRoundingBackwardSpec extends SoftRoundingSpec {
  /** lambda in the loss term lambda * sum(1 - |2h - 1|^beta), beta = state[5], on while state[6] is 1. */
  readonly regularizer: number;
  /** Whether lambda is multiplied by a factor of each row, in the binding `row_factors`; default false. */
  readonly weighted?: boolean;
}

/**
 * dL/dV = h'(V) * (dw * scale * inside - 2 lambda beta |2h - 1|^(beta - 1) sign(2h - 1)), where inside: the sum of floor
 * and h is within the codes, and h'(V) = 1.2 sigmoid(V) (1 - sigmoid(V)) where h is not clamped.
 *
 * Bindings: parameters, dw, state (read), rows (read, u32), if weighted row_factors (read, f32), gradients (write, f32: the
 * rows' V only).
 */
export function softRoundWeightsBackward(spec: SoftRoundingBackwardSpec, target: Target): Kernel {
  const { weighted = false } = spec;
  return rowKernel({
    label: `soft_round_weights_backward ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "dw", access: "read" },
      { name: "state", access: "read" },
      ...(weighted ? [{ name: "row_factors", access: "read" } as const] : []),
      { name: "gradients", access: "read_write" },
    ],
    types: { gradients: "f32", row_factors: "f32" },
    body: `${latentAndVariable(spec)}
    ${RECTIFIED_SIGMOID}
    let soft = floor(v) + h;
    let inside = (soft >= lo) & (soft <= hi);
    let through = select(vec4f(0.0), dw[output + i * stride] * scale, inside);
    let beta = state[5];
    let side = 2.0 * h - 1.0;
    let push = state[6] * ${literal(2 * spec.regularizer)} * beta
      * pow(abs(side), vec4f(beta - 1.0)) * sign(side)${weighted ? " * row_factors[row]" : ""};
    let free = (stretched > vec4f(0.0)) & (stretched < vec4f(1.0)) & (latent != vec4f(0.0));
    let d = select(vec4f(0.0), 1.2 * s * (1.0 - s) * (through - push), free);
    ${storeFloats("variable", "d")}`,
  }, target);
}

/**
 * Ends learned rounding: latent = scale * clamp(floor(latent / scale) + (V >= 0), quantMin, quantMax).
 *
 * Bindings: parameters (read_write), rows (read, u32).
 */
export function hardenSoftRounding(spec: SoftRoundingSpec, target: Target): Kernel {
  return rowKernel({
    label: `harden_soft_rounding ${spec.rows}`,
    rows: spec.rows,
    bindings: [{ name: "parameters", access: "read_write" }, { name: "rows", access: "read" }],
    body: `${latentAndVariable(spec)}
    let up = select(vec4f(0.0), vec4f(1.0), parameters[variable] >= vec4f(0.0));
    let hard = clamp(floor(v) + up, lo, hi) * scale;
    parameters[start + i * stride] = select(hard, vec4f(0.0), latent == vec4f(0.0));`,
  }, target);
}

function latentAndVariable({ roundingStart }: SoftRoundingSpec): string {
  return `let latent = parameters[start + i * stride];
    let v = latent / scale;
    let variable = ${roundingStart}u + output + i * stride;`;
}

const RECTIFIED_SIGMOID = `let s = 1.0 / (1.0 + exp(-parameters[variable]));
    let stretched = 1.2 * s - 0.1;
    let h = clamp(stretched, vec4f(0.0), vec4f(1.0));`;
