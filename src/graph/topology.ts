// Who makes and who reads each tensor, and the order of the nodes. Nothing here recurses: a hostile or generated
// file can hold a chain of many thousand nodes.
import type { Graph, Node } from "./graph.ts";

/**
 * Finds the node that makes each tensor.
 *
 * @param graph the network
 * @returns node by tensor name; graph inputs and initializers are absent
 */
export function producers(graph: Graph): Map<string, Node> {
  const result = new Map<string, Node>();
  for (const node of graph.nodes) {
    for (const output of node.outputs) if (output !== "") result.set(output, node);
  }
  return result;
}

/**
 * Finds the nodes that read each tensor, in node order; a node that reads a tensor twice is listed twice.
 *
 * @param graph the network
 * @returns nodes by tensor name; tensors nobody reads are absent
 */
export function consumers(graph: Graph): Map<string, Node[]> {
  const result = new Map<string, Node[]>();
  for (const node of graph.nodes) {
    for (const input of node.inputs) {
      if (input === "") continue;
      const readers = result.get(input);
      if (readers === undefined) result.set(input, [node]);
      else readers.push(node);
    }
  }
  return result;
}

/**
 * Names of the graph's outputs.
 *
 * @param graph the network
 * @returns the names
 */
export function outputNames(graph: Graph): Set<string> {
  return new Set(graph.outputs.map((output) => output.name));
}

/**
 * Sorts nodes so that each comes after those whose outputs it reads; nodes that are already in such an order keep it.
 *
 * @param nodes nodes in any order
 * @param available tensors that exist before the first node: graph inputs and initializers
 * @returns the nodes in topological order
 * @throws RangeError when a node reads a tensor that nothing makes, when two nodes make one, or when there is a cycle
 */
export function sortNodes(nodes: readonly Node[], available: Iterable<string>): Node[] {
  const made = new Set(available);
  const maker = new Map<string, number>();
  nodes.forEach((node, i) => {
    for (const output of node.outputs) {
      if (output === "") continue;
      if (made.has(output) || maker.has(output)) {
        throw new RangeError(
          `node "${node.name}" (${node.opType}): tensor "${output}" is already made`,
        );
      }
      maker.set(output, i);
    }
  });
  const waiting = new Array<number>(nodes.length).fill(0);
  const readers = new Map<number, number[]>();
  nodes.forEach((node, i) => {
    for (const input of new Set(node.inputs)) {
      if (input === "" || made.has(input)) continue;
      const from = maker.get(input);
      if (from === undefined) {
        throw new RangeError(
          `node "${node.name}" (${node.opType}): no node makes its input "${input}"`,
        );
      }
      waiting[i]!++;
      const list = readers.get(from);
      if (list === undefined) readers.set(from, [i]);
      else list.push(i);
    }
  });
  return orderByPosition(nodes, waiting, readers);
}

// Kahn's algorithm that always takes the ready node which stands first in the file: a sweep over the positions, with
// nodes that became ready behind the sweep taken at once (in their own order).
function orderByPosition(
  nodes: readonly Node[],
  waiting: number[],
  readers: ReadonlyMap<number, readonly number[]>,
): Node[] {
  const order: Node[] = [];
  const done = new Array<boolean>(nodes.length).fill(false);
  const ready: number[] = [];
  for (let position = 0; position < nodes.length; position++) {
    if (!done[position] && waiting[position] === 0) ready.push(position);
    while (ready.length > 0) {
      const i = ready.pop()!;
      done[i] = true;
      order.push(nodes[i]!);
      const freed = (readers.get(i) ?? []).filter((j) => --waiting[j]! === 0 && j < position);
      ready.push(...freed.reverse());
    }
  }
  if (order.length < nodes.length) {
    const stuck = nodes[done.indexOf(false)]!;
    throw new RangeError(`node "${stuck.name}" (${stuck.opType}): it is part of a cycle`);
  }
  return order;
}
