// What a network costs: multiply-accumulates and weights of its layers, in either layout.
import { sizeOf } from "../core/nd_array.ts";
import type { Graph, Node } from "./graph.ts";
import { isLayer } from "./layer_kinds.ts";

/**
 * Counts the multiply-accumulates of every layer and MatMul.
 *
 * @param graph the network
 * @param shapes its shapes; the counts are for their batch size
 * @returns count by node name
 */
export function countMacs(
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
): Map<string, number> {
  const macs = new Map<string, number>();
  for (const node of graph.nodes) {
    const outputs = sizeOf(shapes.get(node.outputs[0]!) ?? []);
    if (isLayer(node)) macs.set(node.name, outputs * weightsPerOutput(node, shapes));
    else if (node.opType === "MatMul") {
      macs.set(node.name, outputs * shapes.get(node.inputs[0]!)!.at(-1)!);
    }
  }
  return macs;
}

/**
 * Counts the weights of every layer, biases not included.
 *
 * @param graph the network
 * @returns count by node name
 */
export function countWeights(graph: Graph): Map<string, number> {
  const weights = new Map<string, number>();
  for (const node of graph.nodes) {
    const weight = graph.initializers.get(node.inputs[1] ?? "");
    if (isLayer(node) && weight !== undefined) weights.set(node.name, sizeOf(weight.shape));
  }
  return weights;
}

// Each output element of a Gemm sums over its row, that of a Conv over the weights of its channel, that of an LSTM over
// the rows of four gates.
function weightsPerOutput(node: Node, shapes: ReadonlyMap<string, readonly number[]>): number {
  if (node.opType === "Gemm") return shapes.get(node.inputs[0]!)!.at(-1)!;
  const weight = shapes.get(node.inputs[1]!)!;
  if (node.opType === "LSTM") return 4 * weight[1]!;
  // Output channels come first, except in channels-last depthwise weights [KH, KW, C].
  const depthwise = weight.length === 3 && shapes.get(node.inputs[0]!)!.length === 4;
  return sizeOf(weight) / (depthwise ? weight[2]! : weight[0]!);
}
