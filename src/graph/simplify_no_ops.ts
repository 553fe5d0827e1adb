// Removes nodes that give back their input: Identity, inference Dropout, and reshapes and pads that change nothing.
import { padArguments } from "./arguments.ts";
import { numbersAttribute } from "./attributes.ts";
import type { Graph, Node } from "./graph.ts";
import { finishEdit, renameInputs, startEdit } from "./rewrite.ts";
import { inferShapes } from "./shape_inference.ts";
import { sampleBatch } from "./simplify_constants.ts";
import { consumers, outputNames } from "./topology.ts";

/**
 * Removes nodes that compute nothing. A graph output that such a node makes is then made by the node before; where that
 * is impossible (it is a graph input, say) an Identity stays.
 *
 * @param graph the network
 * @returns the new network
 */
export function removeNoOps(graph: Graph): Graph {
  const shapes = inferShapes(graph, sampleBatch(graph));
  const readers = consumers(graph);
  const outputs = outputNames(graph);
  const inner = new Set(graph.nodes.flatMap((node) => node.outputs));
  const edit = startEdit(graph);
  edit.nodes = [];
  // Tensors read under another name: no-op output -> its input.
  const aliases = new Map<string, string>();
  // Tensors made under another name: input of a no-op -> the graph output it makes.
  const promoted = new Map<string, string>();
  for (const original of graph.nodes) {
    const node = renameInputs(original, aliases);
    const [input, output] = [node.inputs[0] ?? "", node.outputs[0] ?? ""];
    const unreadMask = node.outputs.slice(1).every((name) => !readers.has(name));
    if (!unreadMask || !isNoOp(original, shapes, graph)) {
      edit.nodes.push(node);
    } else if (!outputs.has(output)) {
      aliases.set(output, input);
    } else if (inner.has(input) && !outputs.has(input) && !promoted.has(input)) {
      promoted.set(input, output);
    } else {
      const identity = { name: node.name, opType: "Identity", attributes: {} };
      edit.nodes.push({ ...identity, inputs: [input], outputs: [output] });
    }
  }
  edit.nodes = edit.nodes.map((node) => {
    const renamed = renameInputs(node, promoted);
    if (!node.outputs.some((name) => promoted.has(name))) return renamed;
    return { ...renamed, outputs: node.outputs.map((name) => promoted.get(name) ?? name) };
  });
  return finishEdit(graph, edit);
}

function isNoOp(
  node: Node,
  shapes: ReadonlyMap<string, readonly number[]>,
  graph: Graph,
): boolean {
  const from = shapes.get(node.inputs[0] ?? ""), to = shapes.get(node.outputs[0] ?? "");
  switch (node.opType) {
    case "Identity":
    case "Dropout":
      return true;
    case "Flatten":
    case "Reshape":
      return from?.join() === to?.join();
    case "Transpose":
      return numbersAttribute(node, "perm")?.every((axis, i) => axis === i) ?? from!.length < 2;
    case "Concat":
      return node.inputs.length === 1;
    case "Pad": {
      const { pads } = padArguments(node, from!.length, (name) => graph.initializers.get(name));
      return pads.every((pad) => pad === 0);
    }
    default:
      return false;
  }
}
