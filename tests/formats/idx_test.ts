import assert from "node:assert/strict";
import { gzipSync } from "fflate";
import { decodeIdx } from "../../src/formats/idx.ts";
import { sharedData, sharedDataMissing } from "../_shared_data.ts";
import { assertRefused, PATH } from "./_refused.ts";

const BYTES = Uint8Array.of(0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6);

Deno.test("decodeIdx() reads plain and gzipped files", () => {
  for (const file of [BYTES, gzipSync(BYTES, { filename: "labels" })]) {
    const array = decodeIdx(file, PATH);
    assert.deepEqual(array.shape, [2, 3]);
    assert.deepEqual(array.data, Uint8Array.of(1, 2, 3, 4, 5, 6));
  }
});

Deno.test("decodeIdx() reads big-endian integers and floats", () => {
  const int16 = decodeIdx(Uint8Array.of(0, 0, 0x0b, 1, 0, 0, 0, 2, 1, 2, 0xff, 0xfe), PATH);
  assert.deepEqual(int16.data, Int16Array.of(258, -2));
  const float32 = decodeIdx(Uint8Array.of(0, 0, 0x0d, 1, 0, 0, 0, 1, 0xc0, 0x20, 0, 0), PATH);
  assert.deepEqual(float32.data, Float32Array.of(-2.5));
});

Deno.test({
  name: "decodeIdx() reads MNIST's test labels: 980 zeros, the first is 7",
  ignore: sharedDataMissing,
  fn() {
    const file = Deno.readFileSync(sharedData("mnist/t10k-labels-idx1-ubyte.gz"));
    const { shape, data } = decodeIdx(file, PATH);
    assert.deepEqual(shape, [10000]);
    assert.equal(data[0], 7);
    assert.equal(Array.from(data as Uint8Array).filter((label) => label === 0).length, 980);
  },
});

Deno.test("decodeIdx() refuses every truncation, plain and gzipped", () => {
  for (const file of [BYTES, gzipSync(BYTES)]) {
    for (let size = 0; size < file.length; size++) {
      assertRefused(() => decodeIdx(file.subarray(0, size), PATH), /byte \d+/);
    }
  }
});

Deno.test("decodeIdx() refuses bad magic, type, sizes and trailing bytes", () => {
  const change = (at: number, byte: number) => BYTES.map((old, i) => i === at ? byte : old);
  assertRefused(() => decodeIdx(change(0, 1), PATH), /expected two zero bytes/);
  assertRefused(() => decodeIdx(change(2, 7), PATH), /element type 0x7/);
  assertRefused(() => decodeIdx(change(4, 255), PATH), /there are 6/);
  assertRefused(() => decodeIdx(change(3, 255), PATH), /idx size needs 4 bytes/);
  assertRefused(() => decodeIdx(Uint8Array.of(...BYTES, 0), PATH), /1 bytes follow/);
});

Deno.test("decodeIdx() refuses gzip bombs, false sizes and checksums", () => {
  const bomb = gzipSync(new Uint8Array(2 ** 22));
  assertRefused(() => decodeIdx(bomb, PATH, { maxBytes: 2 ** 20 }), /the cap is 1048576/);
  const view = new DataView(bomb.buffer, bomb.byteOffset);
  view.setUint32(bomb.length - 4, 1000, true);
  assertRefused(() => decodeIdx(bomb, PATH), /more than the 1000 bytes/);
  view.setUint32(bomb.length - 4, 2 ** 29, true);
  assertRefused(() => decodeIdx(bomb, PATH), /cannot inflate to 536870912/);
  const damaged = gzipSync(BYTES);
  damaged[damaged.length - 8]! ^= 1;
  assertRefused(() => decodeIdx(damaged, PATH), /checksum/);
});
