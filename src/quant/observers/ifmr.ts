// IFMR calibration (AMCT, "input feature map reconstruction"): the 0.999999 quantiles of both ends, then a factor
// 0.7 .. 1.3 in steps of 0.01 on the upper end (affine, the lower one stays) or on both (symmetric), the one with the
// least squared error. AMCT keeps the values; here they are those of the histogram.
import { gridError, powerTable } from "../grid_error.ts";
import { cumulate, histogramPoints, valueAt } from "../histogram.ts";
import { type QScheme, quantRange } from "../scheme.ts";
import type { Histogram } from "../statistics.ts";
import type { Observer, ValueRange } from "./observer.ts";

const PERCENTILE = 0.999999;
const FACTORS = Array.from({ length: 61 }, (_, i) => 0.7 + i * 0.01);

/** Range = quantiles times the best factor. */
export const ifmrObserver: Observer = {
  name: "ifmr",
  needsHistogram: true,
  chooseRange({ min, max, histogram }, scheme) {
    if (min === 0 && max === 0) return { min, max };
    const start = quantiles(histogram);
    const { points, weights } = histogramPoints(histogram);
    const table = powerTable(2);
    let best = start, bestError = Infinity;
    for (const factor of FACTORS) {
      const range = scaled(start, factor, scheme);
      const { scale, low, high } = gridOf(range, scheme);
      const error = gridError(points, weights, points.length, scale, low, high, table, bestError);
      if (error < bestError) [best, bestError] = [range, error];
    }
    return best;
  },
};

/** AMCT's order statistics, and 0 always inside: of fewer than a million values the extremes. */
function quantiles(histogram: Histogram): ValueRange {
  const cumulative = cumulate(histogram.counts);
  const total = cumulative.at(-1)!;
  const outside = total - Math.floor(PERCENTILE * total) - 1;
  return {
    min: Math.min(0, valueAt(histogram, cumulative, outside)),
    max: Math.max(0, valueAt(histogram, cumulative, total - outside)),
  };
}

function scaled({ min, max }: ValueRange, factor: number, { symmetric }: QScheme): ValueRange {
  if (symmetric) {
    const bound = factor * Math.max(-min, max);
    return { min: min >= 0 ? 0 : -bound, max: bound };
  }
  // Below 0 only, the lower end is the one to search.
  return max === 0 ? { min: factor * min, max } : { min, max: factor * max };
}

/** The grid that chooseQParams makes of a range, before its rounding to float32: codes relative to the zero point. */
function gridOf(
  { min, max }: ValueRange,
  scheme: QScheme,
): { scale: number; low: number; high: number } {
  const signed = scheme.signed || (scheme.symmetric && min < 0);
  const { quantMin, quantMax } = quantRange({ ...scheme, signed });
  if (scheme.symmetric) return { scale: max / quantMax, low: quantMin, high: quantMax };
  const scale = (max - min) / (quantMax - quantMin);
  const low = Math.round(min / scale);
  return { scale, low, high: low + quantMax - quantMin };
}
