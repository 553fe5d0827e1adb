// Nodes and initializers that are appended to a graph under names that nothing has yet.
import type { NdArray } from "../core/nd_array.ts";
import type { Attribute, Graph, Node } from "../graph/graph.ts";
import { tensorNames, UniqueNames } from "./unique_names.ts";

/** What is written beside a graph, or in its place. */
export class GraphWriter {
  /** In order. */
  readonly nodes: Node[] = [];
  /** By name. */
  readonly initializers = new Map<string, NdArray>();
  /** Of the graph. */
  readonly opset: number;
  readonly #tensorNames: UniqueNames;
  readonly #nodeNames: UniqueNames;

  /** @param graph whose names are taken */
  constructor(graph: Graph) {
    this.opset = graph.opset;
    this.#tensorNames = new UniqueNames(tensorNames(graph));
    this.#nodeNames = new UniqueNames(graph.nodes.map((node) => node.name));
  }

  /** A tensor name that nothing has yet. */
  unique(name: string): string {
    return this.#tensorNames.reserve(name);
  }

  /** Adds an initializer; returns its name. */
  initializer(name: string, array: NdArray): string {
    const unique = this.unique(name);
    this.initializers.set(unique, array);
    return unique;
  }

  /** Adds a node, named after a tensor. */
  node(
    opType: string,
    tensor: string,
    inputs: readonly string[],
    outputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>> = {},
  ): void {
    const name = this.#nodeNames.reserve(`${tensor}_${opType}`);
    this.nodes.push({ name, opType, inputs, outputs, attributes });
  }
}
