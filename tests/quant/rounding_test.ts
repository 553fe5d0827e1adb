import assert from "node:assert/strict";
import { Rng } from "../../src/core/rng.ts";
import {
  dequantizeFloat32,
  dequantizeValue,
  fakeQuantizeFloat32,
  fakeQuantizeValue,
  quantizeFloat32,
  quantizeValue,
  roundHalfEven,
} from "../../src/quant/rounding.ts";
import goldens from "./goldens/quantize.json" with { type: "json" };

const UNSIGNED = { scale: 0.5, zeroPoint: 3, quantMin: 0, quantMax: 15 };

Deno.test("roundHalfEven() takes halves to the even integer", () => {
  const halves = [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 0.49999999999999994, 1e15 + 0.5];
  const expected = [-4, -2, -2, 0, 0, 2, 2, 4, 0, 1e15];
  halves.forEach((x, i) => assert.equal(roundHalfEven(x), expected[i]));
});

Deno.test("roundHalfEven() is exact for large numbers, infinities and NaN", () => {
  const half = 2 ** 51 + 0.5;
  assert.equal(roundHalfEven(half), 2 ** 51);
  assert.equal(roundHalfEven(half + 1), 2 ** 51 + 2);
  assert.equal(roundHalfEven(-half - 1), -(2 ** 51) - 2);
  for (const x of [2 ** 52 + 1, -(2 ** 53), 1e300, Infinity, -Infinity]) {
    assert.equal(roundHalfEven(x), x);
  }
  assert.ok(Number.isNaN(roundHalfEven(NaN)));
});

Deno.test("roundHalfEven() agrees with Math.round away from halves", () => {
  const rng = new Rng(1);
  for (let i = 0; i < 2000; i++) {
    const x = rng.normal() * 10 ** rng.integer(9);
    if (Math.abs(x % 1) !== 0.5) assert.equal(roundHalfEven(x), Math.round(x) + 0);
  }
});

Deno.test("quantizeFloat32() and dequantizeFloat32() equal NumPy's float32 bit for bit", () => {
  for (const golden of goldens) {
    golden.x.forEach((x, i) => {
      assert.equal(quantizeFloat32(x, golden), golden.codes[i], `code of ${x} at ${golden.scale}`);
      assert.equal(dequantizeFloat32(golden.codes[i]!, golden), golden.values[i]! + 0);
      assert.equal(fakeQuantizeFloat32(x, golden), golden.values[i]! + 0);
    });
  }
});

Deno.test("quantizeFloat32() rounds the quotient to float32 before it rounds to a code", () => {
  // 0.35 / 0.1 is 3.4999999 in float64 and exactly 3.5 in float32.
  const qparams = { scale: Math.fround(0.1), zeroPoint: 0, quantMin: -8, quantMax: 7 };
  const x = Math.fround(0.35);
  assert.equal(quantizeValue(x, qparams), 3);
  assert.equal(quantizeFloat32(x, qparams), 4);
});

Deno.test("quantizeValue() saturates and adds the zero point after rounding", () => {
  assert.equal(quantizeValue(0, UNSIGNED), 3);
  assert.equal(quantizeValue(0.25, UNSIGNED), 3); // 0.5 rounds to 0; 3.5 would round to 4.
  assert.equal(quantizeValue(1e9, UNSIGNED), 15);
  assert.equal(quantizeValue(-Infinity, UNSIGNED), 0);
  assert.equal(fakeQuantizeValue(-5, UNSIGNED), -1.5);
});

Deno.test("quantizeValue() inverts dequantizeValue() on every code", () => {
  const rng = new Rng(2);
  for (let i = 0; i < 50; i++) {
    const qparams = {
      scale: Math.exp(rng.normal()),
      zeroPoint: rng.integer(16),
      quantMin: 0,
      quantMax: 15,
    };
    for (let code = 0; code <= 15; code++) {
      assert.equal(quantizeValue(dequantizeValue(code, qparams), qparams), code);
      assert.equal(quantizeFloat32(dequantizeFloat32(code, qparams), qparams), code);
    }
  }
});

Deno.test("dequantizeFloat32() rounds int32 codes to float32 first", () => {
  // 16777217 = 2^24 + 1 becomes 2^24; the exact product with 3 would be 50331651, and 50331652 in float32.
  assert.equal(dequantizeFloat32(16777217, { scale: 3, zeroPoint: 0 }), 50331648);
});
