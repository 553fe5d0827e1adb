// High-bias absorption (DFQ, Nagel et al. 2019, section 4.1.3): a channel that is almost always above c = mean - 3
// deviations gives c away to the biases behind it. Its range becomes smaller, and the function stays the same on every
// input that keeps the channel above c.
import { clipArguments } from "./arguments.ts";
import { numberAttribute, numbersAttribute } from "./attributes.ts";
import type { ChannelStatistics, StatisticsTable } from "./channel_statistics.ts";
import { isHomogeneous, traceChannels } from "./channel_traces.ts";
import type { Graph, Node } from "./graph.ts";
import { addInputs, readLayerWeights, writeLayerWeights } from "./layer_weights.ts";
import { inferShapes } from "./shape_inference.ts";

/** Deviations below its mean that a channel practically never goes beyond. */
const DEVIATIONS = 3;

/** A network whose biases were moved on. */
export interface Absorbed {
  readonly graph: Graph;
  /** Those of the new network. */
  readonly statistics: StatisticsTable;
  /** [O] by layer: how much its outputs became smaller. */
  readonly constants: ReadonlyMap<string, Float64Array>;
}

/**
 * Moves high biases on to the layers behind. A layer is left alone when it had no batch norm, when its way leads through
 * something that treats a shifted channel differently, or to a padded convolution, whose border would see the shift.
 *
 * @param graph channels first, simplified, batch norm folded
 * @param statistics of the layers' outputs in this graph
 * @returns the new network and what was moved
 */
export function absorbBiases(graph: Graph, statistics: StatisticsTable): Absorbed {
  const weights = readLayerWeights(graph);
  const constants = new Map<string, Float64Array>();
  const shifted = new Map(statistics);
  for (
    const { layer, readers, obstacle } of traceChannels(graph, inferShapes(graph, 1), keepsShift)
  ) {
    const known = statistics.get(layer.name), bias = weights.get(layer.name)?.bias;
    if (known === undefined || bias === undefined || obstacle !== undefined) continue;
    if (readers.some(({ node }) => isPadded(node))) continue;
    const constant = absorbable(known);
    if (constant.every((c) => c === 0)) continue;
    constant.forEach((c, o) => bias[o]! -= c);
    for (const reader of readers) addInputs(weights.get(reader.node.name)!, reader, constant);
    constants.set(layer.name, constant);
    shifted.set(layer.name, { ...known, mean: known.mean.map((m, o) => m - constant[o]!) });
  }
  return { graph: writeLayerWeights(graph, weights), statistics: shifted, constants };
}

function absorbable({ mean, deviation }: ChannelStatistics): Float64Array {
  return mean.map((m, c) => Math.max(0, m - DEVIATIONS * deviation[c]!));
}

/** Whether f(x - c) = f(x) - c for x >= c >= 0. */
function keepsShift(node: Node, graph: Graph, rank: number): boolean {
  switch (node.opType) {
    case "Clip":
      return clipArguments(node, (name) => graph.initializers.get(name)).max === Infinity &&
        isHomogeneous(node, graph, rank);
    case "AveragePool":
      return !isPadded(node) || numberAttribute(node, "count_include_pad", 0) === 0;
    case "Pad":
      return false;
    default:
      return isHomogeneous(node, graph, rank);
  }
}

function isPadded(node: Node): boolean {
  return (numbersAttribute(node, "pads") ?? []).some((pad) => pad !== 0);
}
