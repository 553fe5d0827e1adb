// Readings of a histogram that several observers share: its values as weighted points, and its quantiles.
import type { Histogram } from "./statistics.ts";

/** Values with how often each occurs. */
export interface WeightedPoints {
  readonly points: Float64Array<ArrayBuffer>;
  readonly weights: Float64Array<ArrayBuffer>;
}

/**
 * Centres of the bins that are not empty; the bin around 0 stands at 0, because ReLU's zeros fill it and cost nothing.
 *
 * @param histogram any histogram
 * @returns values and counts
 */
export function histogramPoints({ low, high, counts }: Histogram): WeightedPoints {
  const width = (high - low) / counts.length;
  const points: number[] = [], weights: number[] = [];
  counts.forEach((count, i) => {
    if (count === 0) return;
    const left = low + i * width;
    points.push(left <= 0 && left + width > 0 ? 0 : left + width / 2);
    weights.push(count);
  });
  return { points: Float64Array.from(points), weights: Float64Array.from(weights) };
}

/**
 * Running sums of the counts.
 *
 * @param counts of a histogram
 * @returns [bins + 1]: number of values below each edge
 */
export function cumulate(counts: Float64Array): Float64Array<ArrayBuffer> {
  const cumulative = new Float64Array(counts.length + 1);
  counts.forEach((count, i) => cumulative[i + 1] = cumulative[i]! + count);
  return cumulative;
}

/**
 * Smallest value below which `count` values lie, with linear interpolation inside a bin.
 *
 * @param histogram any histogram
 * @param cumulative from {@linkcode cumulate}
 * @param count number of values
 * @returns the quantile
 */
export function valueAt(
  { low, high, counts }: Histogram,
  cumulative: Float64Array,
  count: number,
): number {
  const width = (high - low) / counts.length;
  let bin = 0;
  while (bin < counts.length - 1 && cumulative[bin + 1]! < count) bin++;
  const share = counts[bin] === 0 ? 0 : (count - cumulative[bin]!) / counts[bin]!;
  return low + (bin + Math.max(0, Math.min(1, share))) * width;
}
