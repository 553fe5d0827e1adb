import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { fakeQuantizeArray, quantizeArray } from "../../src/quant/fake_quantize.ts";

const X = ndArray("float32", [2, 2, 2], Float32Array.of(1, 2, 3, 4, -5, 6, -7, 8));
const PER_CHANNEL = {
  scale: Float32Array.of(1, 2),
  zeroPoint: Int32Array.of(0, 1),
  quantMin: Int32Array.of(-2, 0),
  quantMax: Int32Array.of(5, 3),
};

Deno.test("quantizeArray() uses the parameters of each element's channel", () => {
  const codes = quantizeArray(X, PER_CHANNEL, 1);
  assert.deepEqual([...codes.data], [1, 2, 3, 3, -2, 5, 0, 3]);
  assert.deepEqual(codes.shape, [2, 2, 2]);
});

Deno.test("fakeQuantizeArray() gives the values of the codes", () => {
  assert.deepEqual([...fakeQuantizeArray(X, PER_CHANNEL, 2).data], [1, 2, 3, 4, -2, 4, -2, 4]);
});

Deno.test("fakeQuantizeArray() per tensor uses one set everywhere", () => {
  const perTensor = {
    scale: Float32Array.of(2),
    zeroPoint: Int32Array.of(0),
    quantMin: Int32Array.of(-2),
    quantMax: Int32Array.of(1),
  };
  assert.deepEqual([...fakeQuantizeArray(X, perTensor).data], [0, 2, 2, 2, -4, 2, -4, 2]);
});

Deno.test("quantizeArray() rejects parameters that do not fit the axis", () => {
  const three = { ...PER_CHANNEL, scale: Float32Array.of(1, 2, 3) };
  assert.throws(() => quantizeArray(X, three, 0), /3 scales: expected 1 or 2/);
});
