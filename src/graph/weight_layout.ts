// How a weight of the ONNX file becomes the weight the GPU reads: reshape, then permute. Both directions, exact.
import { type DType, type NdArray, ndArray, sizeOf, transpose } from "../core/nd_array.ts";

/** One weight's way from the file's layout to channels last. */
export interface WeightLayout {
  /** Shape of the initializer in the channels-first graph. */
  readonly originalShape: readonly number[];
  /** The same elements in the shape that is permuted. */
  readonly reshaped: readonly number[];
  /** `finalShape[i] = reshaped[permutation[i]]`. */
  readonly permutation: readonly number[];
  /** Shape in the channels-last graph. */
  readonly finalShape: readonly number[];
  /** Axis of `finalShape` that the output channels run along: 0, or 2 for depthwise. */
  readonly channelAxis: number;
}

/**
 * Layout of a convolution weight: [O, I/group, KH, KW] becomes [O, KH, KW, I/group], and depthwise [C, 1, KH, KW]
 * becomes [KH, KW, C].
 *
 * @param shape shape of the ONNX weight
 * @param group the convolution's group
 * @returns the layout
 */
export function convLayout(shape: readonly number[], group: number): WeightLayout {
  const [outputs, inputs, height, width] = shape;
  if (group > 1 && inputs === 1 && outputs === group) {
    return makeLayout(shape, [outputs, height!, width!], [1, 2, 0], 2);
  }
  return makeLayout(shape, shape, [0, 2, 3, 1], 0);
}

/**
 * Layout of a linear weight [O, I], which stays as it is.
 *
 * @param shape shape of the ONNX weight
 * @returns the layout
 */
export function linearLayout(shape: readonly number[]): WeightLayout {
  return makeLayout(shape, shape, [0, 1], 0);
}

/**
 * Layout of a linear weight [O, C*H*W] that reads a flattened image: it becomes the convolution weight [O, H, W, C].
 *
 * @param shape shape of the ONNX weight
 * @param image [C, H, W]
 * @returns the layout
 */
export function flattenedLayout(shape: readonly number[], image: readonly number[]): WeightLayout {
  return makeLayout(shape, [shape[0]!, ...image], [0, 2, 3, 1], 0);
}

/**
 * Brings a weight of the channels-first graph to channels last.
 *
 * @param array an array of shape `layout.originalShape`
 * @param layout the weight's layout
 * @returns an array of shape `layout.finalShape`
 * @throws RangeError when the array has another shape
 */
export function toChannelsLastLayout<T extends DType>(
  array: NdArray<T>,
  layout: WeightLayout,
): NdArray<T> {
  checkShape(array, layout.originalShape);
  return transpose(ndArray(array.dtype, layout.reshaped, array.data), layout.permutation);
}

/**
 * Brings a weight of the channels-last graph back: the exact inverse of {@linkcode toChannelsLastLayout}.
 *
 * @param array an array of shape `layout.finalShape`
 * @param layout the weight's layout
 * @returns an array of shape `layout.originalShape`
 * @throws RangeError when the array has another shape
 */
export function toOriginalLayout<T extends DType>(
  array: NdArray<T>,
  layout: WeightLayout,
): NdArray<T> {
  checkShape(array, layout.finalShape);
  const inverse = layout.permutation.map((_, axis) => layout.permutation.indexOf(axis));
  return ndArray(array.dtype, layout.originalShape, transpose(array, inverse).data);
}

function makeLayout(
  originalShape: readonly number[],
  reshaped: readonly (number | undefined)[],
  permutation: readonly number[],
  channelAxis: number,
): WeightLayout {
  const sizes = reshaped.map((size) => size ?? 1);
  if (sizeOf(sizes) !== sizeOf(originalShape)) {
    throw new RangeError(`Cannot reshape a weight [${originalShape}] to [${sizes}]`);
  }
  const finalShape = permutation.map((axis) => sizes[axis]!);
  return { originalShape, reshaped: sizes, permutation, finalShape, channelAxis };
}

function checkShape(array: NdArray, expected: readonly number[]): void {
  if (array.shape.join() === expected.join()) return;
  throw new RangeError(
    `Cannot change the layout of a weight of shape [${array.shape.join(", ")}]: expected [${
      expected.join(", ")
    }]`,
  );
}
