// How fast each group of a student's parameters trains: the rates as recipes give them, and as the optimizer takes them.
import type { OptimizerSettings, ParameterRate } from "../optim/flat_parameters.ts";
import { type LayerState, rootMeanSquare } from "./student.ts";

/** Learning rates of the groups of parameters. 0 keeps a group as it is. */
export interface LearningRates {
  /** Latent weights, in units of the root mean square of the layer's weights, or the variables of soft rounding. */
  readonly weights: number;
  /** Logarithm of the weights' scales. */
  readonly weightScales: number;
  /** Logarithm of the activations' scales. */
  readonly activationScales: number;
  /** Batch norm's gamma and beta, or the bias. */
  readonly biases: number;
  /**
   * True where weights and scales have rates of their own units, as published recipes give them. A rate of a scale
   * becomes one of its logarithm by the scale (of a layer's weights: their mean) that it starts from; for SGD, after
   * LSQ's factor 1 / sqrt(weights of the channel * quantMax). Default false.
   */
  readonly absolute?: boolean;
  /** Whether the schedule leaves the weights' rate alone; default false. */
  readonly constantWeights?: boolean;
  /** With `absolute`: whether the rate of the weights' scales is one of the range of all codes; default false. */
  readonly weightRanges?: boolean;
  /** Decoupled weight decay of latent weights, biases and bounds of activations (AdamW); default 0. */
  readonly weightDecay?: number;
}

/**
 * Rate of a layer's latent weights.
 *
 * @param layer whose
 * @param rates of all groups
 * @returns in units of the weights
 */
export function weightRate({ latent }: LayerState, rates: LearningRates): ParameterRate {
  const { absolute, weights, weightDecay = 0 } = rates;
  const rate = absolute ? weights : weights * rootMeanSquare(latent.data);
  return { ...scheduled(rates, rate), decay: weightDecay };
}

/**
 * Rate of the logarithms of a layer's scales.
 *
 * @param layer whose
 * @param rates of all groups
 * @param optimizer that steps them
 * @returns one for all channels
 */
export function weightScaleRate(
  { bits, logScale, latent, quantMax }: LayerState,
  { absolute, weightRanges, weightScales }: LearningRates,
  optimizer: OptimizerSettings["optimizer"] = "adam",
): number {
  if (!absolute) return weightScales;
  const channels = logScale.length;
  const scale = logScale.reduce((sum, log) => sum + Math.exp(log) / channels, 0);
  if (optimizer === "adam") return weightScales / (weightRanges ? scale * (2 ** bits - 1) : scale);
  const largest = Math.max(...quantMax, 1);
  return weightScales / (scale * scale * Math.sqrt(latent.data.length / channels * largest));
}

/**
 * Rate of biases, and of what stands for one.
 *
 * @param rates of all groups
 * @returns in units of the bias
 */
export function biasRate({ biases, weightDecay = 0 }: LearningRates): ParameterRate {
  return { scheduled: biases, decay: weightDecay };
}

/**
 * A rate of weights with or without the schedule.
 *
 * @param rates say which
 * @param rate of the weights
 * @returns for the flat layout
 */
export function scheduled({ constantWeights }: LearningRates, rate: number): ParameterRate {
  return constantWeights ? { constant: rate } : { scheduled: rate };
}
