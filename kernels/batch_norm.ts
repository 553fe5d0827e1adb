// Batch normalisation (Ioffe, Szegedy 2015) with the conventions of PyTorch, over x: [rows, C] channels last. The layer is
// applied as an affine map of x (fused_layer.ts): affine: [2, C] = scale, shift; saved: [2, C] = mean, 1 / std.
// While state[4] is 1 (schedule.ts) the statistics are those of the batch, after that the running ones.
import { literal } from "./activation.ts";
import { maskPadding } from "./epilogue.ts";
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  type KernelSequence,
  padded,
  type Target,
} from "./kernel.ts";
import { forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** Batch normalisation in training. */
export interface BatchNormSpec {
  /** Product of all axes but the last. */
  readonly rows: number;
  readonly channels: number;
  readonly epsilon: number;
  /** Share of the batch in the new running statistics (PyTorch's convention). */
  readonly momentum: number;
}

/** As {@linkcode BatchNormSpec}, for partial sums that another kernel made. */
export interface BatchNormFinalizeSpec extends BatchNormSpec {
  readonly chunks: number;
  /** vec4s from one chunk of `partials` to the next; default 2 rows of C. */
  readonly stride?: number;
}

/**
 * Statistics of a batch: mean, biased variance for normalising, unbiased variance for the running one.
 *
 * Bindings: x, gamma, beta, state (read), running_mean, running_variance (read_write), affine, saved (write).
 */
export function batchNormStatistics(spec: BatchNormSpec, target: Target): KernelSequence {
  const { rows, channels } = spec;
  const quads = padded(channels) / 4;
  const plan = planChunks(rows, quads, target);
  const bindings = [...reads("x", "running_mean", "state"), ...writes("partials")];
  const code = partialSums(
    bindings,
    plan.chunks,
    quads,
    `if (state[4] == 0.0) { return; } // frozen: the running statistics serve
  let shift = running_mean[channel];`,
    forEachRow(
      plan,
      `let d = x[row * ${quads}u + channel] - shift;
    sum0 += d;
    sum1 = fma(d, d, sum1);`,
    ),
  );
  const label = `batch_norm_statistics ${rows}x${channels}`;
  const sums: Kernel = { label, code, bindings, grid: grid1d(plan.chunks * quads, 64) };
  return {
    kernels: [sums, batchNormFinalize({ ...spec, chunks: plan.chunks }, target)],
    temporaries: { partials: plan.chunks * 2 * quads * 4 },
  };
}

/**
 * Ends {@linkcode batchNormStatistics} from partial sums: partials [chunks][stride] begins, in every chunk, with the
 * sums of d and of d * d over the chunk's rows, d = x - running_mean (which serves as a shift against cancellation).
 *
 * Bindings: partials, gamma, beta, state (read), running_mean, running_variance (read_write), affine, saved (write).
 */
export function batchNormFinalize(spec: BatchNormFinalizeSpec, target: Target): Kernel {
  const { rows, channels, epsilon, momentum, chunks } = spec;
  const quads = padded(channels) / 4;
  const { stride = 2 * quads } = spec;
  const keep = literal(1 - momentum), take = literal(momentum);
  return reductionKernel({
    label: `batch_norm_finalize ${chunks}x${channels}`,
    bindings: [
      ...reads("partials", "gamma", "beta", "state"),
      ...writes("running_mean", "running_variance", "affine", "saved"),
    ],
    types: { state: "f32" },
    chunks,
    stride,
    offsets: [0, quads],
    size: quads,
    finish: `var mean = running_mean[o];
  var variance = running_variance[o];
  if (state[4] != 0.0) {
    let offset = value0 * ${literal(1 / rows)};
    let batch_mean = mean + offset;
    let batch_variance = max(value1 * ${literal(1 / rows)} - offset * offset, vec4f(0.0));
    let unbiased = batch_variance * ${literal(rows / Math.max(1, rows - 1))};
    running_mean[o] = ${keep} * mean + ${take} * batch_mean;
    running_variance[o] = ${keep} * variance + ${take} * unbiased;
    mean = batch_mean;
    variance = batch_variance;
  }
  let inverse_std = ${maskPadding(inverseStd(epsilon), "o", channels)};
  let scale = gamma[o] * inverse_std;
  affine[o] = scale;
  affine[o + ${quads}u] = beta[o] - mean * scale;
  saved[o] = mean;
  saved[o + ${quads}u] = inverse_std;`,
  }, target);
}

/** Batch normalisation with fixed statistics. */
export interface BatchNormAffineSpec {
  readonly channels: number;
  readonly epsilon: number;
}

/**
 * scale = gamma / sqrt(variance + epsilon), shift = beta - mean * scale.
 *
 * Bindings: gamma, beta, mean, variance (read), affine (write).
 */
export function batchNormAffine(spec: BatchNormAffineSpec, _target: Target): Kernel {
  const { channels, epsilon } = spec;
  const quads = padded(channels) / 4;
  const bindings = [...reads("gamma", "beta", "mean", "variance"), ...writes("affine")];
  const code = /* wgsl */ `${declareBindings(bindings)}
@compute @workgroup_size(16)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let o = id.x;
  if (o >= ${quads}u) { return; }
  let variance = variance[o];
  let scale = gamma[o] * ${inverseStd(epsilon)};
  affine[o] = scale;
  affine[o + ${quads}u] = beta[o] - mean[o] * scale;
}
`;
  const label = `batch_norm_affine ${channels}`;
  return { label, code, bindings, grid: [Math.ceil(quads / 16), 1, 1] };
}

/** Gradients of batch normalisation: the shape of x. */
export interface BatchNormGradientsSpec {
  readonly rows: number;
  readonly channels: number;
}

/**
 * With xhat = (x - mean) / std: dbeta = sum(dz), dgamma = sum(dz * xhat). The gradient of x follows by
 * `batchNormBackward` (fused_layer.ts) from coefficients: [3, C] = scale, live dbeta / rows, live dgamma / rows.
 *
 * Bindings: x, dz, saved, affine, state (read), dgamma, dbeta, coefficients (write).
 */
export function batchNormGradients(spec: BatchNormGradientsSpec, target: Target): KernelSequence {
  const { rows, channels } = spec;
  const quads = padded(channels) / 4;
  const plan = planChunks(rows, quads, target);
  const bindings = [...reads("x", "dz", "saved"), ...writes("partials")];
  const code = partialSums(
    bindings,
    plan.chunks,
    quads,
    `let mean = saved[channel];
  let inverse_std = saved[channel + ${quads}u];`,
    forEachRow(
      plan,
      `let i = row * ${quads}u + channel;
    sum0 += dz[i];
    sum1 = fma(dz[i], (x[i] - mean) * inverse_std, sum1);`,
    ),
  );
  const label = `batch_norm_gradients ${rows}x${channels}`;
  const sums: Kernel = { label, code, bindings, grid: grid1d(plan.chunks * quads, 64) };
  return {
    kernels: [sums, batchNormGradientsFinalize({ ...spec, chunks: plan.chunks }, target)],
    temporaries: { partials: plan.chunks * 2 * quads * 4 },
  };
}

/** As {@linkcode BatchNormGradientsSpec}, for partial sums that another kernel made. */
export interface BatchNormGradientsFinalizeSpec extends BatchNormGradientsSpec {
  readonly chunks: number;
  /** vec4s from one chunk of `partials` to the next; default 2 rows of C. */
  readonly stride?: number;
}

/**
 * Ends {@linkcode batchNormGradients} from partial sums: partials [chunks][stride] begins, in every chunk, with the sums
 * of dz and of dz * xhat over the chunk's rows.
 *
 * Bindings: partials, affine, state (read), dgamma, dbeta, coefficients (write).
 */
export function batchNormGradientsFinalize(
  spec: BatchNormGradientsFinalizeSpec,
  target: Target,
): Kernel {
  const { rows, channels, chunks } = spec;
  const quads = padded(channels) / 4;
  const { stride = 2 * quads } = spec;
  return reductionKernel({
    label: `batch_norm_gradients_finalize ${chunks}x${channels}`,
    bindings: [
      ...reads("partials", "affine", "state"),
      ...writes("dgamma", "dbeta", "coefficients"),
    ],
    types: { state: "f32" },
    chunks,
    stride,
    offsets: [0, quads],
    size: quads,
    finish: `dbeta[o] = value0;
  dgamma[o] = value1;
  // frozen statistics do not depend on x
  let live = state[4] * ${literal(1 / rows)};
  coefficients[o] = affine[o];
  coefficients[o + ${quads}u] = live * value0;
  coefficients[o + ${2 * quads}u] = live * value1;`,
  }, target);
}

/** Division and square root rather than inverseSqrt, which adapters may round by 2 units. */
function inverseStd(epsilon: number): string {
  return `(1.0 / sqrt(variance + ${literal(epsilon)}))`;
}

/** A kernel that sums two values per channel over the rows of each chunk: partials [chunks][2][C]. */
function partialSums(
  bindings: readonly Binding[],
  chunks: number,
  quads: number,
  setup: string,
  loop: string,
): string {
  return /* wgsl */ `${declareBindings(bindings, { state: "f32" })}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let id = ${flatIndex(64)};
  if (id >= ${chunks * quads}u) { return; }
  let channel = id % ${quads}u;
  let chunk = id / ${quads}u;
  ${setup}
  var sum0 = vec4f(0.0);
  var sum1 = vec4f(0.0);
  ${loop}
  partials[chunk * ${2 * quads}u + channel] = sum0;
  partials[chunk * ${2 * quads}u + ${quads}u + channel] = sum1;
}
`;
}

function reads(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read" }));
}

function writes(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read_write" }));
}
