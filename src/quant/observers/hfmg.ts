// HFMG calibration (AMCT, histogram of the feature map): from the full histogram of 4096 bins, again and again the
// sparser end gives up the bins that hold one 100,000th of the values, down to a quarter of the bins; of these ranges the
// one with the least squared error wins. The values of a bin are taken to be spread evenly over it, and the 2^b levels
// stand in the middle of 2^b equal parts of the range. Unlike AMCT's, the histogram is never rebinned: its range is known
// beforehand.
import type { Histogram } from "../statistics.ts";
import type { Observer } from "./observer.ts";

const BINS = 4096;
/** Share of the values that an end gives up at a time. */
const STEP_DIVISOR = 100_000;
/** The smallest range holds this part of the bins. */
const LEAST_PART = 4;

/** Range = bins of the best candidate, and 0. */
export const hfmgObserver: Observer = {
  name: "hfmg",
  needsHistogram: true,
  bins: BINS,
  chooseRange({ min, max, histogram }, scheme) {
    if (min === max) return { min: Math.min(min, 0), max: Math.max(max, 0) };
    const levels = 2 ** scheme.bits;
    let best: BinRange = { left: 0, right: histogram.counts.length - 1 }, bestError = Infinity;
    for (const candidate of candidatesOf(histogram.counts)) {
      const error = errorOf(histogram.counts, candidate, levels, bestError);
      if (error < bestError) [best, bestError] = [candidate, error];
    }
    const width = (histogram.high - histogram.low) / histogram.counts.length;
    return {
      min: Math.min(0, histogram.low + best.left * width),
      max: Math.max(0, histogram.low + (best.right + 1) * width),
    };
  },
};

/** First and last bin of a range. */
interface BinRange {
  readonly left: number;
  readonly right: number;
}

function* candidatesOf(counts: Histogram["counts"]): Generator<BinRange> {
  const total = counts.reduce((sum, count) => sum + count, 0);
  const step = Math.max(1, Math.ceil(total / STEP_DIVISOR));
  let left = 0, right = counts.length - 1;
  while (right - left > Math.ceil(counts.length / LEAST_PART)) {
    let nextLeft = left, nextRight = right;
    for (let sum = 0; nextLeft < nextRight && sum < step; nextLeft++) sum += counts[nextLeft]!;
    for (let sum = 0; nextLeft < nextRight && sum < step; nextRight--) sum += counts[nextRight]!;
    if (right - nextRight >= nextLeft - left) right = nextRight;
    else left = nextLeft;
    yield { left, right };
  }
}

/** Sum over the bins of count * integral of (x - level of x)^2, in units of a bin; given up once larger than `best`. */
function errorOf(
  counts: Histogram["counts"],
  { left, right }: BinRange,
  levels: number,
  best: number,
): number {
  const part = (right - left + 1) / levels;
  const partOf = (x: number) => Math.min(levels - 1, Math.max(0, Math.floor(x / part)));
  let error = 0;
  for (let i = 0; i < counts.length && error <= best; i++) {
    if (counts[i] === 0) continue;
    const from = i - left, to = from + 1;
    const first = partOf(from), last = partOf(to);
    const start = from - (first + 0.5) * part, end = to - (last + 0.5) * part;
    const ends = end * end * end - start * start * start;
    const norm = first === last ? ends : ends + (last - first) * part ** 3 / 4;
    error += counts[i]! * norm / 3;
  }
  return error;
}
