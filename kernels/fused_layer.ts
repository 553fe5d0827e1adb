// The pointwise end of a layer as one pass in each direction, for training (inference fuses it into the convolution):
//   z = x * scale[c] + shift[c] + residual        (batch norm as an affine map; without it a layer has added its bias)
//   u = activation(z);  y = fakeQuantize(u)
// x, y, residual: [rows, C]; affine: [2, C] (scale, shift); saved: [2, C] (mean, 1/std); qparams: [scale, zeroPoint,
// quantMin, quantMax].
import {
  activationDerivative,
  activationForward,
  activationKeepsZero,
  literal,
} from "./activation.ts";
import { type Epilogue, epilogueSetup, fakeQuantize, maskPadding } from "./epilogue.ts";
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  padded,
  type Target,
} from "./kernel.ts";
import { forEachRow, planChunks, planRuns, reductionKernel } from "./reduce_partials.ts";

const WORKGROUP = 64;

/** The pointwise end of a layer over [rows, channels]. */
export interface FusedLayerSpec {
  readonly rows: number;
  readonly channels: number;
  /** Whether batch norm, as the binding `affine`, precedes the residual. */
  readonly batchNorm: boolean;
  readonly residual: boolean;
  readonly activation?: Epilogue["activation"];
  readonly fakeQuantize?: Epilogue["fakeQuantize"];
}

/** y = fakeQuantize(activation(x * scale + shift + residual)). Bindings: x, affine, residual, qparams, y. */
export function fusedLayerForward(spec: FusedLayerSpec, target: Target): Kernel {
  const bindings = [...inputBindings(spec), write("y")];
  return rowsKernel({
    label: `fused_layer_forward ${spec.rows}x${spec.channels}`,
    bindings,
    ...spec,
    setup: channelSetup(spec),
    body: `let xi = x[i];
    let z = ${preActivation(spec)};
    ${postActivation(spec)}
    y[i] = end;`,
  }, target);
}

/** How many chunks of rows the partial sums of the backward pass have. */
export function fusedLayerChunks(
  { rows, channels }: { rows: number; channels: number },
  target: Target,
): number {
  return planChunks(rows, padded(channels) / 4, target).chunks;
}

/**
 * First backward pass, with v = u / s, lo = quantMin - zeroPoint, hi = quantMax - zeroPoint:
 *   dz = dy * (lo < v < hi) * activation'(z)
 *   ds = sum dy * (round(v) - v inside, lo below, hi above)          (LSQ, Esser 2020, eq. 3)
 * Bindings: those of the forward pass, saved (with affine), dy, dz, partials. partials: [chunks][3][C]: the sums over
 * the chunk's rows of dz, of dz * xhat (0 without batch norm) and of the terms of ds.
 */
export function fusedLayerBackward(spec: FusedLayerSpec, target: Target): Kernel {
  return backwardKernel(spec, {
    name: "fused_layer_backward",
    bindings: [read("dy")],
    setup: "",
    gradient: "let g = dy[i];",
    finish: "",
  }, target);
}

/**
 * As {@linkcode fusedLayerBackward}, with dy from the loss scale * weight * mean((y - teacher)^2): forward pass, error
 * and backward pass in one. Bindings: teacher and weight ([1]) in place of dy, and errors [chunks][C]: the sums over
 * the chunk's rows of (y - teacher)^2.
 */
export function fusedLayerSquaredError(
  spec: FusedLayerSpec,
  scale: number,
  target: Target,
): Kernel {
  return backwardKernel(spec, {
    name: "fused_layer_squared_error",
    bindings: [read("teacher"), read("weight"), write("errors")],
    setup: `let factor = weight[0] * ${literal(2 * scale / (spec.rows * spec.channels))};
  var sum_error = vec4f(0.0);`,
    gradient: `${postActivation(spec)}
    let error = end - teacher[i];
    sum_error = fma(error, error, sum_error);
    let g = factor * error;`,
    finish: "errors[id] = sum_error;",
  }, target);
}

/** Where the gradient `g` of an element comes from. */
interface GradientSource {
  readonly name: string;
  readonly bindings: readonly Binding[];
  /** Statements before the rows. */
  readonly setup: string;
  /** Statements that set `g` from `i` and `z`. */
  readonly gradient: string;
  /** Statements after the rows. */
  readonly finish: string;
}

function backwardKernel(spec: FusedLayerSpec, source: GradientSource, target: Target): Kernel {
  const { batchNorm } = spec;
  const bindings = [
    ...inputBindings(spec),
    ...(batchNorm ? [read("saved")] : []),
    ...source.bindings,
    write("dz"),
    write("partials"),
  ];
  const vectors = padded(spec.channels) / 4;
  const plan = planChunks(spec.rows, vectors, target);
  const total = plan.chunks * vectors;
  const code = /* wgsl */ `
${declareBindings(bindings, { weight: "f32" })}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let id = ${flatIndex(WORKGROUP)};
  if (id >= ${total}u) { return; }
  let channel = id % ${vectors}u;
  let chunk = id / ${vectors}u;
  ${channelSetup(spec)}
  ${batchNorm ? `let mean = saved[channel]; let inverse_std = saved[channel + ${vectors}u];` : ""}
  ${source.setup}
  var sum_dz = vec4f(0.0);
  var sum_dz_xhat = vec4f(0.0);
  var sum_scale = vec4f(0.0);
  ${
    forEachRow(
      plan,
      `let i = row * ${vectors}u + channel;
    let xi = x[i];
    let z = ${preActivation(spec)};
    ${source.gradient}
    ${gradientOfActivation(spec)}
    dz[i] = d;
    sum_dz += d;
    ${batchNorm ? "sum_dz_xhat += d * ((xi - mean) * inverse_std);" : ""}`,
    )
  }
  partials[(chunk * 3u) * ${vectors}u + channel] = sum_dz;
  partials[(chunk * 3u + 1u) * ${vectors}u + channel] = sum_dz_xhat;
  partials[(chunk * 3u + 2u) * ${vectors}u + channel] = sum_scale;
  ${source.finish}
}`;
  return {
    label: `${source.name} ${spec.rows}x${spec.channels}`,
    code,
    bindings,
    grid: grid1d(total, WORKGROUP),
  };
}

/** Which results of {@linkcode fusedLayerReduce} the layer has a tensor for. */
export interface FusedLayerResults {
  readonly dshift: boolean;
  readonly dscale: boolean;
  readonly scaleSums: boolean;
}

/**
 * Sums the partials over chunks. Bindings: partials, and what the layer has of: dshift [C] (gradient of beta or bias),
 * dscale [C] (gradient of gamma), scale_sums [C] (terms of the quantizer's scale gradient, still to be summed over
 * channels), and with batch norm: affine, state and coefficients [3, C] for {@linkcode batchNormBackward}.
 */
export function fusedLayerReduce(
  spec: FusedLayerSpec,
  wanted: FusedLayerResults,
  target: Target,
): Kernel {
  const { batchNorm } = spec;
  const quads = padded(spec.channels) / 4;
  const chunks = fusedLayerChunks(spec, target);
  // state[4] is 1 while the mean and variance are those of the batch and so depend on x
  const coefficients = `let live = state[4] * ${literal(1 / spec.rows)};
  coefficients[o] = affine[o];
  coefficients[o + ${quads}u] = live * value0;
  coefficients[o + ${2 * quads}u] = live * value1;`;
  return reductionKernel({
    label: `fused_layer_reduce ${chunks}x${spec.channels}`,
    bindings: [
      read("partials"),
      ...(batchNorm ? [read("affine"), read("state")] : []),
      ...(wanted.dshift ? [write("dshift")] : []),
      ...(wanted.dscale ? [write("dscale")] : []),
      ...(wanted.scaleSums ? [write("scale_sums")] : []),
      ...(batchNorm ? [write("coefficients")] : []),
    ],
    types: { state: "f32" },
    chunks,
    stride: 3 * quads,
    offsets: [0, quads, 2 * quads],
    size: quads,
    finish: `${wanted.dshift ? "dshift[o] = value0;" : ""}
  ${wanted.dscale ? "dscale[o] = value1;" : ""}
  ${wanted.scaleSums ? "scale_sums[o] = value2;" : ""}
  ${batchNorm ? coefficients : ""}`,
  }, target);
}

/**
 * Gradient through batch norm: dx = scale * (dz - mean(dz) - xhat * mean(dz * xhat)), the means being 0 once the
 * statistics are frozen. Bindings: x, saved, coefficients, dz, dx.
 */
export function batchNormBackward(
  spec: { rows: number; channels: number },
  target: Target,
): Kernel {
  const vectors = padded(spec.channels) / 4;
  const bindings = [read("x"), read("saved"), read("coefficients"), read("dz"), write("dx")];
  return rowsKernel({
    label: `batch_norm_backward ${spec.rows}x${spec.channels}`,
    bindings,
    ...spec,
    setup: `let mean = saved[channel];
  let scale = coefficients[channel];
  // scale * (dz - c1 - (x - mean) / std * c2) = scale * dz - (x - mean) * slope - offset
  let offset = scale * coefficients[channel + ${vectors}u];
  let slope = scale * saved[channel + ${vectors}u] * coefficients[channel + ${2 * vectors}u];`,
    body: "dx[i] = scale * dz[i] - (x[i] - mean) * slope - offset;",
  }, target);
}

/** A kernel that runs `body` for every vec4 `i` of [rows, channels], what a channel needs loaded once by `setup`. */
function rowsKernel(
  { label, bindings, rows, channels, setup, body }: {
    readonly label: string;
    readonly bindings: readonly Binding[];
    readonly rows: number;
    readonly channels: number;
    readonly setup: string;
    readonly body: string;
  },
  target: Target,
): Kernel {
  const vectors = padded(channels) / 4;
  const plan = planRuns(rows, vectors, target);
  const total = plan.chunks * vectors;
  const code = /* wgsl */ `
${declareBindings(bindings)}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let id = ${flatIndex(WORKGROUP)};
  if (id >= ${total}u) { return; }
  let channel = id % ${vectors}u;
  let chunk = id / ${vectors}u;
  ${setup}
  ${forEachRow(plan, `let i = row * ${vectors}u + channel;\n    ${body}`)}
}`;
  return { label, code, bindings, grid: grid1d(total, WORKGROUP) };
}

function read(name: string): Binding {
  return { name, access: "read" };
}

function write(name: string): Binding {
  return { name, access: "read_write" };
}

function inputBindings(spec: FusedLayerSpec): Binding[] {
  return [
    read("x"),
    ...(spec.batchNorm ? [read("affine")] : []),
    ...(spec.residual ? [read("residual")] : []),
    ...(spec.fakeQuantize ? [read("qparams")] : []),
  ];
}

/** Statements that load what {@linkcode preActivation} and the quantizer need of a channel. */
function channelSetup({ channels, batchNorm, fakeQuantize = false }: FusedLayerSpec): string {
  const affine = batchNorm
    ? `let scale = affine[channel]; let shift = affine[channel + ${padded(channels) / 4}u];`
    : "";
  return `${affine}\n  ${epilogueSetup({ fakeQuantize })}`;
}

/** z of the element `xi` at `i`. */
function preActivation({ batchNorm, residual }: FusedLayerSpec): string {
  return `xi${batchNorm ? " * scale + shift" : ""}${residual ? " + residual[i]" : ""}`;
}

/** Statements that set `end`, the result, from `z`. */
function postActivation({ activation, channels, fakeQuantize: quantizes }: FusedLayerSpec): string {
  let u = activation ? activationForward(activation, "z") : "z";
  if (activation && !activationKeepsZero(activation)) u = maskPadding(u, "channel", channels);
  return `let u = ${u}; let end = ${quantizes ? fakeQuantize("u") : "u"};`;
}

/** Statements that set `d` to dz and add to `sum_scale`, from `g` and `z`. */
function gradientOfActivation(spec: FusedLayerSpec): string {
  const { activation, channels } = spec;
  const derivative = activation ? ` * ${activationDerivative(activation, "z")}` : "";
  const mask = (value: string) => maskPadding(value, "channel", channels);
  if (!spec.fakeQuantize) return `let d = ${mask(`(g${derivative})`)};`;
  const u = activation ? activationForward(activation, "z") : "z";
  return `let v = ${u} / grid.x;
    let lo = vec4f(grid.z - grid.y);
    let hi = vec4f(grid.w - grid.y);
    let inside = (v > lo) & (v < hi);
    sum_scale += ${mask("(g * select(select(lo, hi, v >= hi), round(v) - v, inside))")};
    let d = ${mask(`(select(vec4f(0.0), g, inside)${derivative})`)};`;
}
