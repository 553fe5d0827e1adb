// The small steps that every pass over a graph is made of: fresh names, renamed tensors, removal of what nobody reads.
import type { NdArray } from "../core/nd_array.ts";
import type { Graph, Node } from "./graph.ts";

/** A graph under change: passes edit one of these and turn it back with {@linkcode finishEdit}. */
export interface GraphEdit {
  /** In topological order. */
  nodes: Node[];
  /** Constants by name. */
  readonly initializers: Map<string, NdArray>;
}

/**
 * Starts an edit with copies of the graph's node list and initializer table.
 *
 * @param graph the network; it is not changed
 * @returns the copies
 */
export function startEdit(graph: Graph): GraphEdit {
  return { nodes: [...graph.nodes], initializers: new Map(graph.initializers) };
}

/**
 * Ends an edit: drops nodes whose outputs nobody reads and initializers nobody uses.
 *
 * @param graph the graph the edit started from
 * @param edit the edited nodes (in topological order) and initializers
 * @returns the new graph
 */
export function finishEdit(graph: Graph, edit: GraphEdit): Graph {
  const needed = new Set(graph.outputs.map((output) => output.name));
  const nodes: Node[] = [];
  for (const node of edit.nodes.toReversed()) {
    if (!node.outputs.some((output) => needed.has(output))) continue;
    nodes.push(node);
    for (const input of node.inputs) needed.add(input);
  }
  return {
    ...graph,
    nodes: nodes.reverse(),
    initializers: new Map([...edit.initializers].filter(([name]) => needed.has(name))),
  };
}

/**
 * Makes a name that no tensor and no node of the edit has.
 *
 * @param graph the graph the edit started from
 * @param edit the edit
 * @param wish the name if it is free; otherwise it gets a number
 * @returns the free name
 */
export function uniqueName(graph: Graph, edit: GraphEdit, wish: string): string {
  const taken = new Set(graph.inputs.map((input) => input.name));
  for (const name of edit.initializers.keys()) taken.add(name);
  for (const node of edit.nodes) {
    taken.add(node.name);
    for (const name of [...node.inputs, ...node.outputs]) taken.add(name);
  }
  let name = wish;
  for (let i = 1; taken.has(name); i++) name = `${wish}_${i}`;
  return name;
}

/**
 * Stores a changed initializer: under its own name when only `node` reads it, once; otherwise under a new name.
 *
 * @param graph the graph the edit started from
 * @param edit the edit
 * @param name the initializer's name
 * @param value its new value
 * @returns the name to read it by
 */
export function rewriteInitializer(
  graph: Graph,
  edit: GraphEdit,
  name: string,
  value: NdArray,
): string {
  let uses = graph.outputs.filter((output) => output.name === name).length;
  for (const node of edit.nodes) uses += node.inputs.filter((input) => input === name).length;
  const target = uses <= 1 ? name : uniqueName(graph, edit, name);
  edit.initializers.set(target, value);
  return target;
}

/**
 * Replaces tensor names in a node's inputs.
 *
 * @param node the node
 * @param names new name by old name
 * @returns the node itself when nothing changes
 */
export function renameInputs(node: Node, names: ReadonlyMap<string, string>): Node {
  if (!node.inputs.some((input) => names.has(input))) return node;
  return { ...node, inputs: node.inputs.map((input) => names.get(input) ?? input) };
}
