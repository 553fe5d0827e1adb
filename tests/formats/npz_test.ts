import assert from "node:assert/strict";
import { zipSync } from "fflate";
import { ndArray } from "../../src/core/nd_array.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import { decodeNpz } from "../../src/formats/npz.ts";
import { assertRefused, fromBase64, PATH } from "./_refused.ts";
import goldens from "./numpy_goldens.json" with { type: "json" };

const NPY = encodeNpy(ndArray("uint8", [300], new Uint8Array(300)));

Deno.test("decodeNpz() reads numpy.savez and numpy.savez_compressed", () => {
  for (const archive of Object.values(goldens.archives)) {
    const arrays = decodeNpz(fromBase64(archive), PATH);
    assert.deepEqual([...arrays.keys()], ["w", "b"]);
    assert.deepEqual(arrays.get("w")?.shape, [2, 3, 4]);
    assert.deepEqual(arrays.get("b"), ndArray("int64", [4], BigInt64Array.of(0n, 1n, 2n, 3n)));
  }
});

Deno.test("decodeNpz() refuses an archive above the cap before inflating it", () => {
  const bomb = zipSync({ "a.npy": new Uint8Array(2 ** 24) });
  assert.ok(bomb.length < 2 ** 16);
  assertRefused(() => decodeNpz(bomb, PATH, { maxBytes: 2 ** 20 }), /cap is 1048576/);
});

Deno.test("decodeNpz() refuses a bomb that declares a small size, at that size", () => {
  const bomb = zipSync({ "a.npy": new Uint8Array(2 ** 24) });
  patchDirectory(bomb, 24, 1000);
  assertRefused(() => decodeNpz(bomb, PATH), /more than the 1000 bytes declared/);
});

Deno.test("decodeNpz() refuses a small stream that declares a large size, before allocating", () => {
  const archive = zipSync({ "a.npy": NPY });
  patchDirectory(archive, 24, 2 ** 30 - 1);
  assertRefused(() => decodeNpz(archive, PATH), /cannot inflate to 1073741823/);
});

Deno.test("decodeNpz() refuses every truncation", () => {
  const archive = zipSync({ "a.npy": NPY });
  for (let size = 0; size < archive.length; size++) {
    assertRefused(() => decodeNpz(archive.subarray(0, size), PATH), /byte \d+/);
  }
});

Deno.test("decodeNpz() refuses damaged data, other members, methods and encryption", () => {
  const archive = () => zipSync({ "a.npy": NPY }, { level: 0 });
  const damaged = archive();
  damaged[60]! ^= 1;
  assertRefused(() => decodeNpz(damaged, PATH), /checksum does not match/);
  assertRefused(() => decodeNpz(zipSync({ "../a.txt": NPY }), PATH), /"..\/a.txt" is not a .npy/);
  const lzma = archive();
  patchDirectory(lzma, 10, 14 | (new DataView(lzma.buffer).getUint16(12, true) << 16));
  assertRefused(() => decodeNpz(lzma, PATH), /method 14/);
  const encrypted = archive();
  encrypted[directoryAt(encrypted) + 8]! |= 1;
  assertRefused(() => decodeNpz(encrypted, PATH), /encrypted/);
});

Deno.test("decodeNpz() refuses members that overlap", () => {
  const archive = zipSync({ "a.npy": NPY, "b.npy": NPY }, { level: 0 });
  const second = directoryAt(archive) + 46 + "a.npy".length;
  new DataView(archive.buffer).setUint32(second + 42, 0, true);
  assertRefused(() => decodeNpz(archive, PATH), /overlap/);
});

function directoryAt(archive: Uint8Array): number {
  return new DataView(archive.buffer).getUint32(archive.length - 22 + 16, true);
}

function patchDirectory(archive: Uint8Array, offset: number, word: number): void {
  new DataView(archive.buffer).setUint32(directoryAt(archive) + offset, word, true);
}
