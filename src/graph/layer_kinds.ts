// Which operators are layers: those with weights.
import type { Node } from "./graph.ts";

/** Operators of layers. */
export const LAYER_OPERATORS: ReadonlySet<string> = new Set(["Conv", "Gemm", "LSTM"]);

/** Whether a node is a layer with weights. */
export function isLayer(node: Node): boolean {
  return LAYER_OPERATORS.has(node.opType);
}

/** Whether a layer is one product of its input and its weight, linear but for its bias. */
export function isLinear(node: Node): boolean {
  return node.opType === "Conv" || node.opType === "Gemm";
}
