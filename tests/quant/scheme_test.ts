import assert from "node:assert/strict";
import { qScheme, quantRange } from "../../src/quant/scheme.ts";

Deno.test("qScheme() defaults to signed symmetric 8 bits per tensor", () => {
  assert.deepEqual(qScheme(), {
    bits: 8,
    signed: true,
    symmetric: true,
    narrowRange: false,
    granularity: { kind: "perTensor" },
  });
});

Deno.test("qScheme() rejects bits outside 2..8", () => {
  assert.throws(
    () => qScheme({ bits: 1 }),
    new RangeError("Cannot quantize to 1 bit: bits must be 2..8"),
  );
  for (const bits of [0, 9, 2.5, NaN]) assert.throws(() => qScheme({ bits }), RangeError);
});

Deno.test("qScheme() rejects a narrow unsigned range and a negative axis", () => {
  assert.throws(() => qScheme({ signed: false, narrowRange: true }), /narrow range/);
  assert.throws(() => qScheme({ granularity: { kind: "perChannel", axis: -1 } }), /axis -1/);
});

Deno.test("quantRange() covers 2^bits codes, one less when narrow", () => {
  assert.deepEqual(quantRange(qScheme()), { quantMin: -128, quantMax: 127 });
  assert.deepEqual(quantRange(qScheme({ narrowRange: true })), { quantMin: -127, quantMax: 127 });
  for (let bits = 2; bits <= 8; bits++) {
    for (const signed of [true, false]) {
      const { quantMin, quantMax } = quantRange(qScheme({ bits, signed }));
      assert.equal(quantMax - quantMin + 1, 2 ** bits);
      assert.equal(quantMin, signed ? -quantMax - 1 : 0);
    }
  }
});
