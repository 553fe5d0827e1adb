// What is known of an activation tensor after calibration: range, moving average of the range and a histogram. The GPU
// observers produce it batch by batch in constant memory; the observers in observers/ choose a range from it.

/** Counts of values in equal bins; bin i covers [low + i * width, low + (i + 1) * width). */
export interface Histogram {
  readonly low: number;
  readonly high: number;
  /** Values in each bin; those outside [low, high] are counted in the first and the last. */
  readonly counts: Float64Array<ArrayBuffer>;
}

/** Statistics of one tensor over all calibration batches. */
export interface TensorStatistics {
  readonly min: number;
  readonly max: number;
  /** Exponential moving average of the batches' minima. */
  readonly movingMin: number;
  readonly movingMax: number;
  readonly histogram: Histogram;
}

/** How {@linkcode tensorStatistics} counts. */
export interface StatisticsOptions {
  /** Bins of the histogram; default 2048. */
  readonly bins?: number;
  /** Share of the newest batch in the moving averages; default 0.1. */
  readonly momentum?: number;
  /** True counts |x| over 0 .. max(|minimum|, |maximum|); default false. */
  readonly absolute?: boolean;
}

/**
 * Statistics of batches held on the host: the reference of the GPU observers.
 *
 * @param batches values of the tensor, batch by batch
 * @param options bins and momentum
 * @returns the statistics; the histogram spans exactly the range of what it counts
 * @throws RangeError when there are no values or one of them is not finite
 */
export function tensorStatistics(
  batches: readonly ArrayLike<number>[],
  { bins = 2048, momentum = 0.1, absolute = false }: StatisticsOptions = {},
): TensorStatistics {
  let min = Infinity, max = -Infinity, movingMin = NaN, movingMax = NaN;
  for (const batch of batches) {
    const range = rangeOf(batch);
    min = Math.min(min, range.min);
    max = Math.max(max, range.max);
    // The first batch starts the averages.
    movingMin = Number.isNaN(movingMin)
      ? range.min
      : movingMin + momentum * (range.min - movingMin);
    movingMax = Number.isNaN(movingMax)
      ? range.max
      : movingMax + momentum * (range.max - movingMax);
  }
  if (batches.length === 0) throw new RangeError("Cannot observe a tensor: there are no batches");
  const [low, high] = absolute ? [0, Math.max(-min, max)] : [min, max];
  const counts = new Float64Array(bins);
  for (const batch of batches) {
    for (let i = 0; i < batch.length; i++) {
      const value = absolute ? Math.abs(batch[i]!) : batch[i]!;
      counts[binOf(value, low, high, bins)]! += 1;
    }
  }
  return { min, max, movingMin, movingMax, histogram: { low, high, counts } };
}

/**
 * Statistics of two sets of batches together.
 *
 * Counts of bins that do not coincide are shared out in proportion to the overlap, so the total is kept. The moving
 * averages are averaged by the number of values, as their order in time is not known.
 *
 * @param a statistics of some batches
 * @param b statistics of others
 * @returns statistics of all; as many bins as the finer histogram has
 */
export function mergeStatistics(a: TensorStatistics, b: TensorStatistics): TensorStatistics {
  const low = Math.min(a.histogram.low, b.histogram.low);
  const high = Math.max(a.histogram.high, b.histogram.high);
  const bins = Math.max(a.histogram.counts.length, b.histogram.counts.length);
  const counts = new Float64Array(bins);
  addCounts(a.histogram, low, high, counts);
  addCounts(b.histogram, low, high, counts);
  const share = totalCount(b.histogram) / (totalCount(a.histogram) + totalCount(b.histogram));
  return {
    min: Math.min(a.min, b.min),
    max: Math.max(a.max, b.max),
    movingMin: a.movingMin + share * (b.movingMin - a.movingMin),
    movingMax: a.movingMax + share * (b.movingMax - a.movingMax),
    histogram: { low, high, counts },
  };
}

/**
 * Number of values in a histogram.
 *
 * @param histogram any histogram
 * @returns the sum of its counts
 */
export function totalCount(histogram: Histogram): number {
  return histogram.counts.reduce((sum, count) => sum + count, 0);
}

/** Bin of a value; the upper end belongs to the last bin. */
function binOf(value: number, low: number, high: number, bins: number): number {
  if (!(high > low)) return 0;
  const bin = Math.floor((value - low) / (high - low) * bins);
  return Math.max(0, Math.min(bins - 1, bin));
}

function rangeOf(batch: ArrayLike<number>): { min: number; max: number } {
  let min = Infinity, max = -Infinity;
  for (let i = 0; i < batch.length; i++) {
    const value = batch[i]!;
    if (!Number.isFinite(value)) {
      throw new RangeError(`Cannot observe a tensor: element ${i} of a batch is ${value}`);
    }
    if (value < min) min = value;
    if (value > max) max = value;
  }
  if (batch.length === 0) throw new RangeError("Cannot observe a tensor: a batch is empty");
  return { min, max };
}

/** Adds the counts of a histogram to bins over [low, high], which holds its range. */
function addCounts(source: Histogram, low: number, high: number, target: Float64Array): void {
  const bins = target.length;
  if (source.low === low && source.high === high && source.counts.length === bins) {
    source.counts.forEach((count, i) => target[i]! += count);
    return;
  }
  // Two constant tensors of one value.
  if (low === high) {
    target[0]! += totalCount(source);
    return;
  }
  const scale = bins / (high - low);
  const sourceWidth = (source.high - source.low) / source.counts.length;
  source.counts.forEach((count, i) => {
    if (count === 0) return;
    const from = (source.low + i * sourceWidth - low) * scale;
    const to = from + sourceWidth * scale;
    const first = Math.max(0, Math.min(bins - 1, Math.floor(from)));
    const last = Math.max(first, Math.min(bins - 1, Math.ceil(to) - 1));
    // A bin without width (a constant tensor) lies in one target bin, and so does one that fits into it.
    if (first === last) target[first]! += count;
    else {
      for (let bin = first; bin <= last; bin++) {
        // Rounding may put the ends a hair outside the bins, so the outer pieces take what is left over.
        const left = bin === first ? from : bin;
        const right = bin === last ? to : bin + 1;
        target[bin]! += count * (right - left) / (to - from);
      }
    }
  });
}
