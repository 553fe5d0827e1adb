// Groups the nodes of a graph into the steps that are executed: a layer with what can run in its epilogue (batch
// normalization, residual addition, activation), or a single node. Works on either layout.
import type { Graph, Node } from "./graph.ts";
import { isLayer, isLinear } from "./layer_kinds.ts";
import { consumers, outputNames } from "./topology.ts";

/** A convolution or linear layer with what is fused after it, in this order. */
export interface LayerStep {
  /** Tells the two kinds of steps apart. */
  readonly kind: "layer";
  /** Name of the layer's node. */
  readonly name: string;
  /** Conv, Gemm or LSTM; nothing is fused after an LSTM. */
  readonly layer: Node;
  /** BatchNormalization right after the layer. */
  readonly batchNorm?: Node;
  /** Addition of a tensor of the same shape that an earlier step made. */
  readonly residual?: { readonly node: Node; readonly input: string };
  /** One of {@linkcode FUSED_ACTIVATIONS}. */
  readonly activation?: Node;
  /** The tensor the layer reads. */
  readonly input: string;
  /** The only tensor the step makes. */
  readonly output: string;
}

/** A node that is executed by itself. */
export interface NodeStep {
  /** Tells the two kinds of steps apart. */
  readonly kind: "node";
  /** The node. */
  readonly node: Node;
}

/** One unit of execution. */
export type Step = LayerStep | NodeStep;

/** Activations that can run in a layer's epilogue. */
export const FUSED_ACTIVATIONS: ReadonlySet<string> = new Set([
  "Clip",
  "Gelu",
  "HardSigmoid",
  "HardSwish",
  "LeakyRelu",
  "Relu",
  "Sigmoid",
  "Tanh",
]);

/**
 * Groups nodes into steps. A step follows tensors that have one reader, are no graph output and are not in `keep`; of
 * two layers that meet in an Add, the later one takes it.
 *
 * @param graph the network
 * @param keep tensors that must exist by themselves, e.g. because they carry a quantizer
 * @param shapes shape by tensor name, in the graph's layout
 * @returns the steps in an order in which each finds its inputs made
 */
export function fuseLayers(
  graph: Graph,
  keep: ReadonlySet<string>,
  shapes: ReadonlyMap<string, readonly number[]>,
): Step[] {
  const readers = consumers(graph);
  const outputs = outputNames(graph);
  const position = new Map(graph.nodes.map((node, i) => [node, i]));
  const next = (tensor: string): Node | undefined => {
    const [reader, ...others] = readers.get(tensor) ?? [];
    const open = !keep.has(tensor) && !outputs.has(tensor) && others.length === 0;
    return open ? reader : undefined;
  };
  // From the last layer to the first, so that an Add is taken by the later of two.
  const taken = new Set<Node>();
  const steps = new Map<Node, LayerStep>();
  for (const layer of graph.nodes.toReversed()) {
    if (!isLayer(layer)) continue;
    const { step, nodes } = followLayer(layer, graph, shapes, (tensor) => {
      const node = next(tensor);
      return node === undefined || taken.has(node) || !isLinear(layer) ? undefined : node;
    });
    for (const node of nodes) taken.add(node);
    // A step runs where its last node stands: everything it reads stands before that.
    steps.set(nodes.reduce((a, b) => position.get(a)! > position.get(b)! ? a : b), step);
  }
  return graph.nodes.flatMap((node): Step[] => {
    const step = steps.get(node);
    if (step !== undefined) return [step];
    return taken.has(node) ? [] : [{ kind: "node", node }];
  });
}

function followLayer(
  layer: Node,
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
  next: (tensor: string) => Node | undefined,
): { step: LayerStep; nodes: Node[] } {
  const nodes = [layer];
  let output = layer.outputs[0]!;
  const advance = (node: Node): Node => {
    nodes.push(node);
    output = node.outputs[0]!;
    return node;
  };
  let batchNorm, residual, activation;
  let node = next(output);
  if (node?.opType === "BatchNormalization" && node.inputs[0] === output) {
    batchNorm = advance(node);
    node = next(output);
  }
  const input = node === undefined ? undefined : residualInput(node, output, graph, shapes);
  if (node !== undefined && input !== undefined) {
    residual = { node: advance(node), input };
    node = next(output);
  }
  if (node !== undefined && FUSED_ACTIVATIONS.has(node.opType) && node.inputs[0] === output) {
    activation = advance(node);
  }
  const step: LayerStep = {
    kind: "layer",
    name: layer.name,
    layer,
    ...(batchNorm === undefined ? {} : { batchNorm }),
    ...(residual === undefined ? {} : { residual }),
    ...(activation === undefined ? {} : { activation }),
    input: layer.inputs[0]!,
    output,
  };
  return { step, nodes };
}

// The other operand of an Add of two tensors of one shape.
function residualInput(
  node: Node,
  tensor: string,
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
): string | undefined {
  if (node.opType !== "Add") return undefined;
  const other = node.inputs[0] === tensor ? node.inputs[1]! : node.inputs[0]!;
  if (other === tensor || graph.initializers.has(other)) return undefined;
  return shapes.get(other)?.join() === shapes.get(tensor)?.join() ? other : undefined;
}
