// Sum, mean, maximum, minimum and dot product, over all elements or over all axes but the last. Two kernels: strided
// chunks of rows, then the chunks; the order is fixed by the shape, so two runs give the same bits.
// Shapes: x: [..., channels]; y: [1] over all elements, [channels] over the leading axes.
// Maximum and minimum skip NaN where the hardware does: look for NaN elsewhere.
import { literal } from "./activation.ts";
import { maskPadding } from "./epilogue.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type Binding, type KernelSequence, padded, range, type Target } from "./kernel.ts";
import { forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** What a reduction computes, and of what. */
export interface ReductionSpec {
  readonly operator: "sum" | "mean" | "max" | "min";
  /** Shape of x. */
  readonly shape: readonly number[];
  /** "all" gives one number, "leading" one for each channel. */
  readonly axes: "all" | "leading";
}

/** A sum of expressions over vec4 rows, for kernels that reduce something they compute. */
export interface SumSpec {
  readonly label: string;
  readonly rows: number;
  /** Length of the last axis. */
  readonly channels: number;
  readonly axes: "all" | "leading";
  /** What the first kernel reads. */
  readonly bindings: readonly Binding[];
  /** A vec4f expression with `i` (vec4 index), `row` and `quad` (vec4 index in the row), zero in padding. */
  readonly value: string;
  /** A factor of the result. */
  readonly factor?: number;
  /** Binding of the result. */
  readonly output: string;
}

const LOWEST = "vec4f(-3.4028234663852886e38)";

// y = sum_i x[i], or mean, max, min
/**
 * Reduction, forward.
 *
 * @param spec what to compute
 * @param target the adapter
 * @returns kernels with bindings x, y
 */
export function reductionForward(spec: ReductionSpec, target: Target): KernelSequence {
  const { operator, shape, axes } = spec;
  const channels = shape.at(-1) ?? 1;
  const rows = leadingSize(shape);
  const label = `reduce_${operator}_forward [${shape.join(", ")}]`;
  if (operator === "sum" || operator === "mean") {
    const count = axes === "all" ? rows * channels : rows;
    const factor = operator === "mean" ? 1 / count : 1;
    const bindings = [read("x")];
    const value = "x[i]";
    return sumRows(
      { label, rows, channels, axes, bindings, value, factor, output: "y" },
      target,
    );
  }
  return extremum(spec, label, rows, channels, target);
}

// sum: dx[i] = dy; mean: dx[i] = dy / count
/**
 * Sum and mean, backward.
 *
 * @param spec of the forward reduction, sum or mean
 * @returns kernels with bindings dy, dx
 * @throws RangeError for max and min, which have no backward kernel
 */
export function reductionBackward(spec: ReductionSpec): KernelSequence {
  const { operator, shape, axes } = spec;
  if (operator === "max" || operator === "min") {
    throw new RangeError(`Cannot differentiate a reduction by ${operator}: expected sum or mean`);
  }
  const channels = shape.at(-1) ?? 1;
  const rows = leadingSize(shape), quads = padded(channels) / 4;
  const count = axes === "all" ? rows * channels : rows;
  const factor = literal(operator === "mean" ? 1 / count : 1);
  const value = axes === "all"
    ? maskPadding("vec4f(dy[0].x)", `(i % ${quads}u)`, channels)
    : `dy[i % ${quads}u]`;
  const kernel = flatKernel({
    label: `reduce_${operator}_backward [${shape.join(", ")}]`,
    size: rows * quads,
    bindings: [read("dy"), write("dx")],
    body: `dx[i] = ${value} * ${factor};`,
  });
  return { kernels: [kernel], temporaries: {} };
}

// y = sum_i a[i] b[i]
/**
 * Dot product of two tensors of one shape.
 *
 * @param shape of a and b
 * @param target the adapter
 * @returns kernels with bindings a, b, y: [1]
 */
export function dot(shape: readonly number[], target: Target): KernelSequence {
  return sumRows({
    label: `dot [${shape.join(", ")}]`,
    rows: leadingSize(shape),
    channels: shape.at(-1) ?? 1,
    axes: "all",
    bindings: [read("a"), read("b")],
    value: "a[i] * b[i]",
    output: "y",
  }, target);
}

/**
 * Sums an expression over rows.
 *
 * @param spec what to sum
 * @param target the adapter
 * @returns kernels with the bindings of the expression and the output
 */
export function sumRows(spec: SumSpec, target: Target): KernelSequence {
  const { label, channels, axes, bindings, value, output, factor = 1 } = spec;
  const scaled = `value0${factor === 1 ? "" : ` * ${literal(factor)}`}`;
  const total = "dot(value0, vec4f(1.0))";
  const finish = axes === "leading"
    ? `${output}[o] = ${scaled};`
    : `${output}[0] = vec4f(${total.replace("value0", scaled)}, 0.0, 0.0, 0.0);`;
  return reduce({
    label,
    rows: spec.rows,
    channels,
    axes,
    bindings,
    value,
    output,
    combine: "sum",
    finish,
  }, target);
}

/** max x, or -max(-x) for the minimum; padding stays out of it. */
function extremum(
  { operator, axes }: ReductionSpec,
  label: string,
  rows: number,
  channels: number,
  target: Target,
): KernelSequence {
  const sign = operator === "max" ? "" : "-";
  const value = withPadding(`${sign}x[i]`, LOWEST, "quad", channels);
  const largest = "max(max(value0.x, value0.y), max(value0.z, value0.w))";
  const finish = axes === "all"
    ? `y[0] = vec4f(${sign}${largest}, 0.0, 0.0, 0.0);`
    : `y[o] = ${withPadding(`${sign}value0`, "vec4f(0.0)", "o", channels)};`;
  const bindings = [read("x")];
  return reduce(
    { label, rows, channels, axes, bindings, value, output: "y", combine: "max", finish },
    target,
  );
}

/** `value` with something else in the padded channels. */
function withPadding(value: string, other: string, quad: string, channels: number): string {
  if (channels % 4 === 0) return value;
  const padding = range(4).map((c) => c >= channels % 4);
  return `select(${value}, ${other}, vec4<bool>(${padding}) & vec4<bool>(${quad} == ${
    channels >> 2
  }u))`;
}

interface ReduceSpec extends Omit<SumSpec, "factor"> {
  readonly combine: "sum" | "max";
  /** Statements that store `value0: vec4f`, reduced, at `o`. */
  readonly finish: string;
}

function reduce(spec: ReduceSpec, target: Target): KernelSequence {
  const { label, channels, axes, bindings, value, output, combine, finish } = spec;
  const quads = padded(channels) / 4;
  // Over everything, a row is one vec4.
  const rows = axes === "all" ? spec.rows * quads : spec.rows;
  const columns = axes === "all" ? 1 : quads;
  const plan = planChunks(rows, columns, target);
  const apply = combine === "sum" ? "sum += value;" : "sum = max(sum, value);";
  const names = axes === "all"
    ? `let i = row; let quad = row % ${quads}u;`
    : `let i = row * ${quads}u + column; let quad = column;`;
  const size = plan.chunks * columns;
  const first = flatKernel({
    label: `${label} chunks`,
    size,
    bindings: [...bindings, write("partials")],
    // `i` of the frame is the invocation; inside a row it is the vec4 that is read.
    body: `let chunk = i / ${columns}u; let column = i % ${columns}u; let slot = i;
  var sum = ${combine === "sum" ? "vec4f(0.0)" : LOWEST};
  ${forEachRow(plan, `${names} let value = ${value}; ${apply}`)}
  partials[slot] = sum;`,
  });
  const second = reductionKernel({
    label,
    bindings: [read("partials"), write(output)],
    chunks: plan.chunks,
    stride: columns,
    offsets: [0],
    size: columns,
    combine,
    finish,
  }, target);
  return { kernels: [first, second], temporaries: { partials: 4 * size } };
}

function leadingSize(shape: readonly number[]): number {
  return range(Math.max(0, shape.length - 1)).reduce((product, axis) => product * shape[axis]!, 1);
}
