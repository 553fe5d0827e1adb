// The histogram observers beside plain float64 references, written from the definitions with loops over single values.
import assert from "node:assert/strict";
import { Rng } from "../../src/core/rng.ts";
import { type AciqDistribution, clippingConstant } from "../../src/quant/observers/aciq.ts";
import type { Observer, ObserverOptions, ValueRange } from "../../src/quant/observers/observer.ts";
import { type ObserverName, OBSERVERS } from "../../src/quant/observers/observers.ts";
import { type QScheme, qScheme, quantRange } from "../../src/quant/scheme.ts";
import { type TensorStatistics, tensorStatistics } from "../../src/quant/statistics.ts";
import { clamp, roundTiesToEven } from "../_reference_quant.ts";

const rng = new Rng(11);
const normals = (map: (x: number) => number, size = 3000) =>
  Float64Array.from({ length: size }, () => map(rng.normal()));

/** One-sided, two-sided, constant and all-zero tensors. */
const TENSORS: Readonly<Record<string, Float64Array>> = {
  relu: normals((x) => Math.max(0, x) ** 2),
  above: normals((x) => Math.exp(x) + 0.5),
  skewed: normals((x) => x > 0 ? 3 * x : x),
  below: normals((x) => -(Math.max(0, x) ** 2)),
  outlier: Float64Array.of(...normals((x) => x), 40),
  few: Float64Array.of(-2, 1, 1, 3),
  constant: new Float64Array(50).fill(3),
  negative: new Float64Array(50).fill(-2),
  zeros: new Float64Array(50),
};

const GRIDS = {
  unsigned: { signed: false },
  signed: {},
  affine: { signed: false, symmetric: false },
} as const;

function forEachCase(visit: (x: Float64Array, scheme: QScheme, label: string) => void): void {
  for (const [tensor, x] of Object.entries(TENSORS)) {
    for (const [grid, options] of Object.entries(GRIDS)) {
      for (const bits of [2, 4, 8]) {
        visit(x, qScheme({ bits, ...options }), `${tensor} ${grid} ${bits}`);
      }
    }
  }
}

function statisticsFor(name: ObserverName, x: Float64Array, bins = 512): TensorStatistics {
  const { absolute = false }: Observer = OBSERVERS[name];
  return tensorStatistics([x], { bins, absolute });
}

/** Where the values of each bin stand, in the middle or at 0 for the bin around 0, and how many they are. */
function pointsOf({ histogram: { low, high, counts } }: TensorStatistics): [number, number][] {
  const width = (high - low) / counts.length;
  return Array.from(counts, (count, i) => {
    const left = low + i * width, right = left + width;
    return [left <= 0 && right > 0 ? 0 : left + width / 2, count];
  });
}

/** Sum of |x - Q(x)|^p for codes low .. high. */
function errorOf(
  points: readonly [number, number][],
  scale: number,
  [low, high]: readonly number[],
  p: number,
): number {
  let sum = 0;
  for (const [x, count] of points) {
    if (count === 0) continue;
    sum += count * Math.abs(clamp(roundTiesToEven(x / scale), low!, high!) * scale - x) ** p;
  }
  return sum;
}

function codesOf(scheme: QScheme, min: number): number[] {
  const signed = scheme.signed || min < 0;
  const { quantMin, quantMax } = quantRange({ ...scheme, signed });
  return [quantMin, quantMax];
}

/** KL divergence of each threshold, from arrays of probabilities; Infinity where the rule does not try it. */
function divergences(counts: Float64Array, groups: number): number[] {
  const first = Math.floor(0.002 * counts.length), start = Math.max(groups, counts.length / 16);
  const seen = counts.map((count, i) => i < first ? 0 : count);
  const sum = (values: Float64Array) => values.reduce((total, value) => total + value, 0);
  const occupiedBins = (values: Float64Array) => values.filter((count) => count > 0).length;
  const result = Array<number>(counts.length + 1).fill(Infinity);
  for (let i = start; i <= counts.length; i++) {
    const inside = seen.slice(0, i), p = seen.slice(0, i), q = new Float64Array(i);
    if (occupiedBins(inside) < Math.min(start - first, occupiedBins(seen))) continue;
    p[i - 1]! += sum(seen.slice(i));
    const mass = new Float64Array(groups), occupied = new Float64Array(groups);
    for (let k = 0; k < i; k++) {
      mass[Math.floor(k * groups / i)]! += inside[k]!;
      if (p[k]! > 0) occupied[Math.floor(k * groups / i)]! += 1;
    }
    for (let k = 0; k < i; k++) {
      const group = Math.floor(k * groups / i);
      if (p[k]! > 0) q[k] = mass[group]! / occupied[group]!;
    }
    const allP = sum(p), allQ = sum(q);
    result[i] = 0;
    p.forEach((value, k) => {
      if (value > 0) result[i]! += value / allP * Math.log(value / allP / (q[k]! / allQ));
    });
  }
  return result;
}

Deno.test("kl takes the threshold of the least divergence", () => {
  const bins = 256;
  const cache = new Map<string, number[]>();
  forEachCase((x, scheme, label) => {
    const statistics = statisticsFor("kl", x, bins);
    const { min, max } = OBSERVERS.kl.chooseRange(statistics, scheme);
    const bound = Math.max(-statistics.min, statistics.max);
    if (bound === 0) return assert.deepEqual({ min, max }, { min: 0, max: 0 });
    const bothSides = scheme.symmetric
      ? scheme.signed || statistics.min < 0
      : statistics.min < 0 && statistics.max > 0;
    const groups = 2 ** (scheme.bits - (bothSides ? 1 : 0));
    const key = `${label.split(" ")[0]} ${groups}`;
    const all = cache.get(key) ?? divergences(statistics.histogram.counts, groups);
    cache.set(key, all);
    const threshold = Math.max(-min, max);
    // The largest threshold, half a bin beyond the last edge, is cut to what was seen.
    const found = threshold === bound ? bins : Math.round(threshold / bound * bins - 0.5);
    if (found < bins) assert.equal(threshold, (found + 0.5) * bound / bins, label);
    // 1e-12: sums of 256 logarithms in another order
    assert.ok(all[found]! <= Math.min(...all) + 1e-12, `${label} ${all[found]}`);
    assert.ok(min === 0 || min === Math.max(statistics.min, -threshold), label);
    assert.ok(max === 0 || max === Math.min(statistics.max, threshold), label);
  });
});

Deno.test("kl at 8 bits has 128 groups with signs and leaves out 0.2 % of 2048 bins", () => {
  const x = TENSORS.outlier!;
  const { histogram, ...rest } = statisticsFor("kl", x, 2048);
  histogram.counts[0]! += 1e6; // among the four lowest bins
  const range = OBSERVERS.kl.chooseRange({ ...rest, histogram }, qScheme());
  assert.deepEqual(range, OBSERVERS.kl.chooseRange(statisticsFor("kl", x, 2048), qScheme()));
  const all = divergences(histogram.counts, 128);
  const best = all.indexOf(Math.min(...all));
  assert.equal(range.max, (best + 0.5) * 40 / 2048);
  assert.ok(range.max < 10, "the outlier is clipped");
  assert.throws(
    () => OBSERVERS.kl.chooseRange(tensorStatistics([x]), qScheme()),
    /kl reads a histogram of \|x\|/,
  );
});

const PUBLISHED: Readonly<Record<AciqDistribution, readonly number[]>> = {
  laplace: [2.83, 3.89, 5.03, 6.2, 7.41, 8.64, 9.89],
  gauss: [1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92],
};

Deno.test("clippingConstant() has the published values, and the least expected error", () => {
  const densities: Readonly<Record<AciqDistribution, (x: number) => number>> = {
    laplace: (x) => Math.exp(-x) / 2,
    gauss: (x) => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI),
  };
  for (const distribution of ["laplace", "gauss"] as const) {
    PUBLISHED[distribution].forEach((published, i) => {
      const bits = i + 2, found = clippingConstant(distribution, bits);
      // two decimals; the published 3.89 for 3 bits is 3.897
      assert.ok(Math.abs(found - published) < 0.011, `${distribution} ${bits}: ${found}`);
      const expected = (alpha: number) => {
        const width = 1e-3;
        let overload = 0;
        for (let t = width / 2; t < 20; t += width) {
          overload += 2 * t * t * densities[distribution](alpha + t) * width;
        }
        return overload + alpha ** 2 / (3 * 4 ** bits);
      };
      const least = expected(found);
      assert.ok(least < expected(found * 1.01) && least < expected(found * 0.99));
    });
  }
});

Deno.test("aciq clips at the constant times the spread of the values", () => {
  for (const distribution of ["laplace", "gauss"] as const) {
    const name = `aciq_${distribution}` as const;
    forEachCase((x, scheme, label) => {
      const statistics = statisticsFor(name, x, 4096);
      const { min, max } = OBSERVERS[name].chooseRange(statistics, scheme);
      const oneSided = statistics.min >= 0 || statistics.max <= 0;
      const bothSides = scheme.symmetric && (scheme.signed || statistics.min < 0);
      // In the bin of 0, values of one side cannot be told from ReLU's zeros.
      const width = (statistics.max - statistics.min) / 4096;
      const values = oneSided ? x.filter((v) => v !== 0 && Math.abs(v) >= width) : x;
      if (values.length === 0) return assert.deepEqual({ min, max }, { min: 0, max: 0 });
      const mean = (of: (v: number) => number) =>
        values.reduce((sum, v) => sum + of(v), 0) / values.length;
      const centre = oneSided || scheme.symmetric ? 0 : mean((v) => v);
      const spread = distribution === "laplace"
        ? mean((v) => Math.abs(v - centre))
        : Math.sqrt(mean((v) => (v - centre) ** 2));
      const bits = scheme.bits + (oneSided && !bothSides ? 1 : 0);
      const alpha = clippingConstant(distribution, bits) * spread;
      const low = Math.min(0, Math.max(statistics.min, centre - alpha));
      const high = Math.max(0, Math.min(statistics.max, centre + alpha));
      // Values are moved by half a bin at most.
      const tolerance = 0.5 * width * clippingConstant(distribution, bits) + 1e-12;
      assert.ok(Math.abs(min - low) <= tolerance && Math.abs(max - high) <= tolerance, label);
    });
  }
});

function quantileByRank(x: Float64Array, rank: number): number {
  return Float64Array.from(x).sort()[rank]!;
}

Deno.test("ifmr takes the first factor of the least squared error", () => {
  forEachCase((x, scheme, label) => {
    const statistics = statisticsFor("ifmr", x);
    const range = OBSERVERS.ifmr.chooseRange(statistics, scheme);
    // Of fewer than a million values no extreme is left out.
    const min = Math.min(0, quantileByRank(x, 0)),
      max = Math.max(0, quantileByRank(x, x.length - 1));
    if (min === 0 && max === 0) return assert.deepEqual(range, { min: 0, max: 0 });
    const points = pointsOf(statistics);
    const codes = codesOf(scheme, scheme.symmetric ? min : 0);
    let best: ValueRange | undefined, bestError = Infinity;
    for (let i = 0; i <= 60; i++) {
      const factor = 0.7 + i * 0.01;
      let candidate: ValueRange, error: number;
      if (scheme.symmetric) {
        const bound = factor * Math.max(-min, max);
        candidate = { min: min < 0 ? -bound : 0, max: bound };
        error = errorOf(points, bound / codes[1]!, codes, 2);
      } else {
        candidate = max > 0 ? { min, max: factor * max } : { min: factor * min, max };
        const steps = 2 ** scheme.bits - 1, scale = (candidate.max - candidate.min) / steps;
        const below = Math.round(-candidate.min / scale);
        error = errorOf(points, scale, [-below, steps - below], 2);
      }
      // The table of u^2 is off by 3e-7 of the mean error, which may exchange two nearly equal candidates.
      if (error < bestError * (1 - 1e-6)) [best, bestError] = [candidate, error];
      else if (error <= bestError * (1 + 1e-6) && near(candidate, range)) best = candidate;
    }
    assert.ok(near(best!, range), `${label} ${JSON.stringify([best, range])}`);
  });
});

/** Up to the rounding of a quantile, which is a sum of bins. */
function near(a: ValueRange, b: ValueRange): boolean {
  const tolerance = 1e-12 * (a.max - a.min);
  return Math.abs(a.min - b.min) <= tolerance && Math.abs(a.max - b.max) <= tolerance;
}

Deno.test("ifmr leaves one value in a million out at each end before it searches", () => {
  // Ten bins over [0, 10]: 3,000,000 values, two of them far out.
  const counts = Float64Array.of(2_000_000, 999_998, 0, 0, 0, 0, 0, 0, 1, 1);
  const statistics = { min: 0, max: 10, movingMin: 0, movingMax: 10 };
  const histogram = { low: 0, high: 10, counts };
  const { max } = OBSERVERS.ifmr.chooseRange({ ...statistics, histogram }, qScheme(GRIDS.unsigned));
  // The third largest is at the end of the second bin: the candidates lie between 1.4 and 2.6.
  assert.ok(max >= 1.4 && max <= 2.6, `${max}`);
});

Deno.test("hfmg takes the bins of the least error among those the sparser end leaves", () => {
  forEachCase((x, scheme, label) => {
    const statistics = statisticsFor("hfmg", x, 128);
    const { histogram: { low, high, counts } } = statistics;
    const range = OBSERVERS.hfmg.chooseRange(statistics, scheme);
    if (low === high) {
      return assert.deepEqual(range, { min: Math.min(0, low), max: Math.max(0, high) });
    }
    const width = (high - low) / 128;
    const step = Math.max(1, Math.ceil(x.length / 100_000));
    let left = 0, right = 127;
    let best: ValueRange | undefined, bestError = Infinity;
    while (right - left > 32) {
      let fromLeft = left, fromRight = right, sum = 0;
      while (fromLeft < fromRight && sum < step) sum += counts[fromLeft++]!;
      sum = 0;
      while (fromLeft < fromRight && sum < step) sum += counts[fromRight--]!;
      if (right - fromRight >= fromLeft - left) right = fromRight;
      else left = fromLeft;
      const start = low + left * width, end = low + (right + 1) * width;
      const error = densityError(counts, low, width, start, end, 2 ** scheme.bits);
      const candidate = { min: Math.min(0, start), max: Math.max(0, end) };
      // 1e-9: integrals of hundreds of pieces in another order
      if (error < bestError * (1 - 1e-9)) [best, bestError] = [candidate, error];
      else if (error <= bestError * (1 + 1e-9) && near(candidate, range)) best = candidate;
    }
    assert.ok(near(best!, range), `${label} ${JSON.stringify([best, range])}`);
  });
});

/** Integral of the density times the squared distance to the middle of the value's part, piece by piece. */
function densityError(
  counts: Float64Array,
  low: number,
  width: number,
  start: number,
  end: number,
  levels: number,
): number {
  const part = (end - start) / levels;
  const edges = Array.from({ length: levels - 1 }, (_, i) => start + (i + 1) * part);
  let error = 0;
  counts.forEach((count, i) => {
    if (count === 0) return;
    const from = low + i * width, to = from + width;
    const cuts = [from, ...edges.filter((edge) => edge > from && edge < to), to];
    for (let k = 0; k + 1 < cuts.length; k++) {
      const middle = (cuts[k]! + cuts[k + 1]!) / 2;
      const level = start +
        (clamp(Math.floor((middle - start) / part), 0, levels - 1) + 0.5) * part;
      error += count / width * ((cuts[k + 1]! - level) ** 3 - (cuts[k]! - level) ** 3) / 3;
    }
  });
  return error;
}

Deno.test("mse takes the scale of the least L_p error of any exponent", () => {
  for (const p of [1, 2, 4]) {
    const options: ObserverOptions = { p };
    forEachCase((x, scheme, label) => {
      const statistics = statisticsFor("mse", x);
      if (!scheme.symmetric && statistics.min < 0 && statistics.max > 0) return; // observers_test.ts
      const range = OBSERVERS.mse.chooseRange(statistics, scheme, options);
      const bound = Math.max(-statistics.min, statistics.max);
      if (bound === 0) return assert.deepEqual(range, { min: 0, max: 0 });
      const codes = scheme.symmetric
        ? codesOf(scheme, statistics.min)
        : statistics.min >= 0
        ? [0, 2 ** scheme.bits - 1]
        : [1 - 2 ** scheme.bits, 0];
      const most = Math.max(scheme.symmetric ? 0 : -codes[0]!, codes[1]!);
      const points = pointsOf(statistics);
      const errors = Array.from(
        { length: 100 },
        (_, i) => errorOf(points, bound / most * (i + 1) / 100, codes, p),
      );
      const found = Math.round(Math.max(-range.min, range.max) / bound * 100) - 1;
      // The table of |u|^p is off by 3e-7 of the mean error for p >= 2, by more for p = 1, which has a kink.
      const least = Math.min(...errors) + 1e-12 * bound ** p;
      assert.ok(errors[found]! <= least * (1 + 1e-5), `${label} ${p} ${errors[found]! / least}`);
    });
  }
});

Deno.test("percentile takes the quantile of the histogram", () => {
  for (const percentile of [50, 99, 99.9]) {
    forEachCase((x, scheme, label) => {
      const statistics = statisticsFor("percentile", x);
      const { min, max } = OBSERVERS.percentile.chooseRange(statistics, scheme, { percentile });
      const sorted = Float64Array.from(x).sort(), last = x.length - 1;
      const outside = (1 - percentile / 100) * x.length;
      // Between the values around the rank, and a bin: values are spread evenly over theirs.
      const width = (statistics.max - statistics.min) / 512;
      const check = (found: number, values: Float64Array, rank: number) => {
        const low = values[Math.max(0, Math.floor(rank) - 1)]! - width;
        const high = values[Math.min(last, Math.ceil(rank))]! + width;
        assert.ok(
          found >= low && found <= high,
          `${label} ${percentile}: ${found}, ${low}, ${high}`,
        );
      };
      if (statistics.min >= 0) return check(max, sorted, x.length - outside);
      if (statistics.max <= 0) return check(min, sorted, outside);
      if (scheme.symmetric) {
        return check(Math.max(-min, max), x.map(Math.abs).sort(), x.length - outside);
      }
      check(min, sorted, outside / 2);
      check(max, sorted, x.length - outside / 2);
    });
  }
});
