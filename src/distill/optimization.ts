// How the parameters of a training run are stepped: optimizer, schedule, and the course of learned rounding.
import type { Schedule } from "../../kernels/schedule.ts";
import type { OptimizerSettings } from "../optim/flat_parameters.ts";

/** How parameters are stepped, whatever they are. */
export interface Optimization extends OptimizerSettings {
  /** Of the learning rates. */
  readonly schedule: Schedule;
  /** Part of the steps in which the rates rise to their full height. */
  readonly warmup: number;
  /** Learned rounding (AdaRound): weight of its regulariser, when that starts, and its exponent. */
  readonly rounding: {
    readonly regularizer: number;
    /** Part of the steps before the regulariser. */
    readonly warmup: number;
    readonly betaStart: number;
    readonly betaEnd: number;
    /** How the exponent falls; default "linear". */
    readonly betaDecay?: "linear" | "cosine";
  };
}

/** The default method's. */
export const OPTIMIZATION: Optimization = {
  beta1: 0.9,
  beta2: 0.99,
  schedule: "cosine",
  warmup: 0.05,
  rounding: { regularizer: 1e-4, warmup: 0.2, betaStart: 20, betaEnd: 2 },
};
