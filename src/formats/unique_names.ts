// Names for tensors and nodes that an export adds: the wished name, or the wished name and a number.
import type { Graph } from "../graph/graph.ts";

/** Hands out names that are not taken. */
export class UniqueNames {
  readonly #taken: Set<string>;

  /** @param taken names in use */
  constructor(taken: Iterable<string>) {
    this.#taken = new Set(taken);
  }

  /**
   * @param wish wished name
   * @returns the wish or, where it is taken, the wish with the first free number; taken from now on
   */
  reserve(wish: string): string {
    let name = wish;
    for (let i = 1; this.#taken.has(name); i++) name = `${wish}_${i}`;
    this.#taken.add(name);
    return name;
  }
}

/**
 * Every tensor name of a graph.
 *
 * @param graph any graph
 * @returns inputs, initializers and node outputs
 */
export function tensorNames(graph: Graph): string[] {
  return [
    ...graph.inputs.map((input) => input.name),
    ...graph.initializers.keys(),
    ...graph.nodes.flatMap((node) => node.outputs),
  ];
}
