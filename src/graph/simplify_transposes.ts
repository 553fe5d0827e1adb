// Transposes that meet, Gather of one position and ReduceMean behind a Transpose: what is left when an LSTM has its samples
// first.
import { ndArray } from "../core/nd_array.ts";
import { numbersOf, reduceArguments } from "./arguments.ts";
import { normalizeAxis, numberAttribute, numbersAttribute } from "./attributes.ts";
import type { Graph, Node } from "./graph.ts";
import { finishEdit, startEdit, uniqueName } from "./rewrite.ts";
import { inferShapes } from "./shape_inference.ts";
import { sampleBatch } from "./simplify_constants.ts";
import { producers } from "./topology.ts";

/**
 * Makes one Transpose of two behind one another.
 *
 * @param graph the network
 * @returns the new network, where a Transpose may be one that changes nothing; the graph itself without such a pair
 */
export function mergeTransposes(graph: Graph): Graph {
  if (!graph.nodes.some(({ opType }) => opType === "Transpose")) return graph;
  const shapes = inferShapes(graph, sampleBatch(graph));
  const edit = startEdit(graph);
  const makers = producers(graph);
  let found = false;
  for (const [i, node] of graph.nodes.entries()) {
    const before = makers.get(node.inputs[0] ?? "");
    if (node.opType !== "Transpose" || before?.opType !== "Transpose") continue;
    const [first, second] = [before, node].map((n) => permutationOf(n, shapes));
    const merged = {
      ...node,
      inputs: [before.inputs[0]!],
      attributes: { perm: second!.map((axis) => first![axis]!) },
    };
    edit.nodes[i] = merged;
    makers.set(node.outputs[0]!, merged);
    found = true;
  }
  return found ? finishEdit(graph, edit) : graph;
}

/**
 * Turns Gather of one position along an axis into Slice and Squeeze; of a transposed tensor, where the axes that are left
 * keep their order, along the axis from before.
 *
 * @param graph the network, its constants folded
 * @returns the new network
 */
export function gatherToSlice(graph: Graph): Graph {
  const isSingle = ({ opType, inputs }: Node) =>
    opType === "Gather" && graph.initializers.get(inputs[1] ?? "")?.shape.length === 0;
  if (!graph.nodes.some(isSingle)) return graph;
  const shapes = inferShapes(graph, sampleBatch(graph));
  const makers = producers(graph);
  const edit = startEdit(graph);
  const integers = (wish: string, value: number) => {
    const name = uniqueName(graph, edit, wish);
    edit.initializers.set(name, ndArray("int64", [1], BigInt64Array.of(BigInt(value))));
    return name;
  };
  edit.nodes = graph.nodes.flatMap((node) => {
    if (!isSingle(node)) return [node];
    const given = node.inputs[0]!;
    const at = normalizeAxis(node, numberAttribute(node, "axis", 0), shapes.get(given)!.length);
    const size = shapes.get(given)![at]!;
    const { x, axes: [axis = at] } = beforeTranspose(given, [at], makers.get(given), shapes);
    const index = graph.initializers.get(node.inputs[1]!)!;
    const start = normalizeAxis(node, numbersOf(index)[0]!, size);
    const output = node.outputs[0]!;
    const part = uniqueName(graph, edit, `${output}_slice`);
    const later = graph.opset >= 10, latest = graph.opset >= 13;
    const slice: Node = {
      name: uniqueName(graph, edit, `${node.name}_slice`),
      opType: "Slice",
      inputs: later
        ? [
          x,
          integers(`${output}_start`, start),
          integers(`${output}_end`, start + 1),
          integers(`${output}_axis`, axis),
        ]
        : [x],
      outputs: [part],
      attributes: later ? {} : { starts: [start], ends: [start + 1], axes: [axis] },
    };
    const squeeze: Node = {
      ...node,
      opType: "Squeeze",
      inputs: latest ? [part, integers(`${output}_axes`, axis)] : [part],
      attributes: latest ? {} : { axes: [axis] },
    };
    return [slice, squeeze];
  });
  return finishEdit(graph, edit);
}

/**
 * Takes means of a transposed tensor from the tensor before, where the axes that are left keep their order.
 *
 * @param graph the network, its constants folded
 * @returns the new network
 */
export function meansBeforeTransposes(graph: Graph): Graph {
  if (!graph.nodes.some(({ opType }) => opType === "Transpose")) return graph;
  const shapes = inferShapes(graph, sampleBatch(graph));
  const makers = producers(graph);
  const edit = startEdit(graph);
  let found = false;
  for (const [i, node] of graph.nodes.entries()) {
    if (node.opType !== "ReduceMean") continue;
    const given = node.inputs[0]!;
    const { axes, keepDims } = reduceArguments(
      node,
      shapes.get(given)!.length,
      (name) => graph.initializers.get(name),
    );
    const moved = beforeTranspose(given, axes, makers.get(given), shapes);
    if (keepDims || moved.x === given) continue;
    found = true;
    const { axes: _, ...attributes } = node.attributes;
    const inputs = [moved.x];
    // Axes are an input from opset 18 on.
    if (graph.opset >= 18) {
      inputs.push(uniqueName(graph, edit, `${node.outputs[0]}_axes`));
      const data = BigInt64Array.from(moved.axes, BigInt);
      edit.initializers.set(inputs[1]!, ndArray("int64", [data.length], data));
    }
    const own = graph.opset >= 18 ? attributes : { ...attributes, axes: moved.axes };
    edit.nodes[i] = { ...node, inputs, attributes: own };
  }
  return found ? finishEdit(graph, edit) : graph;
}

/** A tensor and axes of it that go away, or, where the others keep their order, both before the Transpose that made it. */
function beforeTranspose(
  x: string,
  axes: readonly number[],
  maker: Node | undefined,
  shapes: ReadonlyMap<string, readonly number[]>,
): { readonly x: string; readonly axes: readonly number[] } {
  if (maker?.opType !== "Transpose") return { x, axes };
  const permutation = permutationOf(maker, shapes);
  const left = permutation.filter((_, i) => !axes.includes(i));
  if (left.some((from, i) => i > 0 && from < left[i - 1]!)) return { x, axes };
  return { x: maker.inputs[0]!, axes: axes.map((axis) => permutation[axis]!) };
}

function permutationOf(
  node: Node,
  shapes: ReadonlyMap<string, readonly number[]>,
): readonly number[] {
  return numbersAttribute(node, "perm") ??
    shapes.get(node.inputs[0]!)!.map((_, axis) => axis).toReversed();
}
