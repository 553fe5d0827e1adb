// The step between the flat parameters, which hold log-scales, and the `qparams` that quantizing kernels bind: all
// activation quantizers of a student in one dispatch forward, one backward.
import { declareBindings, type Kernel, type Target } from "./kernel.ts";

/** One activation quantizer. */
export interface ActivationScale {
  /** Float index of the log-scale in `parameters`. */
  readonly logScale: number;
  /** Float index of a learned zero point in `parameters`; without it `qparams` keeps the one it has. */
  readonly zeroPoint?: number;
  /** vec4 index of [scale, zeroPoint, quantMin, quantMax] in `qparams`. */
  readonly qparams: number;
  /** First vec4 in `scale_terms` of the terms whose sum over all lanes is dL/dscale. */
  readonly scaleTerms: number;
  /** How many vec4s of them; default 1. */
  readonly scaleTermCount?: number;
  /** First vec4 in `scale_terms` of the terms of dL/dzeroPoint; default scaleTerms + scaleTermCount. */
  readonly zeroPointTerms?: number;
}

const WORDS = 8;
const NONE = 0xffffffff;

/**
 * The table that the kernels bind as `quantizers`.
 *
 * Words: logScale, zeroPoint (0xffffffff: none), qparams, scaleTerms, scaleTermCount, zeroPointTerms, 0, 0.
 *
 * @param quantizers one entry each
 * @returns eight words an entry
 */
export function encodeActivationScales(
  quantizers: readonly ActivationScale[],
): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(quantizers.length * WORDS);
  quantizers.forEach(({ logScale, zeroPoint = NONE, qparams, ...terms }, i) => {
    const { scaleTerms, scaleTermCount = 1, zeroPointTerms = scaleTerms + scaleTermCount } = terms;
    words.set(
      [logScale, zeroPoint, qparams, scaleTerms, scaleTermCount, zeroPointTerms],
      i * WORDS,
    );
  });
  return words;
}

/** How many entries the table has. */
export interface ActivationScalesSpec {
  readonly count: number;
}

/**
 * qparams = [exp(log_scale), zeroPoint, quantMin, quantMax], the bounds as they were.
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
    `let at = quantizers[entry + 2u];
  var zero_point = qparams[at].y;
  if (quantizers[entry + 1u] != ${NONE}u) { zero_point = parameters[quantizers[entry + 1u]]; }
  qparams[at] = vec4f(exp(parameters[quantizers[entry]]), zero_point, qparams[at].zw);`,
    bindings,
  );
}

/**
 * dL/dlog_scale = scale * sum(scale terms), dL/dzeroPoint = sum(zero-point terms).
 *
 * Bindings: quantizers (read, u32), qparams, scale_terms (read), gradients (write, f32: these entries only).
 */
export function activationScaleGradients({ count }: ActivationScalesSpec, _target: Target): Kernel {
  const bindings = [
    { name: "quantizers", access: "read" },
    { name: "qparams", access: "read" },
    { name: "scale_terms", access: "read" },
    { name: "gradients", access: "read_write" },
  ] as const;
  return perQuantizer(
    `activation_scale_gradients ${count}`,
    count,
    `${declareBindings(bindings, { quantizers: "u32", gradients: "f32" })}
fn total(start: u32, length: u32) -> f32 {
  var sum = vec4f(0.0);
  for (var i = 0u; i < length; i++) { sum += scale_terms[start + i]; }
  return sum.x + sum.y + sum.z + sum.w;
}`,
    `let length = quantizers[entry + 4u];
  let scale = qparams[quantizers[entry + 2u]].x;
  gradients[quantizers[entry]] = scale * total(quantizers[entry + 3u], length);
  if (quantizers[entry + 1u] != ${NONE}u) {
    gradients[quantizers[entry + 1u]] = total(quantizers[entry + 5u], length);
  }`,
    bindings,
  );
}

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
  ${body}
}
`;
  return { label, code, bindings, grid: [Math.max(1, Math.ceil(count / 16)), 1, 1] };
}
