import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { packBias, packConvWeight, packDepthwiseWeight } from "../../src/quant/packed_codes.ts";

const bytesOf = ({ words }: { readonly words: Uint32Array<ArrayBuffer> }) => [
  ...new Int8Array(words.buffer),
];

Deno.test("packConvWeight() puts 4 input channels in a word, output channels side by side", () => {
  const codes = ndArray("int8", [2, 1, 1, 5], Int8Array.of(1, 2, 3, 4, 5, -1, -2, -3, -4, -5));
  const packed = packConvWeight(codes, 1);
  const none = [0, 0, 0, 0];
  assert.deepEqual(bytesOf(packed), [
    ...[1, 2, 3, 4, -1, -2, -3, -4, ...none, ...none],
    ...[5, 0, 0, 0, -5, 0, 0, 0, ...none, ...none],
  ]);
  assert.deepEqual([...packed.sums], [15, -15]);
  assert.equal(packed.group, 1);
});

Deno.test("packConvWeight() merges groups until they fill whole words", () => {
  const groupsOf = (outputs: number, inputs: number, group: number) =>
    packConvWeight(ndArray("int8", [outputs, 1, 1, inputs], new Int8Array(outputs * inputs)), group)
      .group;
  assert.equal(groupsOf(16, 4, 4), 4);
  assert.equal(groupsOf(16, 2, 8), 4);
  assert.equal(groupsOf(18, 2, 6), 1);
  const two = packConvWeight(ndArray("int8", [2, 1, 1, 1], Int8Array.of(7, 9)), 2);
  assert.deepEqual(bytesOf(two).slice(0, 8), [7, 0, 0, 0, 0, 9, 0, 0]);
});

Deno.test("packDepthwiseWeight() pads the channels of every tap", () => {
  const packed = packDepthwiseWeight(ndArray("int8", [1, 2, 3], Int8Array.of(1, 2, 3, 4, 5, 6)));
  assert.deepEqual(bytesOf(packed), [1, 2, 3, 0, 4, 5, 6, 0]);
  assert.deepEqual([...packed.sums], [5, 7, 9]);
});

Deno.test("packBias() folds the zero point in and wraps around 2^32", () => {
  const sums = Float64Array.of(10, -10, 3);
  assert.deepEqual([...new Int32Array(packBias(sums, -128, [1, 2, 2147483647]).buffer)], [
    1281,
    -1278,
    -2147483648 + 383,
    0,
  ]);
  assert.deepEqual([...new Int32Array(packBias(sums, 2).buffer)], [-20, 20, -6, 0]);
});
