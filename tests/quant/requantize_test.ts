import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import {
  fixedPointMultiplier,
  multiplyFixedPoint,
  requantize,
  requantizeFixedPoint,
} from "../../src/quant/requantize.ts";
import { roundHalfEven } from "../../src/quant/rounding.ts";

const OUTPUT = { scale: 0.5, zeroPoint: 2, quantMin: 0, quantMax: 15 };

/** [1, 2, n] accumulators of two channels. */
function accumulatorsOf(first: number[], second: number[], scale = [0.25, 1]) {
  return {
    accumulators: ndArray("int32", [1, 2, first.length], Int32Array.from([...first, ...second])),
    scale: Float32Array.from(scale),
    axis: 1,
  };
}

Deno.test("requantize() scales, rounds half to even, adds the zero point and saturates", () => {
  const input = accumulatorsOf([1, 3, -1, 99], [1, -1, -9, 6]);
  const expected = [2, 4, 2, 15, 4, 0, 0, 14];
  assert.deepEqual([...requantize(input, OUTPUT).data], expected);
  assert.deepEqual([...requantizeFixedPoint(input, OUTPUT).data], expected);
});

Deno.test("requantize() with relu stops at the zero point", () => {
  const input = accumulatorsOf([-99, 4], [-1, 1]);
  for (const method of [requantize, requantizeFixedPoint]) {
    assert.deepEqual([...method(input, OUTPUT, { relu: true }).data], [2, 4, 2, 4]);
  }
});

Deno.test("requantize() computes in float32", () => {
  // 35 * fround(0.01) / fround(0.1) is exactly 3.5 in float32 and less in float64.
  const input = accumulatorsOf([35], [0], [0.01, 1]);
  const output = { scale: Math.fround(0.1), zeroPoint: 0, quantMin: -8, quantMax: 7 };
  assert.equal(requantize(input, output).data[0], 4);
  assert.equal(requantizeFixedPoint(input, output).data[0], 3);
});

Deno.test("requantizeFixedPoint() equals exact rounding, and float32 but for near ties", () => {
  const rng = new Rng(1);
  const data = () => Array.from({ length: 500 }, () => Math.round(rng.normal() * 3e4));
  const input = accumulatorsOf(data(), data(), [0.000123, 0.000321]);
  const output = { scale: 0.0567, zeroPoint: 128, quantMin: 0, quantMax: 255 };
  const fixed = requantizeFixedPoint(input, output).data, float = requantize(input, output).data;
  let different = 0;
  input.accumulators.data.forEach((accumulator, i) => {
    const exact = accumulator * input.scale[i < 500 ? 0 : 1]! / output.scale;
    assert.equal(fixed[i], Math.max(0, Math.min(255, roundHalfEven(exact) + 128)));
    if (fixed[i] !== float[i]) {
      different++;
      // float32 is off by 2^-23 of the value in all, below 1e-4 here
      assert.ok(Math.abs(Math.abs(exact - Math.trunc(exact)) - 0.5) < 1e-4);
    }
  });
  assert.ok(different < 5);
});

Deno.test("requantize() takes one scale for all channels", () => {
  const input = { ...accumulatorsOf([2], [4]), scale: Float32Array.of(0.5) };
  assert.deepEqual([...requantize(input, OUTPUT).data], [4, 6]);
  assert.deepEqual([...requantizeFixedPoint(input, OUTPUT).data], [4, 6]);
});

Deno.test("fixedPointMultiplier() is within 2^-31 and normalised", () => {
  const rng = new Rng(2);
  const multipliers = [
    1,
    0.5,
    0.9999999999,
    1 - 2 ** -53,
    1 + 2 ** -52,
    2 ** -31,
    3,
    2 ** 30,
    1e-30,
  ];
  for (let i = 0; i < 500; i++) multipliers.push(Math.exp(4 * rng.normal()));
  for (const multiplier of multipliers) {
    const { mantissa, shift } = fixedPointMultiplier(multiplier);
    assert.ok(Number.isInteger(mantissa) && mantissa >= 2 ** 30 && mantissa < 2 ** 31);
    assert.ok(Math.abs(mantissa * 2 ** -shift / multiplier - 1) <= 2 ** -31);
  }
  assert.deepEqual(fixedPointMultiplier(0), { mantissa: 0, shift: 0 });
});

Deno.test("fixedPointMultiplier() rejects what it cannot hold", () => {
  for (const multiplier of [-1, NaN, Infinity, 2 ** 31]) {
    assert.throws(() => fixedPointMultiplier(multiplier), RangeError);
  }
});

Deno.test("multiplyFixedPoint() rounds exact halves to even, of both signs", () => {
  const half = fixedPointMultiplier(0.5);
  const products = [1, 3, 5, -1, -3, -5, 4, -4].map((value) => multiplyFixedPoint(value, half));
  assert.deepEqual(products, [0, 2, 2, 0, -2, -2, 2, -2]);
  assert.equal(multiplyFixedPoint(2147483647, fixedPointMultiplier(1)), 2147483647);
  assert.equal(multiplyFixedPoint(-2147483648, fixedPointMultiplier(2)), -4294967296);
});
