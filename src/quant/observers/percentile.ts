// Percentile calibration: a fixed share of the values lies inside the range, the rest is clipped. Symmetric schemes take
// the quantile of |x|; affine ones cut half of the rest off each tail, or all of it off the only one.
import { cumulate, valueAt } from "../histogram.ts";
import type { Histogram } from "../statistics.ts";
import type { Observer } from "./observer.ts";

/** Range = percentile of the merged histogram, with linear interpolation inside a bin. */
export const percentileObserver: Observer = {
  name: "percentile",
  needsHistogram: true,
  chooseRange({ min, max, histogram }, scheme, { percentile = 99.99 } = {}) {
    if (!(percentile > 0 && percentile <= 100)) {
      throw new RangeError(`Cannot take percentile ${percentile}: expected a number in (0, 100]`);
    }
    const cumulative = cumulate(histogram.counts);
    const inside = percentile / 100 * cumulative[histogram.counts.length]!;
    const outside = (1 - percentile / 100) * cumulative[histogram.counts.length]!;
    if (min >= 0) return { min: 0, max: Math.min(max, valueAt(histogram, cumulative, inside)) };
    if (max <= 0) return { min: Math.max(min, valueAt(histogram, cumulative, outside)), max: 0 };
    if (scheme.symmetric) {
      const bound = absoluteQuantile(histogram, cumulative, inside);
      return { min: Math.max(min, -bound), max: Math.min(max, bound) };
    }
    return {
      min: Math.max(min, Math.min(0, valueAt(histogram, cumulative, outside / 2))),
      max: Math.min(max, Math.max(0, valueAt(histogram, cumulative, inside + outside / 2))),
    };
  },
};

/** Number of values below `value`. */
function countBelow(
  { low, high, counts }: Histogram,
  cumulative: Float64Array,
  value: number,
): number {
  const position = (value - low) / (high - low) * counts.length;
  if (position <= 0) return 0;
  if (position >= counts.length) return cumulative[counts.length]!;
  const bin = Math.floor(position);
  return cumulative[bin]! + (position - bin) * counts[bin]!;
}

/** Bound b with `count` values in [-b, b], by bisection. */
function absoluteQuantile(histogram: Histogram, cumulative: Float64Array, count: number): number {
  let below = 0, above = Math.max(Math.abs(histogram.low), Math.abs(histogram.high));
  // 60 halvings reach float64's resolution.
  for (let i = 0; i < 60; i++) {
    const bound = (below + above) / 2;
    const inside = countBelow(histogram, cumulative, bound) -
      countBelow(histogram, cumulative, -bound);
    if (inside < count) below = bound;
    else above = bound;
  }
  return above;
}
