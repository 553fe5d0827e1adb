// Where the output channels of a layer go: through nodes that keep channels apart to the inputs of other layers. What
// rescales or shifts channels across layers (equalize.ts, absorb_biases.ts) rests on it. Channels first, simplified.
import { sizeOf } from "../core/nd_array.ts";
import { clipArguments, padArguments, reduceArguments } from "./arguments.ts";
import { normalizeAxis, numberAttribute } from "./attributes.ts";
import type { Graph, Node } from "./graph.ts";
import { isLinear } from "./layer_kinds.ts";
import { consumers, outputNames } from "./topology.ts";

/** A layer that reads the channels of another. */
export interface ChannelReader {
  /** Conv or Gemm. */
  readonly node: Node;
  /** Which channel of the tensor it reads is channel 0 of the layer: not 0 behind a Concat. */
  readonly first: number;
  /** Input features that one channel has: the pixels of a flattened image, else 1. */
  readonly features: number;
  /** Nodes between, in order. */
  readonly through: readonly Node[];
}

/** The ways of a layer's output channels. */
export interface ChannelTrace {
  /** Conv or Gemm. */
  readonly layer: Node;
  /** Output channels. */
  readonly channels: number;
  /** Where they arrive. */
  readonly readers: readonly ChannelReader[];
  /** Why some way does not end in a layer; absent when all do. */
  readonly obstacle?: string;
}

/** Whether channels may be followed through a node that reads a tensor of this rank. */
export type Passes = (node: Node, graph: Graph, rank: number) => boolean;

const ELEMENTWISE: ReadonlySet<string> = new Set([
  "Clip",
  "Dropout",
  "Identity",
  "LeakyRelu",
  "Relu",
]);

/** A chain of Concat(x, x) has exponentially many. */
const MOST_WAYS = 1024;

/**
 * Follows the output channels of every layer.
 *
 * @param graph channels first, simplified
 * @param shapes shape by tensor name
 * @param passes which nodes may lie between, beside those that only move channels (Concat, Flatten, Reshape and the like)
 * @returns one trace for each Conv and Gemm, in node order
 */
export function traceChannels(
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
  passes: Passes,
): ChannelTrace[] {
  const readers = consumers(graph), outputs = outputNames(graph);
  return graph.nodes.filter(isLinear).map((layer): ChannelTrace => {
    const found: ChannelReader[] = [];
    let obstacle: string | undefined;
    const start = { tensor: layer.outputs[0]!, first: 0, features: 1, through: [] };
    const open: Way[] = [start];
    let ways = 0;
    for (let way = open.pop(); way !== undefined; way = open.pop()) {
      if (++ways > MOST_WAYS) {
        obstacle = `its channels go more than ${MOST_WAYS} ways`;
        break;
      }
      const { tensor } = way;
      if (outputs.has(tensor)) obstacle ??= `"${tensor}" is an output of the network`;
      for (const node of new Set(readers.get(tensor) ?? [])) {
        if (node.inputs[0] === tensor && hasPlainWeights(graph, node)) {
          found.push({ node, first: way.first, features: way.features, through: way.through });
          continue;
        }
        const next = nextWays(graph, shapes, node, way, passes);
        if (next.length === 0) obstacle ??= `"${node.name}" (${node.opType}) mixes or clips it`;
        open.push(...next);
      }
    }
    if (found.length === 0) obstacle ??= "no layer reads it";
    const channels = shapes.get(layer.inputs[1]!)![0]!;
    return { layer, channels, readers: found, ...(obstacle !== undefined && { obstacle }) };
  });
}

/**
 * Whether a node is positively homogeneous channel by channel: f(s x) = s f(x) for every s > 0.
 *
 * @param node a node that keeps channels apart
 * @param graph the graph with its constants
 * @param rank of the node's input
 * @returns false also for what is not known; a Clip counts if its bounds are 0 or infinite
 */
export function isHomogeneous(node: Node, graph: Graph, rank: number): boolean {
  const constant = (name: string) => graph.initializers.get(name);
  switch (node.opType) {
    case "Relu":
    case "LeakyRelu":
    case "MaxPool":
    case "AveragePool":
    case "GlobalAveragePool":
    case "GlobalMaxPool":
      return true;
    case "PRelu":
      return constant(node.inputs[1]!) !== undefined;
    case "ReduceMean":
      return reduceArguments(node, rank, constant).axes.every((axis) => axis >= 2);
    case "Clip": {
      const { min, max } = clipArguments(node, constant);
      return (min === 0 || min === -Infinity) && (max === 0 || max === Infinity);
    }
    case "Pad": {
      const { pads, mode, value } = padArguments(node, rank, constant);
      const whole = [0, 1, rank, rank + 1].every((i) => pads[i] === 0);
      return whole && (mode !== "constant" || value === 0);
    }
    default:
      return false;
  }
}

/** Whether a node is a layer x W^T + b with constants W [O, I, ...] and b [O], the one form that simplify leaves. */
export function hasPlainWeights(graph: Graph, node: Node): boolean {
  if (!isLinear(node)) return false;
  const [, w = "", b = ""] = node.inputs;
  const weight = graph.initializers.get(w);
  if (weight === undefined) return false;
  if (node.opType === "Gemm" && numberAttribute(node, "transB", 0) === 0) return false;
  return b === "" || graph.initializers.get(b)?.shape.join() === `${weight.shape[0]}`;
}

/** Channel c of the layer has the features (first + c) * features + i of the tensor, i < features. */
interface Way {
  readonly tensor: string;
  readonly first: number;
  readonly features: number;
  readonly through: readonly Node[];
}

/** The ways behind a node; none where channels cannot be followed through it. */
function nextWays(
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
  node: Node,
  way: Way,
  passes: Passes,
): Way[] {
  const through = [...way.through, node];
  const tensor = node.outputs[0]!;
  const from = shapes.get(way.tensor)!, to = shapes.get(tensor) ?? [];
  // Channels of sequences [N, T, C] are followed through single elements only.
  if (from.length === 3 && !ELEMENTWISE.has(node.opType)) return [];
  switch (node.opType) {
    case "Identity":
    case "Dropout":
      return [{ ...way, tensor, through }];
    case "Concat": {
      const axis = normalizeAxis(node, numberAttribute(node, "axis", 0), from.length);
      if (axis !== 1 || way.features !== 1) return [];
      let before = 0;
      return node.inputs.flatMap((name) => {
        const first = way.first + before;
        before += shapes.get(name)![1]!;
        return name === way.tensor ? [{ ...way, tensor, first, through }] : [];
      });
    }
    case "Flatten":
      if (numberAttribute(node, "axis", 1) !== 1) return [];
      return [{ ...way, tensor, features: way.features * sizeOf(from.slice(2)), through }];
    case "Reshape":
    case "Squeeze":
    case "Unsqueeze": {
      const same = from[0] === to[0] && from[1] === to[1];
      return same && sizeOf(from.slice(2)) === 1 ? [{ ...way, tensor, through }] : [];
    }
    default: {
      if (node.inputs[0] !== way.tensor || way.features !== 1) return [];
      return passes(node, graph, from.length) ? [{ ...way, tensor, through }] : [];
    }
  }
}
