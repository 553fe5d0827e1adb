// Cuts a network into the units that are distilled one after another (BRECQ, Li et al. 2021): blocks between the points
// where exactly one tensor is live, single layers, or the whole network.
import type { Graph, Node, ValueInfo } from "./graph.ts";
import { blockNames } from "./block_names.ts";
import { isLayer } from "./layer_kinds.ts";
import { consumers, outputNames, producers } from "./topology.ts";

/** A part of a network that is executed and trained by itself. */
export interface Block {
  /** Unique among the blocks of one cut. */
  readonly name: string;
  /** In execution order. */
  readonly nodes: readonly Node[];
  /** Tensors made before that the block reads; constants do not count. */
  readonly inputs: readonly string[];
  /** Tensors that later blocks read or the graph gives out; `outputs[0]` is made by the block's last layer. */
  readonly outputs: readonly string[];
}

/**
 * Cuts where exactly one tensor is live. Each block has at least one layer; what has no weights stays with the
 * layer before it, except that global pooling and reshaping right before a Gemm go with the Gemm.
 *
 * @param graph the network
 * @returns the blocks in execution order; one block when there is no such point
 */
export function cutIntoBlocks(graph: Graph): Block[] {
  const segments = cutAtSingleTensors(graph);
  const groups: Node[][] = [];
  let waiting: Node[] = [];
  segments.forEach((segment, i) => {
    if (segment.some(isLayer)) {
      groups.push([...waiting, ...segment]);
      waiting = [];
    } else if (waiting.length > 0 || groups.length === 0 || startsHead(segments, i)) {
      waiting.push(...segment);
    } else {
      groups.at(-1)!.push(...segment);
    }
  });
  return makeBlocks(graph, withRest(groups, waiting));
}

/**
 * Makes one unit of each layer with the nodes without weights that follow from it. A node on a side branch, such
 * as a shortcut's Slice, goes with the layer that needs it.
 *
 * @param graph the network
 * @returns the units in execution order
 */
export function partitionIntoLayers(graph: Graph): Block[] {
  const makers = producers(graph);
  const position = new Map(graph.nodes.map((node, i) => [node, i]));
  const missing = (node: Node) =>
    missingNodes(node, makers, done).sort((a, b) => position.get(a)! - position.get(b)!);
  const readers = consumers(graph);
  const done = new Set<Node>();
  const groups: Node[][] = [];
  for (const layer of graph.nodes.filter(isLayer)) {
    const group: Node[] = [];
    const emit = (node: Node) => {
      for (const needed of [...missing(node), node]) {
        group.push(needed);
        done.add(needed);
      }
    };
    emit(layer);
    // Follow the layer's output while one node reads it and that node needs no layer still to come.
    let tensor = layer.outputs[0]!;
    for (;;) {
      const following = new Set(readers.get(tensor) ?? []);
      const [reader] = following;
      if (following.size !== 1 || isLayer(reader!) || done.has(reader!)) break;
      if (missing(reader!).some(isLayer)) break;
      emit(reader!);
      tensor = reader!.outputs[0]!;
    }
    groups.push(group);
  }
  const rest = graph.nodes.filter((node) => !done.has(node));
  return makeBlocks(graph, withRest(groups, rest));
}

/**
 * Joins neighbouring blocks.
 *
 * @param graph the network the blocks were cut from
 * @param blocks in execution order
 * @param joins whether a block, by its position, goes with the one before it
 * @returns fewer blocks, in execution order
 */
export function joinBlocks(
  graph: Graph,
  blocks: readonly Block[],
  joins: (position: number) => boolean,
): Block[] {
  const groups: Node[][] = [];
  blocks.forEach(({ nodes }, i) => {
    if (i > 0 && joins(i)) groups.at(-1)!.push(...nodes);
    else groups.push([...nodes]);
  });
  return groups.length === blocks.length ? [...blocks] : makeBlocks(graph, groups);
}

/**
 * The whole network as one block.
 *
 * @param graph the network
 * @returns the block
 */
export function wholeNetwork(graph: Graph): Block {
  return { ...makeBlocks(graph, [[...graph.nodes]])[0]!, name: graph.name || "network" };
}

/**
 * The block as a graph of its own.
 *
 * @param graph the network the block was cut from
 * @param block the block
 * @param shapes shape by tensor name, for the types of inputs and outputs; the first size becomes the open batch `N`
 * @returns a graph with the block's nodes, inputs, outputs and the initializers they read
 */
export function blockGraph(
  graph: Graph,
  block: Block,
  shapes: ReadonlyMap<string, readonly number[]>,
): Graph {
  const declared = new Map([...graph.inputs, ...graph.outputs].map((info) => [info.name, info]));
  const valueInfo = (name: string): ValueInfo =>
    declared.get(name) ??
      { name, dtype: "float32", shape: ["N", ...(shapes.get(name) ?? []).slice(1)] };
  const read = new Set(block.nodes.flatMap((node) => node.inputs));
  return {
    name: block.name,
    opset: graph.opset,
    inputs: block.inputs.map(valueInfo),
    outputs: block.outputs.map(valueInfo),
    nodes: block.nodes,
    initializers: new Map([...graph.initializers].filter(([name]) => read.has(name))),
  };
}

const HEAD_OPERATORS: ReadonlySet<string> = new Set([
  "Flatten",
  "GlobalAveragePool",
  "GlobalMaxPool",
  "ReduceMean",
  "Reshape",
  "Squeeze",
]);

// Pieces between the points of the node order where one tensor (no constant) waits to be read.
function cutAtSingleTensors(graph: Graph): Node[][] {
  const lastReader = new Map<string, number>();
  graph.nodes.forEach((node, i) => node.inputs.forEach((name) => lastReader.set(name, i)));
  const live = new Set<string>();
  const makeLive = (name: string, position: number) => {
    if ((lastReader.get(name) ?? -1) > position && !graph.initializers.has(name)) live.add(name);
  };
  for (const input of graph.inputs) makeLive(input.name, -1);
  const segments: Node[][] = [];
  let segment: Node[] = [];
  graph.nodes.forEach((node, i) => {
    segment.push(node);
    for (const name of node.inputs) if (lastReader.get(name) === i) live.delete(name);
    for (const name of node.outputs) makeLive(name, i);
    if (live.size !== 1) return;
    segments.push(segment);
    segment = [];
  });
  if (segment.length > 0) segments.push(segment);
  return segments;
}

// The nodes not yet done that a node depends on.
function missingNodes(
  node: Node,
  makers: ReadonlyMap<string, Node>,
  done: ReadonlySet<Node>,
): Node[] {
  const missing = new Set<Node>();
  const open = [node];
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    for (const input of next.inputs) {
      const maker = makers.get(input);
      if (maker === undefined || done.has(maker) || missing.has(maker)) continue;
      missing.add(maker);
      open.push(maker);
    }
  }
  return [...missing];
}

// Whether everything from segment `start` up to the next layer is pooling or reshaping for a Gemm.
function startsHead(segments: readonly (readonly Node[])[], start: number): boolean {
  for (const segment of segments.slice(start)) {
    if (segment.some(isLayer)) return segment.every((node) => node.opType !== "Conv");
    if (!segment.every((node) => HEAD_OPERATORS.has(node.opType))) return false;
  }
  return false;
}

function withRest(groups: Node[][], rest: readonly Node[]): Node[][] {
  if (rest.length === 0) return groups;
  return groups.length === 0 ? [[...rest]] : groups.with(-1, [...groups.at(-1)!, ...rest]);
}

function makeBlocks(graph: Graph, groups: readonly (readonly Node[])[]): Block[] {
  const readers = consumers(graph);
  const given = outputNames(graph);
  const names = blockNames(groups.map((nodes) => nodes.filter(isLayer)));
  return groups.map((nodes, i) => {
    const inside = new Set(nodes);
    const made = nodes.flatMap((node) => node.outputs).filter((name) => name !== "");
    const inner = new Set(made);
    const inputs = new Set(
      nodes.flatMap((node) => node.inputs)
        .filter((name) => name !== "" && !inner.has(name) && !graph.initializers.has(name)),
    );
    const outputs = made.filter((name) =>
      given.has(name) || (readers.get(name) ?? []).some((reader) => !inside.has(reader))
    );
    return { name: names[i]!, nodes, inputs: [...inputs], outputs: ownOutputFirst(nodes, outputs) };
  });
}

// The last output that depends on the block's last layer comes first; the others keep their order.
function ownOutputFirst(nodes: readonly Node[], outputs: readonly string[]): string[] {
  const last = nodes.findLast(isLayer);
  const reached = new Set(last?.outputs);
  for (const node of nodes) {
    if (node.inputs.some((name) => reached.has(name))) {
      for (const name of node.outputs) reached.add(name);
    }
  }
  const own = outputs.findLast((name) => reached.has(name));
  return own === undefined ? [...outputs] : [own, ...outputs.filter((name) => name !== own)];
}
