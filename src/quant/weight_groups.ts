// Weights that share a scale with some of their neighbours only: blocks of input channels, as the blocked quantization of
// ONNX (DequantizeLinear, opset 21) cuts axis 1 of a weight [O, I, KH, KW] or [O, I]. A group becomes a row of its own,
// filled up with zeros, which every grid holds: whatever works on rows with one scale each works on groups.
import { type NdArray, ndArray, sizeOf, TYPED_ARRAYS, type TypedArrays } from "../core/nd_array.ts";
import { scaleIndices, scaleShape } from "../graph/quantized_graph.ts";
import { toChannelsLastLayout, type WeightLayout } from "../graph/weight_layout.ts";

/** Axis of the input channels in the file's layout. */
export const GROUPED_AXIS = 1;

/** How a weight is cut into groups. */
export interface WeightGroups {
  /** Input channels of a group; the last one of a row may have fewer. */
  readonly size: number;
  /** How many groups there are. */
  readonly count: number;
  /** Group of each weight, channels last; groups are numbered in the order of the file's scales. */
  readonly index: Int32Array<ArrayBuffer>;
}

/**
 * Cuts a weight into groups.
 *
 * @param layout of the weight
 * @param size input channels of a group
 * @returns the groups; undefined where a layer has no more input channels than one group, so that one scale a channel
 * costs less and blocks would only tell kernel positions apart
 */
export function weightGroups(layout: WeightLayout, size: number): WeightGroups | undefined {
  const shape = layout.originalShape;
  if (shape[GROUPED_AXIS]! <= size) return undefined;
  const blocks = { axis: GROUPED_AXIS, blockSize: size };
  const count = sizeOf(scaleShape(shape, blocks));
  const inFile = ndArray("int32", shape, scaleIndices(shape, blocks));
  return { size, count, index: toChannelsLastLayout(inFile, layout).data };
}

/**
 * Groups as rows.
 *
 * @param values of the weights, channels last
 * @param groups of the weights
 * @returns [groups, size], zeros behind groups that are smaller
 */
export function groupRows<T extends RowType>(
  values: NdArray<T>,
  groups: WeightGroups,
): NdArray<T> {
  const shape = [groups.count, groups.size];
  const data = new TYPED_ARRAYS[values.dtype](sizeOf(shape)) as TypedArrays[T];
  forEachPlace(groups, (at, i) => data[at] = values.data[i]!);
  return ndArray(values.dtype, shape, data);
}

/**
 * Rows back as weights: the inverse of {@linkcode groupRows}.
 *
 * @param rows [groups, size]
 * @param shape of the weight, channels last
 * @param groups of the weights
 * @returns the weights
 */
export function ungroupRows<T extends RowType>(
  rows: NdArray<T>,
  shape: readonly number[],
  groups: WeightGroups,
): NdArray<T> {
  const data = new TYPED_ARRAYS[rows.dtype](sizeOf(shape)) as TypedArrays[T];
  forEachPlace(groups, (at, i) => data[i] = rows.data[at]!);
  return ndArray(rows.dtype, shape, data);
}

/** What is kept of a weight. */
type RowType = "float32" | "float64" | "int8";

function forEachPlace(
  { size, count, index }: WeightGroups,
  see: (at: number, weight: number) => void,
): void {
  const filled = new Uint32Array(count);
  index.forEach((group, i) => see(group * size + filled[group]!++, i));
}
