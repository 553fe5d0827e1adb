import assert from "node:assert/strict";
import { ndArray, transpose } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { channelQParams } from "../../src/quant/qparams.ts";
import { fakeQuantizeValue } from "../../src/quant/rounding.ts";
import { searchWeightQParams, type WeightGrid } from "../../src/quant/weight_search.ts";
import goldens from "./goldens/weight_search.json" with { type: "json" };

const WEIGHT = ndArray("float32", goldens.shape, Float32Array.from(goldens.weight));

function normalWeight(seed: number, shape: number[]) {
  const rng = new Rng(seed);
  const size = shape.reduce((a, b) => a * b);
  return ndArray("float32", shape, Float32Array.from({ length: size }, () => rng.normal()));
}

Deno.test("searchWeightQParams() finds the least error of NumPy's exhaustive search", () => {
  for (const golden of goldens.results) {
    const q = searchWeightQParams(WEIGHT, 0, {
      bits: golden.bits,
      grid: golden.grid as WeightGrid,
    });
    for (let c = 0; c < 6; c++) {
      const channel = channelQParams(q, c);
      let error = 0;
      for (const w of WEIGHT.data.subarray(27 * c, 27 * (c + 1))) {
        error += Math.abs(fakeQuantizeValue(w, channel) - w) ** 2.4;
      }
      // The table of |u|^p is off by 3e-7 of the mean error, which may exchange two nearly equal candidates.
      assert.ok(error <= golden.error[c]! * (1 + 3e-6), `${golden.bits} ${golden.grid} ${c}`);
      assert.ok(error >= golden.error[c]! * (1 - 1e-9), "better than exhaustive");
      assert.equal(channel.quantMin, golden.quantMin[c]);
      // The candidates are 1 % apart or more; the same one has been taken up to the rounding of float32.
      assert.ok(Math.abs(channel.scale / golden.scale[c]! - 1) < 1e-6);
    }
  }
});

Deno.test("searchWeightQParams() gives grids of 2^bits codes that hold 0 and fit int8", () => {
  for (const bits of [2, 3, 4, 6, 8]) {
    for (const grid of ["symmetric", "flip", "offset"] as const) {
      for (const observer of ["mse", "minmax"] as const) {
        const q = searchWeightQParams(WEIGHT, 0, { bits, grid, observer });
        for (let c = 0; c < 6; c++) {
          assert.equal(q.quantMax[c]! - q.quantMin[c]!, 2 ** bits - 1);
          assert.ok(q.quantMin[c]! <= 0 && q.quantMax[c]! >= 0);
          assert.ok(q.quantMin[c]! >= -128 && q.quantMax[c]! <= 127);
          assert.equal(q.zeroPoint[c], 0);
        }
      }
    }
  }
});

Deno.test("searchWeightQParams() flip: mirrored weights get the mirrored grid", () => {
  // 256 weights a channel need both ends of the grid; with an end to spare both grids are equal.
  const weight = normalWeight(5, [8, 256]);
  const mirrored = ndArray("float32", [8, 256], weight.data.map((w) => -w));
  const options = { bits: 3, grid: "flip" } as const;
  const a = searchWeightQParams(weight, 0, options), b = searchWeightQParams(mirrored, 0, options);
  assert.deepEqual(a.scale, b.scale);
  assert.deepEqual([...a.quantMin], [...b.quantMax].map((code) => -code));
  assert.ok(new Set(a.quantMin).size === 2, "both grids occur");
});

Deno.test("searchWeightQParams() takes the first of equal grids, whatever it tried ahead", () => {
  // {-1 .. 2} and {-2 .. 1} have the same error here.
  const weight = ndArray("float32", [2, 3], Float32Array.of(-1, 0, 1, -1, 0, 1));
  assert.deepEqual([...searchWeightQParams(weight, 0, { bits: 2, grid: "offset" }).quantMin], [
    -1,
    -1,
  ]);
});

Deno.test("searchWeightQParams() takes any axis, and -1 for one scale", () => {
  const byOutput = searchWeightQParams(WEIGHT, 0, { bits: 4 });
  const moved = searchWeightQParams(transpose(WEIGHT, [1, 0, 2, 3]), 1, { bits: 4 });
  assert.deepEqual(moved, byOutput);
  const flat = ndArray("float32", [1, 162], WEIGHT.data);
  assert.deepEqual(
    searchWeightQParams(WEIGHT, -1, { bits: 4 }),
    searchWeightQParams(flat, 0, { bits: 4 }),
  );
});

Deno.test("searchWeightQParams() minmax clips nothing", () => {
  for (const grid of ["symmetric", "flip", "offset"] as const) {
    const q = searchWeightQParams(WEIGHT, 0, { bits: 4, grid, observer: "minmax" });
    WEIGHT.data.forEach((w, i) => {
      const { scale, quantMin, quantMax } = channelQParams(q, Math.floor(i / 27));
      // 1e-6 for the rounding of the scale to float32
      assert.ok(w / scale <= quantMax + 1e-6 && w / scale >= quantMin - 1e-6, grid);
    });
  }
});

Deno.test("searchWeightQParams() minmax takes the smallest scale of the grids", () => {
  const weight = ndArray("float32", [1, 3], Float32Array.of(0.5, 3, -1));
  const scaleOf = (grid: WeightGrid) =>
    searchWeightQParams(weight, 0, { bits: 3, grid, observer: "minmax" }).scale[0];
  assert.equal(scaleOf("symmetric"), 1);
  assert.equal(scaleOf("flip"), 0.75); // {-3 .. 4}
  assert.equal(scaleOf("offset"), Math.fround(3 / 5)); // {-2 .. 5}
});

Deno.test("searchWeightQParams() gives a channel of zeros the mean scale of the others", () => {
  const data = normalWeight(6, [4, 16]).data;
  data.fill(0, 16, 32);
  const q = searchWeightQParams(ndArray("float32", [4, 16], data), 0, { bits: 4 });
  assert.equal(q.scale[1], Math.fround((q.scale[0]! + q.scale[2]! + q.scale[3]!) / 3));
  const zeros = ndArray("float32", [2, 4], new Float32Array(8));
  for (const observer of ["mse", "minmax"] as const) {
    assert.deepEqual([...searchWeightQParams(zeros, 0, { bits: 2, observer }).scale], [1, 1]);
  }
});

Deno.test("searchWeightQParams() has the default p = 2.4 and 80 candidates, and takes others", () => {
  const defaults = searchWeightQParams(WEIGHT, 0, { bits: 2 });
  assert.deepEqual(
    searchWeightQParams(WEIGHT, 0, { bits: 2, p: 2.4, candidates: 80, grid: "flip" }),
    defaults,
  );
  // A higher p clips less: the outlier of channel 5 then sets a larger scale.
  assert.ok(searchWeightQParams(WEIGHT, 0, { bits: 2, p: 8 }).scale[5]! > defaults.scale[5]!);
});

Deno.test("searchWeightQParams() counts a weight of importance n as n equal weights", () => {
  const weight = normalWeight(9, [2, 12]);
  const importance = Float64Array.from({ length: 24 }, (_, i) => i % 4);
  const repeated = [0, 1].flatMap((c) =>
    Array.from(weight.data.subarray(12 * c, 12 * c + 12), (w, i) => Array<number>(i % 4).fill(w))
      .flat()
  );
  const longer = ndArray("float32", [2, 18], Float32Array.from(repeated));
  // The largest weight counts, so both search the same scales.
  for (const c of [0, 1]) {
    const values = weight.data.subarray(12 * c, 12 * c + 12).map(Math.abs);
    assert.notEqual(values.indexOf(Math.max(...values)) % 4, 0);
  }
  for (const [axis, grid] of [[0, "flip"], [0, "offset"], [-1, "symmetric"]] as const) {
    const options = { bits: 3, grid, p: 2 } as const;
    assert.deepEqual(
      searchWeightQParams(weight, axis, { ...options, importance }),
      searchWeightQParams(longer, axis, options),
    );
  }
});

Deno.test("searchWeightQParams() names the channel that is not finite", () => {
  const weight = ndArray("float32", [2, 2], Float32Array.of(1, 2, 3, NaN));
  assert.throws(() => searchWeightQParams(weight, 0, { bits: 4 }), /channel 1 holds NaN/);
  assert.throws(() => searchWeightQParams(WEIGHT, 0, { bits: 4, candidates: 0 }), RangeError);
  assert.throws(() => searchWeightQParams(WEIGHT, 0, { bits: 9 }), /9 bits/);
});
