// Fake quantization of a tensor on its own (where nothing can fuse it), per tensor or per channel of the last axis:
//   y = (clamp(round(x / scale) + zeroPoint, quantMin, quantMax) - zeroPoint) * scale
// with the gradients of LSQ (Esser 2020) and, for the zero point, LSQ+ (Bhalgat 2020).
// x, y: [rows, C]; qparams: [scale, zeroPoint]; per channel scale, zero_point: [C].
import { literal } from "./activation.ts";
import { maskPadding, onGrid } from "./epilogue.ts";
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

/** A tensor and its integer grid. */
export interface FakeQuantizeSpec {
  /** Product of all axes but the last. */
  readonly rows: number;
  readonly channels: number;
  readonly quantMin: number;
  readonly quantMax: number;
}

/** Bindings: x, qparams (read, f32), y (write). */
export function fakeQuantizePerTensor(spec: FakeQuantizeSpec, _target: Target): Kernel {
  return forward("fake_quantize", spec, PER_TENSOR);
}

/** Bindings: x, scale, zero_point (read), y (write). */
export function fakeQuantizePerChannel(spec: FakeQuantizeSpec, _target: Target): Kernel {
  return forward("fake_quantize_per_channel", spec, PER_CHANNEL);
}

/**
 * With v = x / scale, lo = quantMin - zeroPoint, hi = quantMax - zeroPoint, inside = lo < v < hi:
 * dx = dy * inside, dscale = sum(dy * (round(v) - v inside, lo below, hi above)), dzeroPoint = sum(-dy * scale outside).
 *
 * Bindings: x, dy (read), qparams (read, f32), dx (write), dqparams (write, [2, 1]: dscale and dzeroPoint, each padded).
 */
export function fakeQuantizePerTensorBackward(
  spec: FakeQuantizeSpec,
  target: Target,
): KernelSequence {
  const write = `dqparams[0] = vec4f(dot(value0, vec4f(1.0)), 0.0, 0.0, 0.0);
  dqparams[1] = vec4f(dot(value1, vec4f(1.0)), 0.0, 0.0, 0.0);`;
  return backward("fake_quantize_backward", spec, PER_TENSOR, ["dqparams"], write, target);
}

/**
 * As {@linkcode fakeQuantizePerTensorBackward}, with sums per channel.
 *
 * Bindings: x, dy, scale, zero_point (read), dx, dscale, dzero_point (write).
 */
export function fakeQuantizePerChannelBackward(
  spec: FakeQuantizeSpec,
  target: Target,
): KernelSequence {
  const outputs = ["dscale", "dzero_point"];
  const write = "dscale[o] = value0;\n  dzero_point[o] = value1;";
  return backward("fake_quantize_per_channel_backward", spec, PER_CHANNEL, outputs, write, target);
}

/** Where the grid's parameters come from; `setup` defines activation_scale and activation_zero_point. */
interface Granularity {
  readonly perChannel: boolean;
  readonly bindings: readonly string[];
  readonly types: Readonly<Record<string, string>>;
  readonly setup: string;
}

const PER_TENSOR: Granularity = {
  perChannel: false,
  bindings: ["qparams"],
  types: { qparams: "f32" },
  setup: `let activation_scale = vec4f(qparams[0]);
    let activation_zero_point = vec4f(qparams[1]);`,
};

const PER_CHANNEL: Granularity = {
  perChannel: true,
  bindings: ["scale", "zero_point"],
  types: {},
  // padded channels have scale 0; 1 keeps NaN out of them
  setup: `let activation_scale =
      select(scale[channel], vec4f(1.0), scale[channel] == vec4f(0.0));
    let activation_zero_point = zero_point[channel];`,
};

const ENTRY_POINT = `@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32)`;

function forward(name: string, spec: FakeQuantizeSpec, granularity: Granularity): Kernel {
  const { rows, channels, quantMin, quantMax } = spec;
  const quads = padded(channels) / 4, total = rows * quads;
  const bindings = [...reads("x", ...granularity.bindings), ...writes("y")];
  const value = onGrid("x[i]", {
    scale: "activation_scale",
    zeroPoint: "activation_zero_point",
    quantMin: literal(quantMin),
    quantMax: literal(quantMax),
  });
  const code = /* wgsl */ `${declareBindings(bindings, granularity.types)}
${ENTRY_POINT} {
  let i = ${flatIndex(64)};
  if (i >= ${total}u) { return; }
  let channel = i % ${quads}u;
  ${granularity.setup}
  y[i] = ${maskPadding(value, "channel", channels)};
}
`;
  return { label: `${name} ${rows}x${channels}`, code, bindings, grid: grid1d(total, 64) };
}

function backward(
  name: string,
  spec: FakeQuantizeSpec,
  granularity: Granularity,
  outputs: readonly string[],
  write: string,
  target: Target,
): KernelSequence {
  const { rows, channels, quantMin, quantMax } = spec;
  const quads = padded(channels) / 4;
  // per tensor, every vec4 is a row of its own
  const columns = granularity.perChannel ? quads : 1;
  const plan = planChunks(rows * quads / columns, columns, target);
  const bindings = [...reads("x", ...granularity.bindings, "dy"), ...writes("dx", "partials")];
  const label = `${name} ${rows}x${channels}`;
  const masked = (value: string) => maskPadding(value, "channel", channels);
  const setup = granularity.setup;
  const code = /* wgsl */ `${declareBindings(bindings, granularity.types)}
${ENTRY_POINT} {
  let id = ${flatIndex(64)};
  if (id >= ${plan.chunks * columns}u) { return; }
  let column = id % ${columns}u;
  let chunk = id / ${columns}u;
  ${granularity.perChannel ? `let channel = column;\n  ${setup}` : setup}
  let lo = ${literal(quantMin)} - activation_zero_point;
  let hi = ${literal(quantMax)} - activation_zero_point;
  var sum_scale = vec4f(0.0);
  var sum_zero_point = vec4f(0.0);
  ${
    forEachRow(
      plan,
      `let i = row * ${columns}u + column;
    ${granularity.perChannel ? "" : `let channel = i % ${quads}u;`}
    let v = x[i] / activation_scale;
    let g = ${masked("dy[i]")};
    let inside = (v > lo) & (v < hi);
    sum_scale += g * select(select(lo, hi, v >= hi), round(v) - v, inside);
    sum_zero_point -= select(g * activation_scale, vec4f(0.0), inside);
    dx[i] = select(vec4f(0.0), g, inside);`,
    )
  }
  partials[(chunk * 2u) * ${columns}u + column] = sum_scale;
  partials[(chunk * 2u + 1u) * ${columns}u + column] = sum_zero_point;
}
`;
  const sums: Kernel = { label, code, bindings, grid: grid1d(plan.chunks * columns, 64) };
  const reduce = reductionKernel({
    label: `${label} reduce`,
    bindings: [...reads("partials"), ...writes(...outputs)],
    chunks: plan.chunks,
    stride: 2 * columns,
    offsets: [0, columns],
    size: columns,
    finish: write,
  }, target);
  return {
    kernels: [sums, reduce],
    temporaries: { partials: plan.chunks * 2 * columns * 4 },
  };
}

function reads(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read" }));
}

function writes(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read_write" }));
}
