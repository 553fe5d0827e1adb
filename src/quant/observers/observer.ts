// What an observer is: a rule that turns the statistics of an activation into the range its quantizer covers. Scales are
// made from the range by chooseQParams alone.
import type { QScheme } from "../scheme.ts";
import type { TensorStatistics } from "../statistics.ts";

/** Settings of the observers; each reads its own. */
export interface ObserverOptions {
  /** percentile: share of the values inside the range, in per cent; default 99.99. */
  readonly percentile?: number;
  /** mse: exponent of the error; default 2.4. */
  readonly p?: number;
  /** mse: number of scales tried; default 100. */
  readonly candidates?: number;
}

/** Smallest and largest value a quantizer represents. */
export interface ValueRange {
  readonly min: number;
  readonly max: number;
}

/** Chooses a range from statistics. */
export interface Observer {
  /** Key in OBSERVERS. */
  readonly name: string;
  /** Whether the histogram is read; without it one pass over the data is enough. */
  readonly needsHistogram: boolean;
  /** Bins of that histogram; default 2048. */
  readonly bins?: number;
  /** True reads a histogram of |x|, from 0 on. */
  readonly absolute?: boolean;
  /**
   * @param statistics of the tensor
   * @param scheme grid it is quantized to
   * @param options settings
   * @returns the range to hand to chooseQParams
   */
  chooseRange(statistics: TensorStatistics, scheme: QScheme, options?: ObserverOptions): ValueRange;
}
