import assert from "node:assert/strict";
import { type DType, ndArray, TYPED_ARRAYS, type TypedArrays } from "../../src/core/nd_array.ts";
import { decodeNpy, encodeNpy } from "../../src/formats/npy.ts";
import { assertRefused, fromBase64, PATH } from "./_refused.ts";
import goldens from "./numpy_goldens.json" with { type: "json" };

Deno.test("decodeNpy() reads what NumPy writes: types, byte orders, Fortran order, versions", () => {
  for (const [name, { file, shape, values }] of Object.entries(goldens.arrays)) {
    const array = decodeNpy(fromBase64(file), PATH);
    assert.deepEqual(array.shape, shape, name);
    assert.deepEqual(Array.from(array.data as ArrayLike<number>, Number), values, name);
  }
});

Deno.test("decodeNpy() keeps dtypes and widens float16", () => {
  const dtype = (name: keyof typeof goldens.arrays) =>
    decodeNpy(fromBase64(goldens.arrays[name].file), PATH).dtype;
  assert.equal(dtype("C <f2"), "float32");
  assert.equal(dtype("C |i1"), "int8");
  assert.equal(dtype("C <i8"), "int64");
  assert.equal(dtype("bool"), "bool");
});

Deno.test("encodeNpy() writes NumPy's bytes", () => {
  for (const name of ["C <f4", "C |i1", "C <i8", "bool", "scalar", "one axis", "empty"] as const) {
    const file = fromBase64(goldens.arrays[name].file);
    assert.deepEqual(encodeNpy(decodeNpy(file, PATH)), file, name);
  }
});

Deno.test("encodeNpy() round trip keeps every dtype, from a view at any offset", () => {
  for (const dtype of Object.keys(TYPED_ARRAYS) as DType[]) {
    const data = new TYPED_ARRAYS[dtype](4).subarray(1) as TypedArrays[DType];
    if (data instanceof BigInt64Array) data[1] = -(2n ** 40n);
    else data[1] = 1;
    const array = ndArray(dtype, [3, 1], data);
    assert.deepEqual(decodeNpy(encodeNpy(array), PATH), array);
  }
});

Deno.test("decodeNpy() refuses objects, structured types and types it does not know", () => {
  const { refused } = goldens;
  assertRefused(() => decodeNpy(fromBase64(refused.objects), PATH), /Python objects \(a pickle\)/);
  assertRefused(() => decodeNpy(fromBase64(refused.structured), PATH), /structured/);
  assertRefused(() => decodeNpy(fromBase64(refused.text), PATH), /element type "<U1"/);
  assertRefused(() => decodeNpy(fromBase64(refused.complex), PATH), /element type "<c8"/);
  assertRefused(() => decodeNpy(fromBase64(refused.uint64), PATH), /element type "<u8"/);
});

const GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";

Deno.test("decodeNpy() refuses every truncation, naming the byte", () => {
  const file = npyFile(GOOD, 24);
  assert.deepEqual(decodeNpy(file, PATH).shape, [2, 3]);
  for (let size = 0; size < file.length; size++) {
    assertRefused(() => decodeNpy(file.subarray(0, size), PATH), /byte \d+/);
  }
});

const REFUSED: readonly [what: string, header: string, dataBytes: number, message: RegExp][] = [
  ["trailing bytes", GOOD, 25, /1 bytes follow/],
  ["too little data", GOOD, 20, /needs 24 bytes, there are 20/],
  [
    "a product of 2^64",
    GOOD.replace("2, 3", "4294967296, 4294967296"),
    24,
    /needs 7378697629483820/,
  ],
  ["a product that wraps to 6", GOOD.replace("2, 3", "9007199254740991, 2, 3"), 24, /there are 24/],
  ["a size above 2^53", GOOD.replace("2, 3", "9007199254740993"), 24, /integer from 0 to 2\^53/],
  ["a negative size", GOOD.replace("2, 3", "-2, -3"), 24, /found "-2"/],
  ["a fractional size", GOOD.replace("2, 3", "2.5"), 24, /"\." does not belong/],
  ["an unknown key", GOOD.replace("shape", "shapes"), 24, /exactly descr, fortran_order, shape/],
  ["a key twice", GOOD.replace("'descr'", "'shape': 1, 'descr'"), 24, /not there yet/],
  ["an expression", GOOD.replace("(2, 3)", "__import__('os')"), 24, /"_" does not belong/],
  ["an open bracket", "{'descr': '<f4', ", 24, /the header ends/],
  ["text after the header", `${GOOD} 1`, 24, /expected the end of the header/],
  ["deep nesting", "(".repeat(5000), 24, /at most 8 levels/],
  ["no dictionary", "(1, 2)", 24, /must be a dictionary/],
  ["another fortran_order", GOOD.replace("False", "0"), 24, /True or False/],
];

for (const [what, header, dataBytes, message] of REFUSED) {
  Deno.test(`decodeNpy() refuses ${what}`, () => {
    assertRefused(() => decodeNpy(npyFile(header, dataBytes), PATH), message);
  });
}

Deno.test("decodeNpy() refuses a wrong magic, version, header size and bool", () => {
  const change = (at: number, byte: number) =>
    npyFile(GOOD, 24).map((old, i) => i === at ? byte : old);
  assertRefused(() => decodeNpy(change(0, 0x50), PATH), /expected the npy magic/);
  assertRefused(() => decodeNpy(change(6, 4), PATH), /npy version 4/);
  assertRefused(() => decodeNpy(change(9, 0xff), PATH), /header of \d+ bytes/);
  const bools = npyFile(GOOD.replace("<f4", "|b1"), 6);
  bools[bools.length - 1] = 2;
  assertRefused(() => decodeNpy(bools, PATH), /bool is 2/);
});

function npyFile(header: string, dataBytes: number): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(header);
  const size = [text.length & 255, text.length >> 8];
  return Uint8Array.from(
    [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, ...size, ...text, ...new Uint8Array(dataBytes)],
  );
}
