import assert from "node:assert/strict";
import { Rng } from "../../src/core/rng.ts";
import {
  activationQParams,
  channelLayout,
  channelQParams,
  chooseQParams,
  SCALE_FLOOR,
} from "../../src/quant/qparams.ts";
import { dequantizeValue, fakeQuantizeValue } from "../../src/quant/rounding.ts";
import { qScheme } from "../../src/quant/scheme.ts";

const AFFINE = qScheme({ signed: false, symmetric: false });
const one = (min: number, max: number) => ({ min: [min], max: [max] });

Deno.test("chooseQParams() affine: 0 is exact and the range is covered", () => {
  const rng = new Rng(3);
  for (let i = 0; i < 200; i++) {
    const scheme = qScheme({
      bits: 2 + rng.integer(7),
      signed: rng.integer(2) === 1,
      symmetric: false,
    });
    const [a, b] = [rng.normal(), rng.normal()].sort((x, y) => x - y) as [number, number];
    const q = channelQParams(chooseQParams(one(a, b), scheme), 0);
    assert.equal(fakeQuantizeValue(0, q), 0);
    // Rounding the zero point moves the range by half a step; the rest is float32 rounding of the scale.
    const slack = q.scale * 0.5001;
    assert.ok(dequantizeValue(q.quantMin, q) <= Math.min(a, 0) + slack);
    assert.ok(dequantizeValue(q.quantMax, q) >= Math.max(b, 0) - slack);
    assert.ok(q.zeroPoint >= q.quantMin && q.zeroPoint <= q.quantMax);
  }
});

Deno.test("chooseQParams() affine widens a range without 0", () => {
  const above = channelQParams(chooseQParams(one(1, 2), AFFINE), 0);
  assert.deepEqual(above, {
    scale: Math.fround(2 / 255),
    zeroPoint: 0,
    quantMin: 0,
    quantMax: 255,
  });
  const below = channelQParams(chooseQParams(one(-2, -1), AFFINE), 0);
  assert.deepEqual(below, {
    scale: Math.fround(2 / 255),
    zeroPoint: 255,
    quantMin: 0,
    quantMax: 255,
  });
});

Deno.test("chooseQParams() affine takes the zero point from the float32 scale", () => {
  // 1.08 / (3.6 / 255) is 76.5 and rounds to 76; by the scale in float32 it is a little more.
  assert.equal(chooseQParams(one(-1.08, 2.52), AFFINE).zeroPoint[0], 77);
});

Deno.test("chooseQParams() symmetric: scale = max|x| / quantMax, zero point 0", () => {
  const q = channelQParams(chooseQParams(one(-3, 1), qScheme({ bits: 4 })), 0);
  assert.deepEqual(q, { scale: Math.fround(3 / 7), zeroPoint: 0, quantMin: -8, quantMax: 7 });
});

Deno.test("chooseQParams() symmetric unsigned takes signed codes only below zero", () => {
  const scheme = qScheme({ bits: 4, signed: false });
  const q = chooseQParams({ min: [0, -1], max: [3, 3] }, scheme);
  assert.deepEqual(channelQParams(q, 0), {
    scale: Math.fround(3 / 15),
    zeroPoint: 0,
    quantMin: 0,
    quantMax: 15,
  });
  assert.deepEqual(channelQParams(q, 1), {
    scale: Math.fround(3 / 7),
    zeroPoint: 0,
    quantMin: -8,
    quantMax: 7,
  });
});

Deno.test("chooseQParams() gives an empty range the scale floor", () => {
  for (const scheme of [AFFINE, qScheme(), qScheme({ signed: false })]) {
    assert.equal(chooseQParams(one(0, 0), scheme).scale[0], SCALE_FLOOR);
  }
});

Deno.test("chooseQParams() rejects ranges that are not finite or not ordered", () => {
  for (const [min, max] of [[NaN, 1], [0, Infinity], [1, 0]] as const) {
    assert.throws(() => chooseQParams(one(min, max), AFFINE), RangeError);
  }
  assert.throws(() => chooseQParams({ min: [0, 0], max: [1] }, AFFINE), /channel 1/);
});

Deno.test("activationQParams() needs one scale", () => {
  const q = chooseQParams(one(0, 6), AFFINE);
  assert.deepEqual(activationQParams(q, 8), { ...channelQParams(q, 0), bits: 8 });
  assert.throws(
    () => activationQParams(chooseQParams({ min: [0, 0], max: [1, 1] }, AFFINE), 8),
    /2 scales/,
  );
});

Deno.test("channelLayout() splits a shape around its axis", () => {
  assert.deepEqual(channelLayout([2, 3, 5], 1), { outer: 2, channels: 3, inner: 5 });
  assert.deepEqual(channelLayout([2, 3, 5], -1), { outer: 1, channels: 1, inner: 30 });
  assert.throws(() => channelLayout([2, 3], 2), /axis 2/);
  assert.throws(() => channelLayout([2, 3], 1, 2), /expected 1 or 3/);
});
