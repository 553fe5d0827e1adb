// Padding in one form: explicit pads on the convolution or pooling node itself.
import { numberAttribute, numbersAttribute, stringAttribute } from "./attributes.ts";
import { padArguments } from "./arguments.ts";
import type { Graph, Node } from "./graph.ts";
import { finishEdit, startEdit } from "./rewrite.ts";
import { inferShapes } from "./shape_inference.ts";
import { sampleBatch } from "./simplify_constants.ts";
import { consumers, outputNames } from "./topology.ts";
import { windowOf } from "./window.ts";

/**
 * Replaces auto_pad by the pads it stands for.
 *
 * @param graph the network
 * @returns the new network
 */
export function makePadsExplicit(graph: Graph): Graph {
  const shapes = inferShapes(graph, sampleBatch(graph));
  const nodes = graph.nodes.map((node) => {
    if (!["Conv", "MaxPool", "AveragePool"].includes(node.opType)) return node;
    if (stringAttribute(node, "auto_pad", "NOTSET") === "NOTSET") return node;
    const kernel = node.opType === "Conv" ? shapes.get(node.inputs[1]!)!.slice(2) : undefined;
    const { pads } = windowOf(node, shapes.get(node.inputs[0]!)!.slice(2), kernel);
    const { auto_pad: _, ...attributes } = node.attributes;
    return { ...node, attributes: { ...attributes, pads } };
  });
  return { ...graph, nodes };
}

/**
 * Moves a spatial Pad with zeros into the convolutions that read it. It stays where anything else reads it.
 *
 * @param graph the network, with explicit pads
 * @returns the new network
 */
export function mergePads(graph: Graph): Graph {
  const shapes = inferShapes(graph, sampleBatch(graph));
  const readers = consumers(graph);
  const outputs = outputNames(graph);
  const edit = startEdit(graph);
  // Output of a merged Pad -> what it read and added.
  const merged = new Map<string, { input: string; pads: readonly number[] }>();
  edit.nodes = graph.nodes.map((node) => {
    const output = node.outputs[0]!;
    if (node.opType === "Pad" && !outputs.has(output)) {
      const pads = spatialZeroPads(node, shapes.get(node.inputs[0]!)!.length, graph);
      const convolutions = (readers.get(output) ?? []).every((reader) =>
        reader.opType === "Conv" && reader.inputs.filter((name) => name === output).length === 1 &&
        reader.inputs[0] === output
      );
      if (pads !== undefined && convolutions) merged.set(output, { input: node.inputs[0]!, pads });
    }
    const pad = node.opType === "Conv" ? merged.get(node.inputs[0]!) : undefined;
    if (pad === undefined) return node;
    const own = numbersAttribute(node, "pads");
    const pads = pad.pads.map((size, i) => size + (own?.[i] ?? 0));
    const inputs = node.inputs.with(0, pad.input);
    return { ...node, inputs, attributes: { ...node.attributes, pads } };
  });
  return finishEdit(graph, edit);
}

// Pads of the spatial axes, or undefined when the Pad does anything but add zeros around images.
function spatialZeroPads(node: Node, rank: number, graph: Graph): number[] | undefined {
  const { pads, mode, value } = padArguments(node, rank, (name) => graph.initializers.get(name));
  const others = [pads[0], pads[1], pads[rank], pads[rank + 1]];
  if (mode !== "constant" || value !== 0 || others.some((pad) => pad !== 0)) return undefined;
  if (pads.some((pad) => pad < 0) || numberAttribute(node, "value", 0) !== 0) return undefined;
  return [...pads.slice(2, rank), ...pads.slice(rank + 2)];
}
