// A frozen student: the graph with batch norm folded, integer weights and biases by initializer name, and quantizers
// by activation name. It is exactly what is exported; evaluating it in float32 is the simulation of the int8 network.
import type { NdArray } from "../core/nd_array.ts";
import type { Graph } from "./graph.ts";

/** An integer tensor with its scales: value = scale * (code - zeroPoint). */
export interface QTensor {
  /** Codes, in the layout of the ONNX initializer. int8 whatever the bit width; int32 for biases. */
  readonly values: NdArray<"int8"> | NdArray<"int32">;
  /** [channels along axis] or [1]. */
  readonly scale: Float32Array<ArrayBuffer>;
  /** Same length as `scale`; 0 for weights and biases. */
  readonly zeroPoint: Int32Array<ArrayBuffer>;
  /** Axis of `values` that `scale` runs along; -1 for one scale in all. */
  readonly axis: number;
  /** Bits of the grid the codes come from, 2..8 (32 for biases). */
  readonly bits: number;
}

/** Quantizer of an activation: code = clip(round(x / scale) + zeroPoint, quantMin, quantMax). */
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
}

/** A frozen student. */
export interface QuantizedGraph {
  /** Channels first, batch norm folded; its initializers hold the dequantized float32 values. */
  readonly graph: Graph;
  /** Integer weights by initializer name. */
  readonly weights: ReadonlyMap<string, QTensor>;
  /** Integer biases by initializer name: scale = input scale * weight scale, zero point 0. */
  readonly biases: ReadonlyMap<string, QTensor>;
  /** Quantizers by tensor name (graph inputs and node outputs). */
  readonly activations: ReadonlyMap<string, ActivationQParams>;
}
