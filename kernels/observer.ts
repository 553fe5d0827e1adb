// Observers of a tensor for post-training quantization: minimum and maximum (running or moving average, per tensor or
// per channel). x: [rows, C]; padded channels are not looked at.
// Range of a tensor: range: [minimum, maximum, batches seen, 0] and [minimum, maximum, 0, 0] as moving averages, all zero
// before the first batch.
import { literal } from "./activation.ts";
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
import { type ChunkPlan, forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** A tensor to observe. */
export interface ObserverSpec {
  /** Product of all axes but the last. */
  readonly rows: number;
  readonly channels: number;
}

/** How the moving averages follow the batches. */
export interface MinMaxObserverSpec extends ObserverSpec {
  /** c of m += c (batch - m). */
  readonly averaging: number;
}

/**
 * Takes a batch into the range of all batches and into the moving one.
 *
 * Bindings: x (read), range (read_write, [8]).
 */
export function minMaxObserver(spec: MinMaxObserverSpec, target: Target): KernelSequence {
  const { rows, channels, averaging } = spec;
  const quads = padded(channels) / 4;
  const plan = planChunks(rows * quads, 1, target);
  const reduce = reductionKernel({
    label: `min_max_observer reduce ${plan.chunks}`,
    bindings: [{ name: "partials", access: "read" }, { name: "range", access: "read_write" }],
    chunks: plan.chunks,
    stride: 2,
    offsets: [0, 1],
    size: 1,
    combine: "max",
    finish: `let batch = vec2f(
    -max(max(value0.x, value0.y), max(value0.z, value0.w)),
    max(max(value1.x, value1.y), max(value1.z, value1.w)));
  let seen = range[0];
  let moving = range[1].xy;
  let all = vec2f(min(seen.x, batch.x), max(seen.y, batch.y));
  let isFirst = seen.z == 0.0;
  range[0] = vec4f(select(all, batch, isFirst), seen.z + 1.0, 0.0);
  range[1] = vec4f(select(moving + ${
      literal(averaging)
    } * (batch - moving), batch, isFirst), 0.0, 0.0);`,
  }, target);
  return {
    kernels: [extremes(`min_max_observer ${rows}x${channels}`, spec, plan, 1), reduce],
    temporaries: { partials: plan.chunks * 8 },
  };
}

/**
 * Minimum and maximum of every channel of the last axis.
 *
 * Bindings: x (read), range (write, [2, C]: minima, maxima).
 */
export function rangePerChannel(spec: ObserverSpec, target: Target): KernelSequence {
  const { rows, channels } = spec;
  const quads = padded(channels) / 4;
  const plan = planChunks(rows, quads, target);
  const mask = (value: string) =>
    `select(vec4f(0.0), ${value}, ${laneIndices("o", quads)} < vec4u(${channels}u))`;
  const reduce = reductionKernel({
    label: `range_per_channel reduce ${plan.chunks}`,
    bindings: [{ name: "partials", access: "read" }, { name: "range", access: "read_write" }],
    chunks: plan.chunks,
    stride: 2 * quads,
    offsets: [0, quads],
    size: quads,
    combine: "max",
    finish: `range[o] = ${mask("-value0")};
  range[o + ${quads}u] = ${mask("value1")};`,
  }, target);
  return {
    kernels: [extremes(`range_per_channel ${rows}x${channels}`, spec, plan, quads), reduce],
    temporaries: { partials: plan.chunks * 2 * quads * 4 },
  };
}

/** Weights [rows, positions, C] with a range for each row, e.g. [O, KH * KW, I]. */
export interface RangePerRowSpec extends ObserverSpec {
  /** Product of the axes between the first and the last. */
  readonly positions: number;
}

/**
 * Minimum and maximum of every entry of the first axis (output channel of a weight).
 *
 * Bindings: x (read), range (write, f32, [2, rows]: minima, maxima).
 */
export function rangePerRow(spec: RangePerRowSpec, _target: Target): Kernel {
  const { rows, positions, channels } = spec;
  const quads = padded(channels) / 4, length = positions * quads;
  const bindings: Binding[] = [
    { name: "x", access: "read" },
    { name: "range", access: "read_write" },
  ];
  const code = /* wgsl */ `${declareBindings(bindings, { range: "f32" })}
@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let row = id.x;
  if (row >= ${padded(rows)}u) { return; }
  var low = vec4f(0.0);
  var high = vec4f(0.0);
  if (row < ${rows}u) {
    low = vec4f(-3.4028234e38);
    high = low;
    for (var i = 0u; i < ${length}u; i++) {
      let value = x[row * ${length}u + i];
      let real = ${laneIndices("i", quads)} < vec4u(${channels}u);
      low = max(low, select(low, -value, real));
      high = max(high, select(high, value, real));
    }
  }
  range[row] = -max(max(low.x, low.y), max(low.z, low.w));
  range[row + ${padded(rows)}u] = max(max(high.x, high.y), max(high.z, high.w));
}
`;
  const label = `range_per_row ${rows}x${positions}x${channels}`;
  return { label, code, bindings, grid: grid1d(padded(rows), 8) };
}

/** Partial maxima of -x and of x over the rows of each chunk: partials [chunks][2][columns]. */
function extremes(label: string, spec: ObserverSpec, plan: ChunkPlan, columns: number): Kernel {
  const { channels } = spec;
  const quads = padded(channels) / 4;
  const bindings: Binding[] = [
    { name: "x", access: "read" },
    { name: "partials", access: "read_write" },
  ];
  const code = /* wgsl */ `${declareBindings(bindings)}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let id = ${flatIndex(64)};
  if (id >= ${plan.chunks * columns}u) { return; }
  let column = id % ${columns}u;
  let chunk = id / ${columns}u;
  var low = vec4f(-3.4028234e38);
  var high = low;
  ${
    forEachRow(
      plan,
      `let i = row * ${columns}u + column;
    let value = x[i];
    ${
        channels % 4 === 0
          ? `low = max(low, -value);
    high = max(high, value);`
          : `let real = ${laneIndices("i", quads)} < vec4u(${channels}u);
    low = max(low, select(low, -value, real));
    high = max(high, select(high, value, real));`
      }`,
    )
  }
  partials[chunk * ${2 * columns}u + column] = low;
  partials[chunk * ${2 * columns}u + ${columns}u + column] = high;
}
`;
  return { label, code, bindings, grid: grid1d(plan.chunks * columns, 64) };
}

/** Channel of each lane of vec4 `i`. */
function laneIndices(i: string, quads: number): string {
  return `((${i} % ${quads}u) * 4u + vec4u(0u, 1u, 2u, 3u))`;
}
