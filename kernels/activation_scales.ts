// The step between the flat parameters and the `qparams` that quantizing kernels bind: all activation quantizers of a
// student in one dispatch forward, one backward. What a quantizer learns is one of
//   scale      [log scale]               LSQ (Esser et al. 2020), in log space
//   zeroPoint  [log scale, zero point]   LSQ+ (Bhalgat et al. 2020): the zero point is rounded, as a file stores it
//   range      [low, high]               both clipping bounds (ULQ of AMCT)
//   upper      [high]                    the upper clipping bound; the zero point stays
import { declareBindings, type Kernel, type Target } from "./kernel.ts";

/** What of a grid is learned. */
export type LearnedGrid = "scale" | "zeroPoint" | "range" | "upper";

/** One activation quantizer. */
export interface ActivationScale {
  /** What it learns; "scale" by default. */
  readonly learns?: LearnedGrid;
  /** Float index in `parameters` of the first thing it learns; the other follows. */
  readonly start: number;
  /** vec4 index of [scale, zeroPoint, quantMin, quantMax] in `qparams`. */
  readonly qparams: number;
  /** First vec4 in `terms` of those whose sum over all lanes is dL/dscale. */
  readonly scaleTerms: number;
  /** How many vec4s of them; default 1. Those of dL/dzeroPoint, as many, begin at the next multiple of 16. */
  readonly termCount?: number;
}

const WORDS = 8;
const KINDS: readonly LearnedGrid[] = ["scale", "zeroPoint", "range", "upper"];

/** Numbers of parameters that a quantizer learns. */
export const LEARNED_PARAMETERS: Readonly<Record<LearnedGrid, number>> = {
  scale: 1,
  zeroPoint: 2,
  range: 2,
  upper: 1,
};

/** First vec4 of the terms of the zero point, behind those of the scale. */
export function zeroPointTerms(
  { scaleTerms, termCount = 1 }: Pick<ActivationScale, "scaleTerms" | "termCount">,
): number {
  return scaleTerms + Math.ceil(termCount / 16) * 16;
}

/**
 * The table that the kernels bind as `quantizers`.
 *
 * Words: kind, start, qparams, scaleTerms, termCount, zeroPointTerms, 0, 0.
 *
 * @param quantizers one entry each
 * @returns eight words an entry
 */
export function encodeActivationScales(
  quantizers: readonly ActivationScale[],
): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(quantizers.length * WORDS);
  quantizers.forEach(({ learns = "scale", start, qparams, scaleTerms, termCount = 1 }, i) => {
    const second = zeroPointTerms({ scaleTerms, termCount });
    words.set([KINDS.indexOf(learns), start, qparams, scaleTerms, termCount, second], i * WORDS);
  });
  return words;
}

/** How many entries the table has. */
export interface ActivationScalesSpec {
  readonly count: number;
}

/**
 * qparams = [scale, zeroPoint, quantMin, quantMax] from what is learned, the bounds as they were.
 *
 * Bindings: parameters (read, f32), quantizers (read, u32), qparams (read_write).
 */
export function updateActivationScales({ count }: ActivationScalesSpec, _target: Target): Kernel {
  const bindings = [
    { name: "parameters", access: "read" },
    { name: "quantizers", access: "read" },
    { name: "qparams", access: "read_write" },
  ] as const;
  return perQuantizer(
    `update_activation_scales ${count}`,
    count,
    `${declareBindings(bindings, { parameters: "f32", quantizers: "u32" })}`,
    `var grid = qparams[at];
  let first = parameters[start];
  switch kind {
    case 0u: { grid.x = exp(first); }
    case 1u: {
      grid.x = exp(first);
      grid.y = clamp(round(parameters[start + 1u]), grid.z, grid.w);
    }
    case 2u: {
      grid.x = max(parameters[start + 1u] - first, ${LEAST_RANGE}) / (grid.w - grid.z);
      grid.y = clamp(round(grid.z - first / grid.x), grid.z, grid.w);
    }
    default: { grid.x = max(first, ${LEAST_RANGE}) / (grid.w - grid.y); }
  }
  qparams[at] = grid;`,
    bindings,
  );
}

/**
 * Gradients of what is learned, with S = dL/dscale and Z = dL/dzeroPoint, the sums of the terms:
 * dL/dlog_scale = scale S; dL/dzeroPoint = Z; and with steps = quantMax - quantMin and below = zeroPoint - quantMin
 * dL/dhigh = S / steps - Z below / (scale steps), dL/dlow = -S / steps - Z (1 - below / steps) / scale; for the upper
 * bound alone dL/dhigh = S / (quantMax - zeroPoint).
 *
 * Bindings: quantizers (read, u32), qparams, terms (read), gradients (write, f32: these entries only).
 */
export function activationScaleGradients({ count }: ActivationScalesSpec, _target: Target): Kernel {
  const bindings = [
    { name: "quantizers", access: "read" },
    { name: "qparams", access: "read" },
    { name: "terms", access: "read" },
    { name: "gradients", access: "read_write" },
  ] as const;
  return perQuantizer(
    `activation_scale_gradients ${count}`,
    count,
    `${declareBindings(bindings, { quantizers: "u32", gradients: "f32" })}
fn total(start: u32, length: u32) -> f32 {
  var sum = vec4f(0.0);
  for (var i = 0u; i < length; i++) { sum += terms[start + i]; }
  return sum.x + sum.y + sum.z + sum.w;
}`,
    `let length = quantizers[entry + 4u];
  let grid = qparams[at];
  let d_scale = total(quantizers[entry + 3u], length);
  if (kind == 0u) {
    gradients[start] = grid.x * d_scale;
  } else if (kind == 3u) {
    gradients[start] = d_scale / (grid.w - grid.y);
  } else {
    let d_zero_point = total(quantizers[entry + 5u], length);
    let steps = grid.w - grid.z;
    let below = grid.y - grid.z;
    let low = -d_scale / steps - d_zero_point * (1.0 - below / steps) / grid.x;
    let high = d_scale / steps - d_zero_point * below / (grid.x * steps);
    gradients[start] = select(low, grid.x * d_scale, kind == 1u);
    gradients[start + 1u] = select(high, d_zero_point, kind == 1u);
  }`,
    bindings,
  );
}

/** A range never closes: its scale would be 0. */
const LEAST_RANGE = "1e-6";

function perQuantizer(
  label: string,
  count: number,
  declarations: string,
  body: string,
  bindings: Kernel["bindings"],
): Kernel {
  const code = /* wgsl */ `${declarations}
@compute @workgroup_size(16)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= arrayLength(&quantizers) / ${WORDS}u) { return; }
  let entry = id.x * ${WORDS}u;
  let kind = quantizers[entry];
  let start = quantizers[entry + 1u];
  let at = quantizers[entry + 2u];
  ${body}
}
`;
  return { label, code, bindings, grid: [Math.max(1, Math.ceil(count / 16)), 1, 1] };
}
