// A network as ONNX describes it: named tensors, nodes in topological order, constants. Channels first, as in the file.
import type { DType, NdArray } from "../core/nd_array.ts";

/** An attribute of a node. ONNX integers are numbers here (all used ones are far below 2^53). */
export type Attribute =
  | number
  | string
  | readonly number[]
  | readonly string[]
  | NdArray;

/** One operation. */
export interface Node {
  /** Unique in the graph. */
  readonly name: string;
  /** ONNX operator, e.g. `Conv`. */
  readonly opType: string;
  /** Tensor names; `""` stands for an optional input that is absent. */
  readonly inputs: readonly string[];
  /** Tensor names. */
  readonly outputs: readonly string[];
  /** ONNX attributes by name. */
  readonly attributes: Readonly<Record<string, Attribute>>;
}

/** Name, type and shape of an input or output of the graph; a string is a symbolic size such as the batch `N`. */
export interface ValueInfo {
  /** Tensor name. */
  readonly name: string;
  /** Element type. */
  readonly dtype: DType;
  /** Sizes; a name where the size is open, such as the batch. */
  readonly shape: readonly (number | string)[];
}

/** A network. Passes return a new graph and leave their argument as it is. */
export interface Graph {
  /** Name in the model file, may be empty. */
  readonly name: string;
  /** Opset version of the default ONNX domain. */
  readonly opset: number;
  /** What a caller hands in; initializers are not among them. */
  readonly inputs: readonly ValueInfo[];
  /** What the graph gives. */
  readonly outputs: readonly ValueInfo[];
  /** In topological order. */
  readonly nodes: readonly Node[];
  /** Constants by tensor name. */
  readonly initializers: ReadonlyMap<string, NdArray>;
}
