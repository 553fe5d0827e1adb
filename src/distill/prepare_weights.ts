// What a recipe does to the float weights before anything is calibrated: batch norm folded, ranges equalized, high biases
// absorbed. The network's function stays the same, so teacher and student both start from the result.
import { absorbBiases as absorb } from "../graph/absorb_biases.ts";
import {
  batchNormStatistics,
  divideStatistics,
  type StatisticsTable,
} from "../graph/channel_statistics.ts";
import { equalizeLayers } from "../graph/equalize.ts";
import { foldBatchNorm } from "../graph/fold_batch_norm.ts";
import type { Graph } from "../graph/graph.ts";
import { addBiases } from "../graph/layer_weights.ts";
import type { Recipe } from "./recipe.ts";

/** What is done; nothing unless it is named. */
export type WeightPreparation = Partial<
  Pick<Recipe, "equalization" | "absorbBiases" | "biasCorrection">
>;

/** Float weights as the network will have them. */
export interface PreparedWeights {
  /** Channels first, batch norm folded. */
  readonly folded: Graph;
  /** Means and deviations of the layers' outputs that batch norm told of. */
  readonly statistics: StatisticsTable;
  /** Why the outputs of a layer were not equalized, by node name; empty when nothing was to be. */
  readonly notEqualized: ReadonlyMap<string, string>;
}

/**
 * Folds batch norm and does what a recipe asks for.
 *
 * @param simplified the network, simplified
 * @param preparation what to do; with bias correction every layer gets a bias
 * @returns weights and statistics
 * @throws RangeError when biases are to be corrected from batch norm and there is none
 */
export function prepareWeights(
  simplified: Graph,
  { equalization = "none", absorbBiases = false, biasCorrection = "none" }: WeightPreparation = {},
): PreparedWeights {
  let folded = foldBatchNorm(simplified);
  let statistics = batchNormStatistics(simplified);
  if (biasCorrection === "analytic" && statistics.size === 0) {
    throw new RangeError(
      'Cannot correct biases analytically: the network has no batch norm, use biasCorrection "empirical"',
    );
  }
  let notEqualized: ReadonlyMap<string, string> = new Map();
  if (equalization === "crossLayer") {
    const { graph, scales, skipped } = equalizeLayers(folded);
    folded = graph;
    statistics = divideStatistics(statistics, scales);
    notEqualized = skipped;
  }
  if (absorbBiases) ({ graph: folded, statistics } = absorb(folded, statistics));
  if (biasCorrection !== "none") folded = addBiases(folded);
  return { folded, statistics, notEqualized };
}
