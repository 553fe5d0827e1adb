import assert from "node:assert/strict";
import { Rng } from "../../src/core/rng.ts";
import { type ObserverName, OBSERVERS } from "../../src/quant/observers/observers.ts";
import type { ObserverOptions } from "../../src/quant/observers/observer.ts";
import { channelQParams, chooseQParams } from "../../src/quant/qparams.ts";
import { fakeQuantizeValue, type ScalarQParams } from "../../src/quant/rounding.ts";
import { qScheme, type QSchemeOptions } from "../../src/quant/scheme.ts";
import { tensorStatistics } from "../../src/quant/statistics.ts";

const UNSIGNED = { signed: false } as const;
const AFFINE = { signed: false, symmetric: false } as const;

function qparamsOf(
  name: ObserverName,
  x: ArrayLike<number>,
  scheme: QSchemeOptions,
  options?: ObserverOptions,
): ScalarQParams {
  const { min, max } = OBSERVERS[name].chooseRange(tensorStatistics([x]), qScheme(scheme), options);
  return channelQParams(chooseQParams({ min: [min], max: [max] }, qScheme(scheme)), 0);
}

function samples(seed: number, size: number, map: (x: number) => number): Float64Array {
  const rng = new Rng(seed);
  return Float64Array.from({ length: size }, () => map(rng.normal()));
}

function lpError(x: ArrayLike<number>, q: ScalarQParams, p = 2.4): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += Math.abs(fakeQuantizeValue(x[i]!, q) - x[i]!) ** p;
  return sum;
}

const RELU = samples(1, 5000, (x) => Math.max(0, x) ** 2);
const TWO_SIDED = samples(2, 5000, (x) => x > 0 ? 3 * x : x);
const LOG_NORMAL = samples(4, 5000, Math.exp);
const SWISH = samples(3, 5000, (x) => x / (1 + Math.exp(-3 * x)));

Deno.test("OBSERVERS are keyed by their names", () => {
  for (const [key, observer] of Object.entries(OBSERVERS)) assert.equal(observer.name, key);
});

Deno.test("OBSERVERS without a histogram do not read it", () => {
  const statistics = tensorStatistics([[-1, 2], [-3, 4]]);
  const unread = {
    ...statistics,
    get histogram(): never {
      throw new Error("read");
    },
  };
  for (const observer of Object.values(OBSERVERS)) {
    const choose = () => observer.chooseRange(unread, qScheme());
    if (observer.needsHistogram) assert.throws(choose, /read/);
    else assert.doesNotThrow(choose);
  }
});

Deno.test("min_max takes the range, moving_average the averaged one", () => {
  const statistics = tensorStatistics([[-1, 2], [-3, 4]], { momentum: 0.5 });
  assert.deepEqual(OBSERVERS.min_max.chooseRange(statistics, qScheme()), { min: -3, max: 4 });
  assert.deepEqual(OBSERVERS.moving_average.chooseRange(statistics, qScheme()), {
    min: -2,
    max: 3,
  });
});

Deno.test("every observer gives a tensor without negative values zero point 0", () => {
  for (const name of Object.keys(OBSERVERS) as ObserverName[]) { // the keys of the table itself
    for (const scheme of [UNSIGNED, AFFINE]) {
      const q = qparamsOf(name, RELU, { bits: 4, ...scheme });
      assert.deepEqual([q.zeroPoint, q.quantMin, q.quantMax], [0, 0, 15], name);
    }
  }
});

Deno.test("every observer takes a tensor of zeros", () => {
  for (const name of Object.keys(OBSERVERS) as ObserverName[]) { // the keys of the table itself
    for (const scheme of [UNSIGNED, AFFINE, {}]) {
      assert.equal(qparamsOf(name, [0, 0, 0], scheme).scale, 2 ** -23, name);
    }
  }
});

Deno.test("percentile leaves the stated share outside", () => {
  const sorted = Float64Array.from(RELU).sort();
  const { scale, quantMax } = qparamsOf("percentile", RELU, UNSIGNED, { percentile: 99 });
  const outside = sorted.filter((x) => x > scale * quantMax).length;
  // A bin of 1 / 2048 of the range holds a few values out here.
  assert.ok(Math.abs(outside - 50) <= 3, `${outside}`);
});

Deno.test("percentile of a symmetric scheme is the quantile of |x|", () => {
  const { scale } = qparamsOf("percentile", TWO_SIDED, { bits: 8 }, { percentile: 90 });
  const outside = TWO_SIDED.filter((x) => Math.abs(x) > scale * 127).length;
  // The bins of both signs, about 8 values each, are cut at the bound.
  assert.ok(Math.abs(outside - 500) <= 8, `${outside}`);
});

Deno.test("percentile of an affine scheme cuts both tails alike", () => {
  const statistics = tensorStatistics([TWO_SIDED]);
  const { min, max } = OBSERVERS.percentile.chooseRange(statistics, qScheme(AFFINE), {
    percentile: 98,
  });
  const below = TWO_SIDED.filter((x) => x < min).length,
    above = TWO_SIDED.filter((x) => x > max).length;
  assert.ok(Math.abs(below - 50) <= 4 && Math.abs(above - 50) <= 4, `${below} ${above}`);
});

Deno.test("percentile 100 is min-max, 99.99 the default, and others are rejected", () => {
  const statistics = tensorStatistics([TWO_SIDED]), scheme = qScheme(AFFINE);
  const all = OBSERVERS.percentile.chooseRange(statistics, scheme, { percentile: 100 });
  const range = OBSERVERS.min_max.chooseRange(statistics, scheme);
  // interpolation up to the last edge, in float64
  assert.ok(Math.abs(all.min - range.min) < 1e-12 && Math.abs(all.max - range.max) < 1e-12);
  assert.deepEqual(
    OBSERVERS.percentile.chooseRange(statistics, scheme),
    OBSERVERS.percentile.chooseRange(statistics, scheme, { percentile: 99.99 }),
  );
  assert.throws(
    () => OBSERVERS.percentile.chooseRange(statistics, scheme, { percentile: 0 }),
    /expected a number in \(0, 100\]/,
  );
});

Deno.test("mse is as good as the best of 100 scales tried on the samples themselves", () => {
  const schemes = [
    [RELU, UNSIGNED, "unsigned"],
    [RELU, {}, "signed"],
    [TWO_SIDED, {}, "symmetric"],
    [RELU.map((x) => -x), AFFINE, "negative"],
    [LOG_NORMAL.map((x) => -x - 5), AFFINE, "below -5"],
    [LOG_NORMAL.map((x) => x + 5), AFFINE, "above 5"],
  ] as const;
  for (const bits of [2, 4, 8]) {
    for (const [x, options, label] of schemes) {
      const widest = qparamsOf("min_max", x, { bits, ...options });
      let best = Infinity;
      for (let k = 1; k <= 100; k++) {
        best = Math.min(best, lpError(x, { ...widest, scale: widest.scale * k / 100 }));
      }
      const found = lpError(x, qparamsOf("mse", x, { bits, ...options }));
      // 2048 bins move a value by up to 1/16 of an 8-bit step and the optimum is flat, so it may fall a candidate aside.
      assert.ok(found <= best * (bits === 8 ? 1.05 : 1.005), `${bits} ${label} ${found / best}`);
    }
  }
});

Deno.test("mse affine is as good as every scale with every zero point", () => {
  for (const bits of [2, 4, 5]) {
    for (const x of [TWO_SIDED, SWISH]) {
      const widest = qparamsOf("min_max", x, { bits, ...AFFINE });
      let best = Infinity;
      for (let k = 2; k <= 100; k += 2) {
        for (let zeroPoint = 0; zeroPoint <= widest.quantMax; zeroPoint++) {
          best = Math.min(
            best,
            lpError(x, { ...widest, scale: widest.scale * k / 100, zeroPoint }),
          );
        }
      }
      const found = lpError(x, qparamsOf("mse", x, { bits, ...AFFINE }));
      // the histogram's bins, as above
      assert.ok(found <= best * 1.01, `${bits} ${found / best}`);
    }
  }
});

Deno.test("mse affine finds the zero point on either side of its coarse grid's", () => {
  const skewed = samples(7, 5000, (x) => x > 0 ? 3 * x : x);
  for (const x of [skewed, skewed.map((value) => -value)]) {
    const q = qparamsOf("mse", x, { bits: 6, ...AFFINE });
    let best = Infinity;
    for (let zeroPoint = 0; zeroPoint <= q.quantMax; zeroPoint++) {
      best = Math.min(best, lpError(x, { ...q, zeroPoint }));
    }
    // The bins cost 0.1 % here; the coarse grid alone costs 1.5 %.
    assert.ok(lpError(x, q) <= best * 1.005, `${lpError(x, q) / best}`);
  }
});

Deno.test("mse does not mind how many zeros ReLU has left", () => {
  const x = samples(8, 5000, (x) => x > 1.5 ? x - 1.5 : 0);
  // Bins as wide as a step: at the centre of their bin the zeros would draw the grid away.
  const statistics = tensorStatistics([x], { bins: 256 });
  const more = structuredClone(statistics);
  more.histogram.counts[0]! *= 100;
  const fewer = structuredClone(statistics);
  fewer.histogram.counts[0] = 0;
  const range = OBSERVERS.mse.chooseRange(statistics, qScheme(UNSIGNED));
  assert.deepEqual(OBSERVERS.mse.chooseRange(more, qScheme(UNSIGNED)), range);
  assert.deepEqual(OBSERVERS.mse.chooseRange(fewer, qScheme(UNSIGNED)), range);
});

Deno.test("mse beats min-max and widens with p", () => {
  for (const options of [UNSIGNED, AFFINE, {}]) {
    const scheme = { bits: 3, ...options };
    assert.ok(
      lpError(RELU, qparamsOf("mse", RELU, scheme)) <
        lpError(RELU, qparamsOf("min_max", RELU, scheme)),
    );
    const narrow = qparamsOf("mse", RELU, scheme, { p: 1 }),
      wide = qparamsOf("mse", RELU, scheme, { p: 6 });
    assert.ok(narrow.scale < wide.scale);
  }
  assert.throws(() => qparamsOf("mse", RELU, {}, { candidates: 0 }), /candidates must be/);
  assert.throws(() => qparamsOf("mse", RELU, {}, { p: 0 }), /p must be > 0/);
});

Deno.test("mse with one candidate is min-max", () => {
  for (const options of [UNSIGNED, {}]) {
    assert.deepEqual(
      qparamsOf("mse", RELU, options, { candidates: 1 }),
      qparamsOf("min_max", RELU, options),
    );
  }
});
