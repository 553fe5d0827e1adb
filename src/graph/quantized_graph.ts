// A frozen student: the graph with batch norm folded, integer weights and biases by initializer name, and quantizers
// by activation name. It is exactly what is exported; evaluating it in float32 is the simulation of the int8 network.
import type { NdArray } from "../core/nd_array.ts";
import type { Graph } from "./graph.ts";

/** An integer tensor with its scales: value = scale * (code - zeroPoint). */
export interface QTensor {
  /** Codes, in the layout of the ONNX initializer. int8 whatever the bit width; int32 for biases. */
  readonly values: NdArray<"int8"> | NdArray<"int32">;
  /** [channels along axis], [1], or one a block. */
  readonly scale: Float32Array<ArrayBuffer>;
  /** Same length as `scale`; 0 for weights and biases. */
  readonly zeroPoint: Int32Array<ArrayBuffer>;
  /** Axis of `values` that `scale` runs along; -1 for one scale in all. */
  readonly axis: number;
  /**
   * Neighbours along `axis` that share a scale, the last ones of a line maybe fewer: `scale` then has the shape of
   * `values` but for that axis (ONNX blocked quantization). Without it all other axes share the scale.
   */
  readonly blockSize?: number;
  /** Bits of the grid the codes come from, 2..8 (32 for biases). */
  readonly bits: number;
}

/** Which elements of a tensor share a scale. */
export type ScaleBlocks = Pick<QTensor, "axis" | "blockSize">;

/**
 * Shape of the scales of a tensor, as ONNX wants it.
 *
 * @param shape of the codes
 * @param blocks which of them share a scale
 * @returns [] for one scale in all, [channels], or the codes' shape with blocks along the axis
 */
export function scaleShape(shape: readonly number[], { axis, blockSize }: ScaleBlocks): number[] {
  if (axis < 0) return [];
  if (blockSize === undefined) return [shape[axis]!];
  return shape.map((size, i) => i === axis ? Math.ceil(size / blockSize) : size);
}

/**
 * Which scale each element of a tensor has.
 *
 * @param shape of the codes
 * @param blocks which of them share a scale
 * @returns an index into the scales for each code
 */
export function scaleIndices(
  shape: readonly number[],
  { axis, blockSize }: ScaleBlocks,
): Int32Array<ArrayBuffer> {
  const indices = new Int32Array(shape.reduce((product, size) => product * size, 1));
  if (axis < 0) return indices;
  const size = shape[axis]!;
  const inner = shape.slice(axis + 1).reduce((product, n) => product * n, 1);
  const blocks = blockSize === undefined ? 0 : Math.ceil(size / blockSize);
  return indices.map((_, i) => {
    const line = Math.floor(i / inner), at = line % size;
    if (blockSize === undefined) return at;
    const block = Math.floor(line / size) * blocks + Math.floor(at / blockSize);
    return block * inner + i % inner;
  });
}

/**
 * Quantizer of an activation: code = clip(round(x / scale) + zeroPoint, quantMin, quantMax), or with thresholds quantMin
 * plus the number of them that x reaches. Its value is scale * (code - zeroPoint).
 */
export interface ActivationQParams {
  /** Step between two codes, above 0. */
  readonly scale: number;
  /** Code that stands for 0. */
  readonly zeroPoint: number;
  /** Stored as uint8 when quantMin >= 0, as int8 otherwise. */
  readonly quantMin: number;
  /** Largest code. */
  readonly quantMax: number;
  /** Width of the grid, 2..8. */
  readonly bits: number;
  /** [quantMax - quantMin], rising; absent where x is rounded. */
  readonly thresholds?: Float32Array<ArrayBuffer>;
}

/**
 * Whether numbers can be the thresholds of an activation.
 *
 * @param thresholds the numbers
 * @param count steps between its codes
 * @returns true for so many finite numbers that do not fall
 */
export function areThresholds(thresholds: Float32Array, count: number): boolean {
  return thresholds.length === count &&
    thresholds.every((value, i) =>
      Number.isFinite(value) && (i === 0 || value >= thresholds[i - 1]!)
    );
}

/** A frozen student. */
export interface QuantizedGraph {
  /** Channels first, batch norm folded; its initializers hold the dequantized float32 values. */
  readonly graph: Graph;
  /** Integer weights by initializer name. */
  readonly weights: ReadonlyMap<string, QTensor>;
  /**
   * Integer biases by initializer name: scale = input scale * weight scale, zero point 0. Biases of layers whose input
   * stays float, or whose weights have scales of blocks, are float too and not here.
   */
  readonly biases: ReadonlyMap<string, QTensor>;
  /** Quantizers by tensor name (graph inputs and node outputs). */
  readonly activations: ReadonlyMap<string, ActivationQParams>;
  /**
   * Names of the nodes with quantized weights that quantize their input with the range it has at run time, to uint8 as
   * ONNX DynamicQuantizeLinear does, each input of a batch by itself. Other readers see the tensor as it is. Default none.
   */
  readonly dynamicLayers?: ReadonlySet<string>;
}
