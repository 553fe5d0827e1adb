// Folds the subgraphs that compute shapes. Exporters write x.view(x.size(0), -1) as Shape, Gather, Unsqueeze, Concat and
// Reshape; run at two batch sizes, whatever comes out equal is a constant, and the rest follows the batch.
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { numbersOf } from "./arguments.ts";
import type { Graph, Node } from "./graph.ts";
import { finishEdit, type GraphEdit, startEdit, uniqueName } from "./rewrite.ts";
import { inferShapesAndValues } from "./shape_inference.ts";
import { outputNames } from "./topology.ts";

/** A size that no real batch axis is fixed to needs two samples; a fixed batch needs one. */
const SAMPLE_BATCHES = [2, 3] as const;

/**
 * A batch size at which the graph can be examined: the fixed one, or a small one when it is open.
 *
 * @param graph the network
 * @returns a batch size
 */
export function sampleBatch(graph: Graph): number {
  return fixedBatch(graph) ?? SAMPLE_BATCHES[0];
}

/**
 * Turns constant subgraphs into initializers, and reshapes into forms that do not depend on the batch.
 *
 * @param graph the network
 * @returns the new network
 */
export function foldConstants(graph: Graph): Graph {
  const fixed = fixedBatch(graph);
  const first = inferShapesAndValues(graph, fixed ?? SAMPLE_BATCHES[0]);
  const second = fixed === undefined ? inferShapesAndValues(graph, SAMPLE_BATCHES[1]) : first;
  const edit = startEdit(graph);
  const outputs = outputNames(graph);
  edit.nodes = [];
  for (const node of graph.nodes) {
    const name = node.outputs[0] ?? "";
    const value = first.values.get(name);
    if (value !== undefined && equalValues(value, second.values.get(name)) && !outputs.has(name)) {
      edit.initializers.set(name, value);
    } else if (node.opType === "Reshape" || node.opType === "Squeeze") {
      const shapes = [first.shapes, second.shapes].map((of) => ({
        from: of.get(node.inputs[0]!)!,
        to: of.get(name)!,
      }));
      edit.nodes.push(independentOfBatch(graph, edit, node, shapes));
    } else {
      edit.nodes.push(node);
    }
  }
  return finishEdit(graph, edit);
}

function fixedBatch(graph: Graph): number | undefined {
  const size = graph.inputs[0]?.shape[0];
  return typeof size === "number" && size > 0 ? size : undefined;
}

// `shapes`: what the node maps from and to, at each of the sampled batches.
function independentOfBatch(
  graph: Graph,
  edit: GraphEdit,
  node: Node,
  shapes: readonly { readonly from: readonly number[]; readonly to: readonly number[] }[],
): Node {
  const single = { ...node, inputs: node.inputs.slice(0, 1), attributes: {} };
  if (shapes.every(({ from, to }) => from.join() === to.join())) {
    return { ...single, opType: "Identity" };
  }
  // The batch axis passes through unchanged.
  if (!shapes.every(({ from, to }) => to.length > 1 && from[0] === to[0])) return node;
  const rest = shapes[0]!.to.slice(1);
  if (rest.length === 1) return { ...single, opType: "Flatten", attributes: { axis: 1 } };
  if (node.opType !== "Reshape" || shapes.some(({ to }) => to.slice(1).join() !== rest.join())) {
    return node;
  }
  const name = uniqueName(graph, edit, `${node.outputs[0]}_shape`);
  const target = BigInt64Array.from([0, ...rest], BigInt);
  edit.initializers.set(name, ndArray("int64", [target.length], target));
  return { ...single, inputs: [node.inputs[0]!, name] };
}

function equalValues(a: NdArray, b: NdArray | undefined): boolean {
  if (a === b) return true;
  if (b === undefined || a.shape.join() !== b.shape.join()) return false;
  const other = numbersOf(b);
  return numbersOf(a).every((value, i) => Object.is(value, other[i]));
}
