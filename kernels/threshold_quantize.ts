// Activations on even levels behind thresholds that are learned (N2UQ, Liu et al. 2022, "Nonuniform-to-Uniform Quantization"):
//   code = quantMin + the number of thresholds that x reaches, y = scale * (code - zeroPoint)
// The thresholds lie halfway between knots K_0 < K_1 < .. < K_n, n = quantMax - quantMin, and the gradient is that of the
// ramp r which rises by one code from each knot to the next, and stays where it is outside (generalized straight-through
// estimator, eq. 8). Learned are log scale, the start K_0 and the intervals K_i - K_(i-1).
// x, y: [rows, C]; grid: GRID_SIZE floats a tensor: [scale, zeroPoint, quantMin, quantMax], 16 knots, 16 thresholds.
import { maskPadding } from "./epilogue.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import {
  COMPONENTS,
  declareBindings,
  type Kernel,
  type KernelSequence,
  padded,
  range,
  type Target,
} from "./kernel.ts";
import { forEachRow, planChunks, reducePartials } from "./reduce_partials.ts";

/** Most thresholds of a tensor: 4 bits have 15. */
export const MOST_THRESHOLDS = 15;

/** Floats of a grid; at a multiple of 64 in a buffer of several. */
export const GRID_SIZE = 36;

/** Where knots and thresholds begin in a grid. */
export const KNOTS = 4, THRESHOLDS = 20;

/** A tensor that is quantized. */
export interface ThresholdQuantizeSpec {
  /** Product of all axes but the last. */
  readonly rows: number;
  readonly channels: number;
  /** n, at most {@linkcode MOST_THRESHOLDS}. */
  readonly thresholds: number;
}

/** Bindings: x, grid (read), y (write). */
export function thresholdQuantizeForward(spec: ThresholdQuantizeSpec, _target: Target): Kernel {
  const { rows, channels, thresholds } = spec;
  const quads = padded(channels) / 4;
  return flatKernel({
    label: `threshold_quantize ${rows}x${channels} ${thresholds}`,
    size: rows * quads,
    bindings: [read("x"), read("grid"), write("y")],
    body: `let value = x[i];
  let level = ${level("value", thresholds)};
  y[i] = ${maskPadding("(level * grid[0].x)", `i % ${quads}u`, channels)};`,
  });
}

/**
 * With a_i = K_i - K_(i-1), in_i = K_(i-1) <= x < K_i and f = (x - K_(i-1)) / a_i there:
 * dx = dy * scale * sum_i in_i / a_i, dscale = sum(dy * (code - zeroPoint)),
 * dK_i = -scale * sum(dy * (in_i * f / a_i + in_(i+1) * (1 - f) / a_(i+1))).
 *
 * Bindings: x, grid, dy (read), dx (write), sums (write, [n + 2, C]: dscale, dK_0 .. dK_n of each channel).
 */
export function thresholdQuantizeBackward(
  spec: ThresholdQuantizeSpec,
  target: Target,
): KernelSequence {
  const { rows, channels, thresholds } = spec;
  const quads = padded(channels) / 4;
  const vectors = thresholds + 2;
  const plan = planChunks(rows, quads, target);
  const segment = (i: number) =>
    `{
      let width = ${at(KNOTS + i)} - ${at(KNOTS + i - 1)};
      let part = (value - ${at(KNOTS + i - 1)}) / width;
      let inside = (value >= vec4f(${at(KNOTS + i - 1)})) & (value < vec4f(${at(KNOTS + i)}));
      let through = select(vec4f(0.0), g * (scale / width), inside);
      down += through;
      let upper = through * part;
      knot${i} -= upper;
      knot${i - 1} -= through - upper;
    }`;
  const sums = flatKernel({
    label: `threshold_quantize_backward ${rows}x${channels} ${thresholds}`,
    size: plan.chunks * quads,
    bindings: [read("x"), read("grid"), read("dy"), write("dx"), write("partials")],
    body: `let channel = i % ${quads}u;
  let chunk = i / ${quads}u;
  let scale = grid[0].x;
  var scale_sum = vec4f(0.0);
  ${range(thresholds + 1).map((i) => `var knot${i} = vec4f(0.0);`).join("\n  ")}
  ${
      forEachRow(
        plan,
        `let i = row * ${quads}u + channel;
    let value = x[i];
    let g = dy[i];
    scale_sum += g * ${level("value", thresholds)};
    var down = vec4f(0.0);
    ${range(thresholds).map((i) => segment(i + 1)).join("\n    ")}
    dx[i] = down;`,
      )
    }
  let first = chunk * ${vectors * quads}u + channel;
  partials[first] = scale_sum;
  ${
      range(thresholds + 1).map((i) => `partials[first + ${(i + 1) * quads}u] = knot${i};`)
        .join("\n  ")
    }`,
  });
  const reduce = reducePartials({ chunks: plan.chunks, size: vectors * quads }, target);
  return {
    kernels: [sums, reduce],
    temporaries: { partials: plan.chunks * vectors * quads * 4 },
  };
}

/** What the kernels between the flat parameters and the grids must know of a tensor. */
export interface ThresholdEntry {
  /** Float index in `parameters` of the log scale. */
  readonly logScale: number;
  /** Float index in `parameters` of the start; the intervals follow. */
  readonly start: number;
  /** Float index in `grids`; a multiple of 4. */
  readonly grid: number;
  /** Float index in `sums` of those of {@linkcode thresholdQuantizeBackward}; a multiple of 4. */
  readonly sums: number;
  readonly channels: number;
  /** n. */
  readonly thresholds: number;
  /** No interval becomes shorter. */
  readonly shortest: number;
}

const WORDS = 8;

/**
 * The table that the kernels bind as `entries`.
 *
 * @param entries the tensors
 * @returns eight words each
 */
export function encodeThresholdEntries(
  entries: readonly ThresholdEntry[],
): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(entries.length * WORDS);
  const shortest = new Float32Array(words.buffer);
  entries.forEach(({ logScale, start, grid, sums, channels, thresholds, ...entry }, i) => {
    words.set([logScale, start, grid, sums, padded(channels), thresholds], i * WORDS);
    shortest[i * WORDS + 6] = entry.shortest;
  });
  return words;
}

/**
 * Grids from what is learned: scale, knots and thresholds; zero point and codes stay as they are.
 *
 * Bindings: parameters (read, f32), entries (read, u32), grids (read_write, f32).
 */
export function updateThresholds({ count }: { readonly count: number }, _target: Target): Kernel {
  return perEntry(
    "update_thresholds",
    count,
    [read("parameters"), read("entries"), write("grids")],
    {
      body: `grids[grid] = exp(parameters[log_scale]);
  var knot = parameters[start];
  grids[grid + ${KNOTS}u] = knot;
  for (var i = 1u; i <= thresholds; i++) {
    let next = knot + max(parameters[start + i], shortest);
    grids[grid + ${KNOTS}u + i] = next;
    grids[grid + ${THRESHOLDS - 1}u + i] = 0.5 * (knot + next);
    knot = next;
  }`,
    },
  );
}

/**
 * Gradients of what is learned: dlog_scale = scale * dscale, dstart = sum of all dK_i, and of interval j the sum of the
 * dK_i with i >= j, or 0 where the interval is at its shortest.
 *
 * Bindings: parameters, grids, sums (read, f32), entries (read, u32), gradients (write, f32: these entries only).
 */
export function thresholdGradients({ count }: { readonly count: number }, _target: Target): Kernel {
  const bindings = ["parameters", "grids", "sums", "entries"].map(read);
  return perEntry("threshold_gradients", count, [...bindings, write("gradients")], {
    declarations: `fn total(first: u32, length: u32) -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < length; i++) { sum += sums[first + i]; }
  return sum;
}`,
    body: `let first = entries[entry + 3u];
  let length = entries[entry + 4u];
  gradients[log_scale] = grids[grid] * total(first, length);
  var behind = 0.0;
  for (var i = thresholds; i > 0u; i--) {
    behind += total(first + (i + 1u) * length, length);
    gradients[start + i] = select(0.0, behind, parameters[start + i] > shortest);
  }
  gradients[start] = behind + total(first + length, length);`,
  });
}

function perEntry(
  name: string,
  count: number,
  bindings: Kernel["bindings"],
  { declarations = "", body }: { readonly declarations?: string; readonly body: string },
): Kernel {
  const types = Object.fromEntries(bindings.map((binding) => [binding.name, "f32"]));
  const code = /* wgsl */ `${declareBindings(bindings, { ...types, entries: "u32" })}
${declarations}
@compute @workgroup_size(16)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= arrayLength(&entries) / ${WORDS}u) { return; }
  let entry = id.x * ${WORDS}u;
  let log_scale = entries[entry];
  let start = entries[entry + 1u];
  let grid = entries[entry + 2u];
  let thresholds = entries[entry + 5u];
  let shortest = bitcast<f32>(entries[entry + 6u]);
  ${body}
}
`;
  const grid = [Math.max(1, Math.ceil(count / 16)), 1, 1] as const;
  return { label: `${name} ${count}`, code, bindings, grid };
}

/** WGSL of code - zeroPoint. */
function level(x: string, thresholds: number): string {
  const steps = range(thresholds).map((i) => ` + step(vec4f(${at(THRESHOLDS + i)}), ${x})`);
  return `(vec4f(grid[0].z - grid[0].y)${steps.join("")})`;
}

/** WGSL of a float of the grid. */
function at(index: number): string {
  return `grid[${index >> 2}].${COMPONENTS[index & 3]}`;
}
