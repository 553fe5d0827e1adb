// What batch normalization tells about a layer's outputs without any data: before the activation, channel c has the mean
// beta[c] and the deviation |gamma[c]| (DFQ, Nagel et al. 2019, section 4.1.3).
import { numbersOf } from "./arguments.ts";
import { findBatchNormFolds } from "./fold_batch_norm.ts";
import type { Graph } from "./graph.ts";

/** Mean and standard deviation of a layer's output channels, before the activation. */
export interface ChannelStatistics {
  readonly mean: Float64Array;
  readonly deviation: Float64Array;
}

/** Statistics by node name, of the layers that have them. */
export type StatisticsTable = ReadonlyMap<string, ChannelStatistics>;

/**
 * Statistics of every layer whose batch norm can be folded.
 *
 * @param graph simplified, batch norm not folded
 * @returns statistics of the folded layers' outputs
 */
export function batchNormStatistics(graph: Graph): StatisticsTable {
  const table = new Map<string, ChannelStatistics>();
  for (const { layer, batchNorm } of findBatchNormFolds(graph)) {
    const [, gamma, beta] = batchNorm.inputs.map((name) => graph.initializers.get(name));
    table.set(layer.name, {
      mean: Float64Array.from(numbersOf(beta!)),
      deviation: Float64Array.from(numbersOf(gamma!), Math.abs),
    });
  }
  return table;
}

/**
 * The statistics after the outputs were divided.
 *
 * @param table statistics
 * @param scales [O] by layer: what the outputs were divided by
 * @returns new statistics
 */
export function divideStatistics(
  table: StatisticsTable,
  scales: ReadonlyMap<string, Float64Array>,
): StatisticsTable {
  return new Map(Array.from(table, ([name, { mean, deviation }]) => {
    const by = (values: Float64Array) => values.map((v, c) => v / (scales.get(name)?.[c] ?? 1));
    return [name, { mean: by(mean), deviation: by(deviation) }];
  }));
}
