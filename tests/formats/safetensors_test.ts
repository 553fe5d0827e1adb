import assert from "node:assert/strict";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { decodeSafetensors, encodeSafetensors } from "../../src/formats/safetensors.ts";
import { sharedData, sharedDataMissing } from "../_shared_data.ts";
import { assertRefused, PATH } from "./_refused.ts";

Deno.test("encodeSafetensors() round trip keeps names, dtypes, shapes, values and metadata", () => {
  const tensors = new Map<string, NdArray>([
    ["b", ndArray("int8", [3], Int8Array.of(-1, 0, 1))],
    ["__proto__", ndArray("float32", [2, 1], Float32Array.of(1.5, -2))],
    ["", ndArray("int64", [], BigInt64Array.of(-(2n ** 60n)))],
    ["empty", ndArray("float32", [0, 7], new Float32Array())],
  ]);
  const metadata = new Map([["__proto__", "x"], ["2", "y"]]);
  const file = encodeSafetensors(tensors, { metadata });
  const decoded = decodeSafetensors(file, PATH);
  assert.deepEqual(new Map([...decoded.tensors].sort()), new Map([...tensors].sort()));
  assert.deepEqual(decoded.metadata, metadata);
  // The buffer begins aligned, as the reference writer does.
  assert.equal(new DataView(file.buffer).getUint32(0, true) % 8, 0);
});

Deno.test("decodeSafetensors() widens F16 and BF16", () => {
  const header = '{"h":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},' +
    '"b":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}}';
  const { tensors } = decodeSafetensors(build(header, [0x00, 0xc1, 0x20, 0xc0]), PATH);
  assert.deepEqual(tensors.get("h"), ndArray("float32", [1], Float32Array.of(-2.5)));
  assert.deepEqual(tensors.get("b"), ndArray("float32", [1], Float32Array.of(-2.5)));
});

Deno.test({
  name: "decodeSafetensors() reads a published network: ResNet-20 has 269,722 parameters",
  ignore: sharedDataMissing,
  fn() {
    const file = Deno.readFileSync(sharedData("cifar10/resnet20.safetensors"));
    const { tensors } = decodeSafetensors(file, PATH);
    const parameters = [...tensors].filter(([name]) => !/running_|num_batches/.test(name));
    assert.equal(parameters.reduce((sum, [, { data }]) => sum + data.length, 0), 269722);
  },
});

const one = (shape: string, offsets: string, dtype = "F32") =>
  `{"a":{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}}`;
const two = (first: string, second: string) =>
  `{"a":{"dtype":"U8","shape":[4],"data_offsets":${first}},` +
  `"b":{"dtype":"U8","shape":[4],"data_offsets":${second}}}`;

const REFUSED: readonly [what: string, header: string, dataBytes: number, message: RegExp][] = [
  ["overlapping tensors", two("[0,4]", "[2,6]"), 6, /"b".*overlap/],
  ["one tensor twice in the buffer", two("[0,4]", "[0,4]"), 4, /overlap/],
  ["a hole", two("[0,4]", "[6,10]"), 10, /hole/],
  ["bytes of no tensor", one("[1]", "[0,4]"), 5, /1 bytes belong to no tensor/],
  ["offsets past the end", one("[2]", "[0,8]"), 4, /the file has 4/],
  ["offsets the wrong way round", one("[1]", "[4,0]"), 4, /begin <= end/],
  ["negative offsets", one("[1]", "[-4,0]"), 4, /two integers/],
  ["three offsets", one("[1]", "[0,4,4]"), 4, /two integers/],
  ["a shape that needs less", one("[1]", "[0,8]"), 8, /needs 4 bytes, data_offsets give 8/],
  [
    "a shape that needs 2^64 bytes",
    one("[4294967296,1073741824]", "[0,4]"),
    4,
    /needs 18446744073/,
  ],
  ["a size above 2^53", one("[9007199254740993]", "[0,4]"), 4, /too large/],
  ["a fractional size", one("[0.5]", "[0,4]"), 4, /list of integers/],
  ["an unknown dtype", one("[1]", "[0,4]", "F4"), 4, /dtype is "F4"/],
  ["a tensor twice", two("[0,4]", "[4,8]").replace('"b"', '"a"'), 8, /"a" is there twice/],
  [
    "an unknown key",
    one("[1]", "[0,4]").replace('"shape"', '"x":1,"shape"'),
    4,
    /exactly the keys/,
  ],
  ["a list as header", "[]", 0, /begin with/],
  ["deep nesting", '{"a":'.repeat(10000), 0, /nested deeper/],
  ["metadata that is no text", '{"__metadata__":{"a":1}}', 0, /must be text/],
  ["an infinite number", one("[1e999]", "[0,4]"), 4, /too large/],
  ["text after the header", "{} x", 0, /text follows/],
  ["a leading space", " {}", 0, /begin with/],
];

for (const [what, header, dataBytes, message] of REFUSED) {
  Deno.test(`decodeSafetensors() refuses ${what}`, () => {
    assertRefused(() => decodeSafetensors(build(header, new Uint8Array(dataBytes)), PATH), message);
  });
}

Deno.test("decodeSafetensors() refuses every truncation, huge headers and bad UTF-8", () => {
  const file = build(one("[1]", "[0,4]"), [0, 0, 0, 0]);
  for (let size = 0; size < file.length; size++) {
    assertRefused(() => decodeSafetensors(file.subarray(0, size), PATH), /byte|tensor/);
  }
  const huge = file.slice();
  huge.fill(255, 0, 8);
  assertRefused(() => decodeSafetensors(huge, PATH), /2\^53/);
  huge.set([0, 0, 0, 0, 1, 0, 0, 0]);
  assertRefused(() => decodeSafetensors(huge, PATH), /header of 4294967296 bytes/);
  const latin = build(one("[1]", "[0,4]"), [0, 0, 0, 0]);
  latin[10] = 0xe9;
  assertRefused(() => decodeSafetensors(latin, PATH), /not valid UTF-8/);
});

function build(header: string, data: ArrayLike<number>): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + text.length + data.length);
  new DataView(file.buffer).setUint32(0, text.length, true);
  file.set(text, 8);
  file.set(data, 8 + text.length);
  return file;
}
