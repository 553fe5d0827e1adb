import assert from "node:assert/strict";
import { FormatError } from "../../src/core/errors.ts";
import { BoundedReader, checkedSize, decodeUtf8, quoteName } from "../../src/formats/untrusted.ts";
import { assertRefused, PATH } from "./_refused.ts";

const BYTES = Uint8Array.of(9, 1, 2, 3, 4, 5, 6, 7, 8, 9).subarray(1, 9);

Deno.test("BoundedReader reads integers of both byte orders from a view", () => {
  const big = new BoundedReader(BYTES, PATH);
  assert.deepEqual([big.uint8("a"), big.uint16("b"), big.uint32("c")], [1, 0x0203, 0x04050607]);
  const little = new BoundedReader(BYTES, PATH, { littleEndian: true });
  assert.deepEqual([little.uint16("b"), little.uint32("c")], [0x0201, 0x06050403]);
  const eight = Uint8Array.of(1, 0, 0, 0, 0, 0, 0x1f, 0);
  assert.equal(
    new BoundedReader(eight, PATH, { littleEndian: true }).uint64("d"),
    0x1f * 2 ** 48 + 1,
  );
});

Deno.test("BoundedReader never reads past the end and says where", () => {
  const reader = new BoundedReader(BYTES, PATH);
  reader.take(7, "head");
  assertRefused(() => reader.uint16("size"), /byte 7: size needs 2 bytes, the file has 1 left/);
  assertRefused(() => reader.take(2 ** 53, "data"), /byte 7: data needs/);
  assertRefused(() => reader.take(-1, "data"), /byte 7: data needs -1/);
  assertRefused(() => reader.take(NaN, "data"), /byte 7/);
  assertRefused(() => reader.end(), /byte 7: 1 bytes follow/);
  reader.uint8("last");
  reader.end();
  assertRefused(() => new BoundedReader(new Uint8Array(8).fill(255), PATH).uint64("n"), /2\^53/);
});

Deno.test("checkedSize() multiplies exactly and compares with the bytes there", () => {
  const error = (detail: string) => new FormatError(PATH, "shape", detail);
  assert.equal(checkedSize([2, 3n], 4, 24, error), 6);
  assert.equal(checkedSize([], 4, 4, error), 1);
  assert.equal(checkedSize([0, 2 ** 50, 2 ** 50], 4, 0, error), 0);
  assertRefused(() => checkedSize([2, 3], 4, 23, error), /needs 24 bytes, there are 23/);
  // 2^32 * 2^32 = 2^64 is 0 in 64-bit integers.
  assertRefused(() => checkedSize([2 ** 32, 2 ** 32], 1, 8, error), /18446744073709551616/);
  assertRefused(() => checkedSize([-1], 4, 24, error), /size -1/);
  assertRefused(() => checkedSize([1.5], 4, 24, error), /size 1.5/);
  assertRefused(() => checkedSize([2n ** 63n], 4, 24, error), /size 9223372036854775808/);
});

Deno.test("decodeUtf8() refuses bytes that are not UTF-8 and keeps a byte-order mark", () => {
  const error = (detail: string) => new FormatError(PATH, "text", detail);
  assert.equal(decodeUtf8(Uint8Array.of(0xef, 0xbb, 0xbf, 65), error), "\ufeffA");
  assertRefused(() => decodeUtf8(Uint8Array.of(0xc0, 0x80), error), /not valid UTF-8/);
});

Deno.test("quoteName() makes any name one short clean line", () => {
  assert.equal(quoteName("conv1.weight"), '"conv1.weight"');
  assert.equal(quoteName("a\n\u001b\u009b\u2028"), '"a\\n\\u001b\\u009b\\u2028"');
  assert.equal(quoteName("x".repeat(1000)).length, 122);
});
