// The arguments that ONNX moved from attributes to inputs over the years (Slice-10, Pad-11, Clip-11, ReduceMean-18,
// Squeeze-13, Unsqueeze-13): read from whichever place the node has them in, with defaults resolved.
import { UnsupportedError } from "../core/errors.ts";
import { type NdArray, sizeOf } from "../core/nd_array.ts";
import { normalizeAxis, numberAttribute, numbersAttribute, stringAttribute } from "./attributes.ts";
import type { Node } from "./graph.ts";

/** Finds a constant by tensor name; undefined when the tensor depends on the graph's inputs. */
export type ConstantLookup = (name: string) => NdArray | undefined;

/** One sliced axis with `start`, `end` clamped to the axis; `end` is -1 when a negative step runs through 0. */
export interface SliceRange {
  /** The sliced axis, non-negative. */
  readonly axis: number;
  /** First position. */
  readonly start: number;
  /** Position after the last, in the direction of the step. */
  readonly end: number;
  /** Distance of two positions; never 0. */
  readonly step: number;
  /** Number of elements taken. */
  readonly count: number;
}

/** Arguments of Pad for all axes. */
export interface PadArguments {
  /** All begins, then all ends; a negative entry crops. */
  readonly pads: readonly number[];
  /** `constant`, `reflect`, `edge` or `wrap`. */
  readonly mode: string;
  /** What is filled in, in mode `constant`. */
  readonly value: number;
}

/** Arguments of ReduceMean. */
export interface ReduceArguments {
  /** Sorted, non-negative. */
  readonly axes: readonly number[];
  /** Whether reduced axes stay with size 1. */
  readonly keepDims: boolean;
}

/**
 * The elements of an array as numbers.
 *
 * @param array any array; 64-bit integers beyond 2^53 are rounded
 * @returns a copy
 */
export function numbersOf(array: NdArray): number[] {
  return Array.from(array.data as ArrayLike<number | bigint>, Number);
}

/**
 * The numbers of a constant input.
 *
 * @param node the node
 * @param index which input
 * @param constant finds constants
 * @returns undefined when the input is absent
 * @throws UnsupportedError when the input is not a constant
 */
export function constantInput(
  node: Node,
  index: number,
  constant: ConstantLookup,
): number[] | undefined {
  const name = node.inputs[index];
  if (name === undefined || name === "") return undefined;
  const value = constant(name);
  if (value === undefined) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      `input "${name}" must be a constant, but it depends on the graph's inputs`,
    );
  }
  return numbersOf(value);
}

/**
 * Arguments of Slice.
 *
 * @param node the Slice
 * @param shape shape of its input
 * @param constant finds constants
 * @returns one range for each sliced axis
 * @throws RangeError when the arguments contradict each other or the shape
 */
export function sliceArguments(
  node: Node,
  shape: readonly number[],
  constant: ConstantLookup,
): SliceRange[] {
  const starts = constantInput(node, 1, constant) ?? numbersAttribute(node, "starts") ?? [];
  const ends = constantInput(node, 2, constant) ?? numbersAttribute(node, "ends") ?? [];
  const axes = constantInput(node, 3, constant) ?? numbersAttribute(node, "axes") ??
    starts.map((_, i) => i);
  const steps = constantInput(node, 4, constant) ?? numbersAttribute(node, "steps") ??
    starts.map(() => 1);
  if (new Set([starts.length, ends.length, axes.length, steps.length]).size !== 1) {
    throw conflict(node, "starts, ends, axes and steps differ in length");
  }
  return starts.map((start, i) => {
    const axis = normalizeAxis(node, axes[i]!, shape.length);
    return sliceRange(node, axis, shape[axis]!, start, ends[i]!, steps[i]!);
  });
}

/**
 * Arguments of Pad, spread over all axes.
 *
 * @param node the Pad
 * @param rank rank of its input
 * @param constant finds constants
 * @returns pads, mode and value
 * @throws RangeError when there is not a begin and an end for each axis
 */
export function padArguments(node: Node, rank: number, constant: ConstantLookup): PadArguments {
  const given = constantInput(node, 1, constant) ?? numbersAttribute(node, "pads") ??
    numbersAttribute(node, "paddings") ?? [];
  const axes = (constantInput(node, 3, constant) ?? Array.from({ length: rank }, (_, i) => i))
    .map((axis) => normalizeAxis(node, axis, rank));
  if (given.length !== 2 * axes.length) {
    throw conflict(node, `pads has ${given.length} entries, expected ${2 * axes.length}`);
  }
  const pads = new Array<number>(2 * rank).fill(0);
  axes.forEach((axis, i) => {
    pads[axis] = given[i]!;
    pads[axis + rank] = given[i + axes.length]!;
  });
  return {
    pads,
    mode: stringAttribute(node, "mode", "constant"),
    value: constantInput(node, 2, constant)?.[0] ?? numberAttribute(node, "value", 0),
  };
}

/**
 * Arguments of ReduceMean.
 *
 * @param node the ReduceMean
 * @param rank rank of its input
 * @param constant finds constants
 * @returns axes and whether they stay as size 1
 */
export function reduceArguments(
  node: Node,
  rank: number,
  constant: ConstantLookup,
): ReduceArguments {
  const given = constantInput(node, 1, constant) ?? numbersAttribute(node, "axes") ?? [];
  const nothing = numberAttribute(node, "noop_with_empty_axes", 0) !== 0;
  const all = given.length === 0 && !nothing;
  const axes = all
    ? Array.from({ length: rank }, (_, i) => i)
    : given.map((axis) => normalizeAxis(node, axis, rank));
  return {
    axes: [...new Set(axes)].sort((a, b) => a - b),
    keepDims: numberAttribute(node, "keepdims", 1) !== 0,
  };
}

/**
 * Bounds of Clip.
 *
 * @param node the Clip
 * @param constant finds constants
 * @returns the bounds, infinite where absent
 */
export function clipArguments(
  node: Node,
  constant: ConstantLookup,
): { readonly min: number; readonly max: number } {
  return {
    min: constantInput(node, 1, constant)?.[0] ?? numberAttribute(node, "min", -Infinity),
    max: constantInput(node, 2, constant)?.[0] ?? numberAttribute(node, "max", Infinity),
  };
}

/**
 * Axes of Squeeze or Unsqueeze.
 *
 * @param node the node
 * @param constant finds constants
 * @returns the axes as the node gives them, or undefined when absent
 */
export function axesArgument(
  node: Node,
  constant: ConstantLookup,
): readonly number[] | undefined {
  return constantInput(node, 1, constant) ?? numbersAttribute(node, "axes");
}

/**
 * Shape that a Reshape makes.
 *
 * @param node the Reshape
 * @param from shape of its input
 * @param target the wanted shape; 0 copies a size (unless allowzero), one -1 takes what is left
 * @returns the new shape
 * @throws RangeError when the sizes do not multiply to the same number
 */
export function reshapedShape(
  node: Node,
  from: readonly number[],
  target: readonly number[],
): number[] {
  const allowZero = numberAttribute(node, "allowzero", 0) !== 0;
  const shape = target.map((size, axis) => size === 0 && !allowZero ? from[axis] ?? 0 : size);
  const free = shape.indexOf(-1);
  if (free >= 0) shape[free] = sizeOf(from) / sizeOf(shape.with(free, 1));
  if (
    shape.some((size) => !Number.isInteger(size) || size < 0) || sizeOf(shape) !== sizeOf(from)
  ) {
    throw conflict(node, `cannot reshape [${from.join(", ")}] to [${target.join(", ")}]`);
  }
  return shape;
}

/**
 * Shape that two shapes broadcast to (NumPy's rule).
 *
 * @param a one shape
 * @param b the other
 * @returns the common shape, or undefined when there is none
 */
export function broadcastShapes(
  a: readonly number[],
  b: readonly number[],
): number[] | undefined {
  const rank = Math.max(a.length, b.length);
  const result: number[] = [];
  for (let axis = 0; axis < rank; axis++) {
    const x = a[axis - rank + a.length] ?? 1, y = b[axis - rank + b.length] ?? 1;
    if (x !== y && x !== 1 && y !== 1) return undefined;
    result.push(x === 1 ? y : x);
  }
  return result;
}

function sliceRange(
  node: Node,
  axis: number,
  size: number,
  start: number,
  end: number,
  step: number,
): SliceRange {
  if (!Number.isInteger(step) || step === 0) throw conflict(node, `a step is ${step}`);
  const absolute = (position: number) => position < 0 ? position + size : position;
  const clamp = (position: number, low: number, high: number) =>
    Math.min(Math.max(position, low), high);
  const first = step > 0 ? clamp(absolute(start), 0, size) : clamp(absolute(start), 0, size - 1);
  const last = step > 0 ? clamp(absolute(end), 0, size) : clamp(absolute(end), -1, size - 1);
  const count = Math.max(0, Math.ceil((last - first) / step));
  return { axis, start: first, end: last, step, count };
}

function conflict(node: Node, detail: string): RangeError {
  return new RangeError(`node "${node.name}" (${node.opType}): ${detail}`);
}
