// A network made ready: the graph as it is exported (batch norm folded), the two channels-last graphs the GPU runs
// (teacher and deployed student: folded; student in training: with or without batch norm), and which tensors and
// layers are quantized to how many bits.
import { UnsupportedError } from "../core/errors.ts";
import { type ChannelsLastGraph, toChannelsLast } from "../graph/channels_last.ts";
import type { StatisticsTable } from "../graph/channel_statistics.ts";
import { findBatchNormFolds, foldBatchNorm } from "../graph/fold_batch_norm.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { LAYER_OPERATORS as LAYERS } from "../graph/layer_kinds.ts";
import { inferShapes } from "../graph/shape_inference.ts";
import { simplify } from "../graph/simplify.ts";
import { consumers, producers } from "../graph/topology.ts";
import { type LayerRules, type LayerSettings, layerSettings } from "./overrides.ts";
import { prepareWeights, type WeightPreparation } from "./prepare_weights.ts";
import type { Recipe } from "./recipe_keys.ts";

/** Bits of a network's quantizers. */
export interface BitWidths extends LayerRules, Partial<Pick<Recipe, "activationRanges">> {
  readonly weightBits: number;
  /** `null` leaves activations float. */
  readonly activationBits: number | null;
  /** Weights of the first and the last layer, and the activations only they read unless ranges are dynamic. */
  readonly firstLastBits: number;
}

/** A network made ready for distillation. */
export interface Network {
  /** Channels first, batch norm folded: what is exported. */
  readonly folded: Graph;
  /** Channels last, batch norm folded; its shapes are those of a batch of one. */
  readonly teacher: ChannelsLastGraph;
  /** Channels last, as the student trains: with its batch norms, or the same as `teacher`. */
  readonly trained: ChannelsLastGraph;
  /** BatchNormalization node by Conv or Gemm node name, for those that train. */
  readonly batchNorms: ReadonlyMap<string, Node>;
  /** Bits of every quantized tensor. */
  readonly activationBits: ReadonlyMap<string, number>;
  /** Whether those have quantizers, or every layer that reads one takes its range at run time. */
  readonly activationRanges: Recipe["activationRanges"];
  /** Bits of every quantized layer, by node name, in execution order; layers that stay float are absent. */
  readonly weightBits: ReadonlyMap<string, number>;
  /** What overrides say of layers and poolings, by node name. */
  readonly settings: ReadonlyMap<string, LayerSettings>;
  readonly input: string;
  readonly output: string;
  /** What batch norm told of the layers' outputs, by node name. */
  readonly statistics: StatisticsTable;
  /** Why the outputs of a layer were not equalized, by node name. */
  readonly notEqualized: ReadonlyMap<string, string>;
}

/** Operators that compute on integers once their input is quantized. */
const POOLS: ReadonlySet<string> = new Set(["AveragePool", "GlobalAveragePool", "ReduceMean"]);

/** More bits than any quantizer has. */
const FLOAT = Infinity;

/**
 * Makes a network ready.
 *
 * @param model the network as imported
 * @param bits bits of the quantizers
 * @param keepBatchNorm whether the student trains with its batch norms; not if weights are prepared
 * @param preparation what is done to the folded weights first; nothing by default
 * @returns all that the methods need
 * @throws UnsupportedError when a node cannot be executed
 * @throws RangeError when shapes conflict, an override matches no layer or there is nothing to quantize
 */
export function prepareNetwork(
  model: Graph,
  bits: BitWidths,
  keepBatchNorm: boolean,
  preparation: WeightPreparation = {},
): Network {
  const simplified = simplify(model);
  const { folded, ...told } = prepareWeights(simplified, preparation);
  const teacher = channelsLast(folded);
  const [input] = folded.inputs, [output] = folded.outputs;
  if (input === undefined || folded.inputs.length !== 1 || output === undefined) {
    throw new RangeError(
      `the network has ${folded.inputs.length} inputs and ${folded.outputs.length} outputs, expected one input`,
    );
  }
  checkSupported(teacher.graph);
  const assigned = assignBits(teacher, bits);
  const batchNorms = new Map<string, Node>();
  if (keepBatchNorm) {
    for (const { layer, batchNorm } of findBatchNormFolds(simplified)) {
      if (assigned.weightBits.has(layer.name)) batchNorms.set(layer.name, batchNorm);
    }
  }
  // What stays float does not train, so neither does its batch norm.
  const unfolded = () => channelsLast(foldBatchNorm(simplified, { except: batchNorms }));
  return {
    folded,
    teacher,
    trained: batchNorms.size > 0 ? unfolded() : teacher,
    batchNorms,
    ...assigned,
    input: input.name,
    output: output.name,
    ...told,
  };
}

/**
 * The network with other float weights, of the same function; nothing of it is trained yet.
 *
 * @param network without batch norms that train
 * @param folded its folded graph with the new weights
 * @param statistics of the layers' outputs in that graph
 * @returns the new network
 */
export function withWeights(network: Network, folded: Graph, statistics: StatisticsTable): Network {
  const teacher = channelsLast(folded);
  return { ...network, folded, teacher, trained: teacher, statistics };
}

/**
 * The network with other bits.
 *
 * @param network the network
 * @param bits bits of the quantizers
 * @returns a copy that shares the graphs
 */
export function withBits(network: Network, bits: BitWidths): Network {
  return { ...network, ...assignBits(network.teacher, bits) };
}

/** Shapes of a channels-last graph for a batch: every activation has the batch as its first size. */
export function shapesForBatch(
  { graph, shapes }: ChannelsLastGraph,
  batch: number,
): Map<string, readonly number[]> {
  const result = new Map<string, readonly number[]>();
  for (const [name, shape] of shapes) {
    result.set(name, graph.initializers.has(name) ? shape : [batch, ...shape.slice(1)]);
  }
  return result;
}

/** The nodes of a graph that lie between tensors: those that `outputs` depend on and `inputs` do not. */
export function nodesBetween(
  graph: Graph,
  inputs: readonly string[],
  outputs: readonly string[],
): Node[] {
  const makers = producers(graph);
  const stop = new Set(inputs);
  const wanted = new Set<Node>();
  const open = outputs.filter((name) => !stop.has(name));
  for (let name = open.pop(); name !== undefined; name = open.pop()) {
    const node = makers.get(name);
    if (node === undefined || wanted.has(node)) continue;
    wanted.add(node);
    open.push(...node.inputs.filter((input) => input !== "" && !stop.has(input)));
  }
  return graph.nodes.filter((node) => wanted.has(node));
}

function channelsLast(graph: Graph): ChannelsLastGraph {
  return toChannelsLast(graph, inferShapes(graph, 1));
}

/** A batch norm that could not be folded would have to run by itself; nothing here does that. */
function checkSupported(graph: Graph): void {
  const seen = new Set<string>();
  for (const node of graph.nodes) {
    if (node.opType === "BatchNormalization") {
      throw new UnsupportedError(
        node.opType,
        node.name,
        "it does not directly follow a Conv or Gemm and so cannot be folded",
      );
    }
    if (!LAYERS.has(node.opType)) continue;
    const weight = node.inputs[1] ?? "";
    if (seen.has(weight)) {
      throw new UnsupportedError(
        node.opType,
        node.name,
        `its weight "${weight}" is shared with another layer`,
      );
    }
    seen.add(weight);
  }
}

function assignBits(
  { graph, layouts }: ChannelsLastGraph,
  { weightBits, activationBits, firstLastBits, activationRanges = "static", ...rules }: BitWidths,
): Pick<Network, "activationBits" | "activationRanges" | "weightBits" | "settings"> {
  const layers = graph.nodes.filter((node) => LAYERS.has(node.opType));
  if (layers.length === 0) {
    throw new RangeError("the network has no Conv, Gemm or LSTM to quantize");
  }
  const nodes = graph.nodes.filter(({ opType }) => LAYERS.has(opType) || POOLS.has(opType));
  const settings = layerSettings(nodes, layouts, rules);
  const readers = consumers(graph);
  const makers = producers(graph);
  const isOuter = (node: Node) =>
    !reaches(node, (name) => [makers.get(name)], (n) => n.inputs) ||
    !reaches(node, (name) => readers.get(name) ?? [], (n) => n.outputs);
  const outer = new Set(layers.filter(isOuter).map((node) => node.name));
  const weights = new Map<string, number>();
  for (const { name } of layers) {
    const { quantize, weightBits: own } = settings.get(name) ?? {};
    if (quantize === false) continue;
    weights.set(name, own ?? (outer.has(name) ? firstLastBits : weightBits));
  }
  if (weights.size === 0) {
    throw new RangeError("every layer is skipped, nothing is left to quantize");
  }
  const activations = new Map<string, number>();
  const isDynamic = activationRanges === "dynamic";
  for (const node of nodes) {
    // Where layers quantize what they read, nothing else is quantized.
    if (isDynamic && !weights.has(node.name)) continue;
    const tensor = node.inputs[0]!;
    const fed = layersFedBy(tensor, readers);
    const quantized = fed.filter((name) => weights.has(name));
    const own = settings.get(node.name);
    const isFloat = own?.quantize === undefined
      // A pooling in front of float layers stays float with them.
      ? !LAYERS.has(node.opType) && fed.length > 0 && quantized.length === 0
      : !own.quantize;
    if (isFloat) continue;
    const isOuterOnly = quantized.every((name) => outer.has(name));
    const common = activationBits !== null && isOuterOnly && !isDynamic
      ? firstLastBits
      : activationBits;
    const wanted = (name: string) => {
      const own = settings.get(name)?.activationBits;
      return (own === undefined ? common : own) ?? FLOAT;
    };
    // What a pooling reads has the bits of the layers behind it.
    const behind = LAYERS.has(node.opType) || own?.activationBits !== undefined ? [] : quantized;
    const asked = behind.length > 0 ? Math.max(...behind.map(wanted)) : wanted(node.name);
    activations.set(tensor, Math.max(asked, activations.get(tensor) ?? 0));
  }
  for (const [tensor, bits] of activations) if (bits === FLOAT) activations.delete(tensor);
  return { weightBits: weights, activationBits: activations, activationRanges, settings };
}

/** Whether another layer is found from a node by following tensors one way. */
function reaches(
  start: Node,
  next: (tensor: string) => readonly (Node | undefined)[],
  tensors: (node: Node) => readonly string[],
): boolean {
  const seen = new Set<Node>([start]);
  const open = [start];
  for (let node = open.pop(); node !== undefined; node = open.pop()) {
    for (const tensor of tensors(node)) {
      for (const neighbour of next(tensor)) {
        if (neighbour === undefined || seen.has(neighbour)) continue;
        if (LAYERS.has(neighbour.opType)) return true;
        seen.add(neighbour);
        open.push(neighbour);
      }
    }
  }
  return false;
}

/** Names of the layers that read a tensor, directly or through nodes without weights. */
function layersFedBy(tensor: string, readers: ReadonlyMap<string, readonly Node[]>): string[] {
  const names = new Set<string>();
  const seen = new Set<string>();
  const open = [tensor];
  for (let name = open.pop(); name !== undefined; name = open.pop()) {
    if (seen.has(name)) continue;
    seen.add(name);
    for (const node of readers.get(name) ?? []) {
      if (LAYERS.has(node.opType)) names.add(node.name);
      else open.push(...node.outputs);
    }
  }
  return [...names];
}
