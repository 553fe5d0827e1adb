import assert from "node:assert/strict";
import { Rng } from "../../src/core/rng.ts";
import { mergeStatistics, tensorStatistics, totalCount } from "../../src/quant/statistics.ts";

function normals(seed: number, size: number, shift = 0): Float64Array {
  const rng = new Rng(seed);
  return Float64Array.from({ length: size }, () => rng.normal() + shift);
}

Deno.test("tensorStatistics() has the range of all batches and a moving average of theirs", () => {
  const { min, max, movingMin, movingMax } = tensorStatistics([[0, 1], [-10, 11]], {
    momentum: 0.1,
  });
  assert.deepEqual({ min, max, movingMin, movingMax }, {
    min: -10,
    max: 11,
    movingMin: -1,
    movingMax: 2,
  });
});

Deno.test("tensorStatistics() counts every value in its bin", () => {
  const { histogram } = tensorStatistics([[0, 0.9, 1], [2.5, 4]], { bins: 4 });
  assert.deepEqual(histogram, { low: 0, high: 4, counts: Float64Array.of(2, 1, 1, 1) });
});

Deno.test("tensorStatistics() counts magnitudes where asked to", () => {
  const { min, max, histogram } = tensorStatistics([[0, -4, 1], [-2.5, 3]], {
    bins: 4,
    absolute: true,
  });
  assert.deepEqual([min, max], [-4, 3]);
  assert.deepEqual(histogram, { low: 0, high: 4, counts: Float64Array.of(1, 1, 1, 2) });
});

Deno.test("tensorStatistics() of a constant tensor fills one bin", () => {
  const { histogram } = tensorStatistics([[3, 3]], { bins: 2 });
  assert.deepEqual(histogram, { low: 3, high: 3, counts: Float64Array.of(2, 0) });
});

Deno.test("tensorStatistics() rejects empty batches and values that are not finite", () => {
  assert.throws(() => tensorStatistics([]), /no batches/);
  assert.throws(() => tensorStatistics([[]]), /batch is empty/);
  assert.throws(() => tensorStatistics([[1, NaN]]), /element 1 of a batch is NaN/);
});

Deno.test("mergeStatistics() of equal bins adds the counts", () => {
  const a = tensorStatistics([[0, 1, 4]], { bins: 4 }),
    b = tensorStatistics([[0, 3, 4]], { bins: 4 });
  assert.deepEqual(mergeStatistics(a, b), tensorStatistics([[0, 1, 4], [0, 3, 4]], { bins: 4 }));
});

Deno.test("mergeStatistics() of other bins keeps the total and is close to counting anew", () => {
  const x = normals(1, 4000), y = normals(2, 4000, 3);
  const merged = mergeStatistics(tensorStatistics([x]), tensorStatistics([y])).histogram;
  const counted = tensorStatistics([x, y]).histogram;
  // 1e-9: sums of 8000 fractions
  assert.ok(Math.abs(totalCount(merged) - 8000) < 1e-9);
  assert.equal(merged.low, counted.low);
  assert.equal(merged.high, counted.high);
  let a = 0, b = 0, worst = 0;
  merged.counts.forEach((count, i) => {
    a += count;
    b += counted.counts[i]!;
    worst = Math.max(worst, Math.abs(a - b));
  });
  // Only values in the bin of an edge can be on its other side; the fullest bins hold about 15.
  assert.ok(worst < 30, `${worst}`);
});

Deno.test("mergeStatistics() takes in a constant tensor", () => {
  const merged = mergeStatistics(
    tensorStatistics([[0, 0, 0]], { bins: 4 }),
    tensorStatistics([[0, 8]], { bins: 4 }),
  );
  assert.deepEqual(merged.histogram, { low: 0, high: 8, counts: Float64Array.of(4, 0, 0, 1) });
  assert.equal(merged.movingMax, 8 * 2 / 5);
  const constants = mergeStatistics(
    tensorStatistics([[5]], { bins: 2 }),
    tensorStatistics([[5]], { bins: 3 }),
  );
  assert.equal(totalCount(constants.histogram), 2);
});

Deno.test("mergeStatistics() puts bins that lie inside one bin into it whole", () => {
  const a = tensorStatistics([[1.01, 1.02, 1.99]], { bins: 2 }),
    b = tensorStatistics([[0, 8]], { bins: 8 });
  assert.deepEqual(mergeStatistics(a, b).histogram.counts, Float64Array.of(1, 3, 0, 0, 0, 0, 0, 1));
});
