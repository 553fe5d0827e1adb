// The units of a network that are trained one at a time: layers, blocks, or blocks joined by a rule or by the user.
import {
  type Block,
  cutIntoBlocks,
  joinBlocks,
  partitionIntoLayers,
  wholeNetwork,
} from "../graph/blocks.ts";
import type { ChannelsLastGraph } from "../graph/channels_last.ts";
import { countWeights } from "../graph/cost.ts";
import { numbersAttribute } from "../graph/attributes.ts";

/**
 * What is trained at a time. "merged": blocks, the neighbours that differ most in capacity as one (MRECG, Ma et al. 2023);
 * "stage": blocks that follow each other without a change of shape as one.
 */
export type UnitKind = "layer" | "block" | "merged" | "stage" | "network";

/**
 * Cuts a network into units.
 *
 * @param source the folded channels-last graph
 * @param kind what is trained at a time
 * @param groups `first..last`, two layers by node name: the units from one to the other are joined
 * @returns the units in execution order
 * @throws RangeError when a group names no layer, or is not in execution order
 */
export function unitsOf(
  source: ChannelsLastGraph,
  kind: UnitKind,
  groups: readonly string[] = [],
): Block[] {
  return joinGroups(source, UNITS[kind](source), groups);
}

const UNITS: Record<UnitKind, (source: ChannelsLastGraph) => Block[]> = {
  layer: ({ graph }) => partitionIntoLayers(graph),
  block: ({ graph }) => cutIntoBlocks(graph),
  merged: mergeUnlike,
  stage: joinStages,
  network: ({ graph }) => [wholeNetwork(graph)],
};

/** A stage ends where the shape of what blocks hand on changes. */
function joinStages({ graph, shapes }: ChannelsLastGraph): Block[] {
  const blocks = cutIntoBlocks(graph);
  const shapeOf = (i: number) => shapes.get(blocks[i]!.outputs[0]!)!.join();
  return joinBlocks(graph, blocks, (i) => shapeOf(i) === shapeOf(i - 1));
}

/** Of four blocks, one goes with its neighbour: that many pairs are joined, where capacities differ most. */
const BLOCKS_A_PAIR = 4;
/** What a layer with a stride adds to the capacity of a block, relative to one without (MRECG). */
const STRIDED = 1.6;

/**
 * Neighbours of unlike capacity (the number of weights, those of strided layers counted 1.6 times) let the error of
 * reconstruction oscillate from block to block. First and last block stay by themselves. The authors' code holds a list of
 * pairs for each network; this is the rule of their paper, equation 12, with a fixed share of pairs.
 */
function mergeUnlike({ graph }: ChannelsLastGraph): Block[] {
  const blocks = cutIntoBlocks(graph);
  const weights = countWeights(graph);
  const capacities = blocks.map(({ nodes }) => {
    return nodes.reduce((sum, node) => {
      const strided = (numbersAttribute(node, "strides") ?? []).some((stride) => stride > 1);
      return sum + (weights.get(node.name) ?? 0) * (strided ? STRIDED : 1);
    }, 0);
  });
  const positions = capacities.map((_, i) => i).slice(2, -1);
  const difference = (i: number) => (capacities[i]! - capacities[i - 1]!) ** 2;
  const joined = new Set<number>();
  for (const i of positions.sort((a, b) => difference(b) - difference(a))) {
    if (joined.size >= Math.floor(blocks.length / BLOCKS_A_PAIR)) break;
    if (!joined.has(i - 1) && !joined.has(i + 1)) joined.add(i);
  }
  return joinBlocks(graph, blocks, (i) => joined.has(i));
}

function joinGroups(
  { graph }: ChannelsLastGraph,
  units: Block[],
  groups: readonly string[],
): Block[] {
  const joined = new Set<number>();
  for (const group of groups) {
    const [first = "", last = ""] = group.split("..");
    const from = unitWith(units, first), to = unitWith(units, last);
    if (from > to) {
      throw new RangeError(
        `groups: "${group}" ends before it begins, expected layers in execution order`,
      );
    }
    for (let i = from + 1; i <= to; i++) joined.add(i);
  }
  return joinBlocks(graph, units, (i) => joined.has(i));
}

function unitWith(units: readonly Block[], layer: string): number {
  const position = units.findIndex(({ nodes }) => nodes.some(({ name }) => name === layer));
  if (position < 0) throw new RangeError(`groups: the network has no layer "${layer}"`);
  return position;
}
