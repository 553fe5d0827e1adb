// Fake quantization of an activation on its own, where training quantizes only a part of it or has a gradient of its own:
//   y = x + k (Q(x) - x),  Q(x) = scale * (clamp(round(x / scale) + zeroPoint, quantMin, quantMax) - zeroPoint)
// with k = 1; or 1 or 0 at random for each element (QDrop, Wei et al. 2022); or growing from 0 to 1 over the steps
// (gradual quantization, EPTQ, Gordon et al. 2023). Gradients: LSQ (Esser 2020), zero points as in LSQ+ (Bhalgat 2020);
// of clipped values only (PACT, Choi et al. 2018); scaled element by element (EWGS, Lee, Kim, Ham 2021).
// x, y: [rows, C]; qparams: [scale, zeroPoint, quantMin, quantMax], one grid for all.
import { literal } from "./activation.ts";
import { epilogueSetup, fakeQuantize, maskPadding } from "./epilogue.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type Binding, type Kernel, type KernelSequence, padded, type Target } from "./kernel.ts";
import { RANDOM_BITS, randomChoice } from "./random.ts";
import { forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** Which part of an activation is quantized in a training step. */
export type QuantizedShare =
  /** Each element with this probability; `stream` tells independent choices of a step apart. */
  | { readonly kind: "random"; readonly probability: number; readonly stream: number }
  /** Every element by (t + 1) / steps in step t. */
  | { readonly kind: "gradual"; readonly steps: number };

/** How a quantizer's gradient differs from LSQ's. */
export type QuantizerGradient =
  /** The scale has the gradient of clipped values only, as a bound has in PACT. */
  | { readonly kind: "clipped" }
  /** What passes the rounding is multiplied by 1 + delta sign(g) (v - round(v)) / (quantMax - quantMin) (EWGS, eq. 5). */
  | { readonly kind: "scaled"; readonly delta: number };

/** A tensor that is quantized. */
export interface FakeQuantizeSpec {
  /** Product of all axes but the last. */
  readonly rows: number;
  readonly channels: number;
  /** Everything by default. */
  readonly share?: QuantizedShare;
  /** LSQ's by default. */
  readonly gradient?: QuantizerGradient;
}

/** Bindings: x, qparams, with a share also state (read), y (write). */
export function fakeQuantizeForward(spec: FakeQuantizeSpec, _target: Target): Kernel {
  const { rows, channels, share } = spec;
  const quads = padded(channels) / 4, total = rows * quads;
  return flatKernel({
    label: `fake_quantize ${rows}x${channels}`,
    size: total,
    bindings: [read("x"), read("qparams"), ...stateOf(spec), write("y")],
    types: { state: "f32" },
    declarations: declarationsOf(share),
    body: `${epilogueSetup({ fakeQuantize: true })}
  let value = x[i];
  let on_grid = ${fakeQuantize("value")};
  ${shareOf(share)}
  y[i] = ${maskPadding(blend(share, "value", "on_grid"), `i % ${quads}u`, channels)};`,
  });
}

/**
 * With v = x / scale, lo = quantMin - zeroPoint, hi = quantMax - zeroPoint, inside = lo < v < hi:
 * dx = dy * (1 - k + k * inside), dscale = sum(dy * k * (round(v) - v inside, lo below, hi above)),
 * dzeroPoint = sum(-dy * k * scale outside). Clipped: inside gives the scale 0. Scaled, with
 * p = k * (1 + delta * sign(dy) * (v - round(v)) / (quantMax - quantMin)) inside: dx = dy * (1 - k + p), and dscale has
 * dy * (k * round(v) - p * v) inside.
 *
 * Bindings: x, qparams, with a share also state, dy (read), dx, scale_sums, zero_point_sums (write, [C]: a gradient is
 * the sum over the channels).
 */
export function fakeQuantizeBackward(spec: FakeQuantizeSpec, target: Target): KernelSequence {
  const { rows, channels, share } = spec;
  const quads = padded(channels) / 4;
  const plan = planChunks(rows, quads, target);
  const label = `fake_quantize_backward ${rows}x${channels}`;
  const sums = flatKernel({
    label,
    size: plan.chunks * quads,
    bindings: [
      read("x"),
      read("qparams"),
      ...stateOf(spec),
      read("dy"),
      write("dx"),
      write("partials"),
    ],
    types: { state: "f32" },
    declarations: declarationsOf(share),
    body: `let channel = i % ${quads}u;
  let chunk = i / ${quads}u;
  ${epilogueSetup({ fakeQuantize: true })}
  let scale = grid.x;
  let lo = grid.z - grid.y;
  let hi = grid.w - grid.y;
  var sum_scale = vec4f(0.0);
  var sum_zero_point = vec4f(0.0);
  ${
      forEachRow(
        plan,
        `let i = row * ${quads}u + channel;
    let v = x[i] / scale;
    let g = ${maskPadding("dy[i]", "channel", channels)};
    ${shareOf(share)}
    let through = ${blend(share, "vec4f(0.0)", "g")};
    let inside = (v > vec4f(lo)) & (v < vec4f(hi));
    let outside = select(vec4f(lo), vec4f(hi), v >= vec4f(hi));
    let clipped = select(through, vec4f(0.0), inside);
    sum_zero_point -= clipped * scale;
    ${passInside(spec.gradient)}`,
      )
    }
  partials[(chunk * 2u) * ${quads}u + channel] = sum_scale;
  partials[(chunk * 2u + 1u) * ${quads}u + channel] = sum_zero_point;`,
  });
  const reduce = reductionKernel({
    label: `${label} reduce`,
    bindings: [read("partials"), write("scale_sums"), write("zero_point_sums")],
    chunks: plan.chunks,
    stride: 2 * quads,
    offsets: [0, quads],
    size: quads,
    finish: "scale_sums[o] = value0;\n  zero_point_sums[o] = value1;",
  }, target);
  return {
    kernels: [sums, reduce],
    temporaries: { partials: plan.chunks * 2 * quads * 4 },
  };
}

/** WGSL of what the values inside give to the scale and to dx. */
function passInside(gradient: QuantizerGradient | undefined): string {
  if (gradient?.kind !== "scaled") {
    const inner = gradient ? "vec4f(0.0)" : "round(v) - v";
    return `sum_scale += through * select(outside, ${inner}, inside);
    dx[i] = g - clipped;`;
  }
  return `let rest = (v - round(v)) / (hi - lo);
    let more = select(vec4f(0.0), through * sign(g) * rest * ${literal(gradient.delta)}, inside);
    sum_scale += through * select(outside, round(v) - v, inside) - more * v;
    dx[i] = g - clipped + more;`;
}

function stateOf({ share }: FakeQuantizeSpec): Binding[] {
  return share ? [read("state")] : [];
}

function declarationsOf(share: QuantizedShare | undefined): string {
  return share?.kind === "random" ? RANDOM_BITS : "";
}

/** WGSL that defines `quantized`: which lanes of vec4 `i` are, or how far all are. */
function shareOf(share: QuantizedShare | undefined): string {
  if (share === undefined) return "";
  const value = share.kind === "random"
    ? randomChoice(share.probability, share.stream, "i")
    : `min(1.0, (state[0] + 1.0) / ${literal(share.steps)})`;
  return `let quantized = ${value};`;
}

/** WGSL of without + k (with - without). */
function blend(share: QuantizedShare | undefined, without: string, full: string): string {
  if (share === undefined) return full;
  return share.kind === "random"
    ? `select(${without}, ${full}, quantized)`
    : `mix(${without}, ${full}, vec4f(quantized))`;
}
