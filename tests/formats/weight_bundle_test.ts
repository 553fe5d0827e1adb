import assert from "node:assert/strict";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { decodeNpy, encodeNpy } from "../../src/formats/npy.ts";
import { decodeWeightBundle, encodeWeightBundle } from "../../src/formats/weight_bundle.ts";
import type { QTensor, QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { assertRefused, PATH } from "./_refused.ts";

const HOSTILE = "../../etc/passwd\u0000\n\u001b[31m";

Deno.test("decodeWeightBundle() gives back what encodeWeightBundle() wrote", () => {
  const model = network();
  const bundle = decodeWeightBundle(encodeWeightBundle(model), PATH);
  assert.equal(bundle.network, "net");
  assert.deepEqual(bundle.weights, model.weights);
  assert.deepEqual(bundle.biases, model.biases);
  assert.deepEqual(bundle.activations, model.activations);
  assert.deepEqual(bundle.constants, new Map([["shape", model.graph.initializers.get("shape")]]));
});

Deno.test("decodeWeightBundle() takes as many odd codes as there are neighbouring ones", () => {
  const model = (...codes: number[]) => {
    const weight: QTensor = {
      values: ndArray("int8", [1, 4], Int8Array.from(codes)),
      scale: Float32Array.of(1),
      zeroPoint: new Int32Array(1),
      axis: 0,
      bits: 2,
    };
    return { ...network(), weights: new Map([["conv1.weight", weight]]) };
  };
  const decode = (...codes: number[]) =>
    decodeWeightBundle(encodeWeightBundle(model(...codes)), PATH);
  assert.deepEqual(decode(-3, -1, 1, 3).weights, model(-3, -1, 1, 3).weights);
  for (const codes of [[-3, -1, 1, 5], [-3, -1, 0, 3]]) {
    assertRefused(() => decode(...codes), /expected at most 4 neighbouring codes/);
  }
});

Deno.test("decodeWeightBundle() gives back scales of blocks, and refuses codes beyond a block's bits", () => {
  const weight: QTensor = {
    values: ndArray("int8", [2, 3], Int8Array.of(-8, 7, 15, 0, 1, -15)),
    scale: Float32Array.of(1, 2, 3, 4),
    zeroPoint: new Int32Array(4),
    axis: 1,
    blockSize: 2,
    bits: 4,
  };
  const model = { ...network(), weights: new Map([["conv1.weight", weight]]) };
  const files = encodeWeightBundle(model);
  assert.deepEqual(decodeWeightBundle(files, PATH).weights, model.weights);
  assert.deepEqual(decodeNpy(files.get("conv1.weight.scale.npy")!, PATH).shape, [2, 2]);
  const wide = ndArray("int8", [2, 3], Int8Array.of(-9, 7, 15, 0, 1, -15));
  files.set("conv1.weight.values.npy", encodeNpy(wide));
  assertRefused(
    () => decodeWeightBundle(files, PATH),
    /code 7 in a channel of -9 to 7, expected at most 16 neighbouring codes/,
  );
});

Deno.test("decodeWeightBundle() gives back thresholds, and refuses others than a grid has", () => {
  const grid = { scale: 0.5, zeroPoint: 0, quantMin: 0, quantMax: 3, bits: 2 };
  const decode = (...thresholds: number[]) => {
    const x = { ...grid, thresholds: Float32Array.from(thresholds) };
    const model = { ...network(), activations: new Map([["x", x]]) };
    return decodeWeightBundle(encodeWeightBundle(model), PATH).activations.get("x")?.thresholds;
  };
  assert.deepEqual(decode(0.1, 0.3, 1 / 3), Float32Array.of(0.1, 0.3, 1 / 3));
  assertRefused(
    () => decode(0.1, 0.3),
    /activations\[0\].thresholds: found .*, expected 3 numbers/,
  );
  assertRefused(() => decode(0.1, 0.3, 0.2), /expected 3 numbers that rise/);
});

Deno.test("encodeWeightBundle() makes file names that are plain, unique and not reserved", () => {
  const names = [...encodeWeightBundle(network()).keys()];
  assert.ok(names.includes("conv1.weight.values.npy"));
  assert.ok(names.includes("conv1.weight.zero_point.npy"));
  assert.equal(new Set(names.map((name) => name.toLowerCase())).size, names.length);
  for (const name of names) {
    assert.match(name, /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.(npy|json)$/);
    assert.doesNotMatch(name, /\.\.|^con\./i);
    assert.ok(name.length <= 100);
  }
});

Deno.test("encodeWeightBundle() describes every tensor in the manifest", () => {
  const files = encodeWeightBundle(network());
  const manifest = JSON.parse(new TextDecoder().decode(files.get("manifest.json")));
  assert.deepEqual(manifest.weights[0], {
    tensor: "conv1.weight",
    shape: [2, 3],
    dtype: "int8",
    bits: 4,
    axis: 0,
    files: {
      values: "conv1.weight.values.npy",
      scale: "conv1.weight.scale.npy",
      zeroPoint: "conv1.weight.zero_point.npy",
    },
  });
  assert.deepEqual(manifest.activations, [
    { tensor: "x", dtype: "uint8", scale: 0.1, zeroPoint: 3, quantMin: 0, quantMax: 15, bits: 4 },
  ]);
});

const MANIFEST_CHANGES: readonly [what: string, from: string, to: string, message: RegExp][] = [
  [
    "blocks of nothing",
    '"axis": 0',
    '"axis": 0, "blockSize": 0',
    /blockSize: found 0, expected an/,
  ],
  ["blocks without scales", '"axis": 0', '"axis": 0, "blockSize": 2', /says float32 \[1, 3\]/],
  ["a path as file name", "conv1.weight.values", "../conv1", /not a plain .npy file name/],
  ["an absolute path", '"conv1.weight.values', '"/etc/x', /not a plain .npy file name/],
  ["a file that is not there", "conv1.weight.values", "other", /"other.npy" is missing/],
  ["another version", '"version": 1', '"version": 2', /version: found 2/],
  ["another format", "stilla-weights", "x", /expected "stilla-weights"/],
  [
    "another shape",
    "[\n        2,\n        3\n      ]",
    "[3, 2]",
    /the manifest says int8 \[3, 2\]/,
  ],
  ["an axis beyond the shape", '"axis": 0', '"axis": 2', /from -1 to 1/],
  [
    "bits the codes do not fit",
    '"bits": 4',
    '"bits": 2',
    /code -?\d+ in a channel of .* at most 4 neighbouring codes \(2 bits\)/,
  ],
  ["a dtype of another kind", '"dtype": "int8"', '"dtype": "float32"', /expected int8/],
  ["a negative scale", '"scale": 0.1', '"scale": -0.1', /above 0/],
  ["a range that is empty", '"quantMax": 15', '"quantMax": 0', /quantMax: found 0/],
  ["a missing list", '"biases"', '"bias"', /expected a list/],
  ["a tensor twice", '"tensor": "A"', '"tensor": "conv1.weight"', /is there twice/],
];

for (const [what, from, to, message] of MANIFEST_CHANGES) {
  Deno.test(`decodeWeightBundle() refuses ${what}`, () => {
    const files = encodeWeightBundle(network());
    const text = new TextDecoder().decode(files.get("manifest.json"));
    assert.ok(text.includes(from));
    files.set("manifest.json", new TextEncoder().encode(text.replace(from, to)));
    assertRefused(() => decodeWeightBundle(files, PATH), message);
  });
}

Deno.test("decodeWeightBundle() refuses missing manifests and damaged arrays", () => {
  assertRefused(() => decodeWeightBundle(new Map(), PATH), /manifest.json: the file is missing/);
  const files = encodeWeightBundle(network());
  files.set("conv1.weight.values.npy", files.get("conv1.weight.values.npy")!.subarray(0, 130));
  assertRefused(() => decodeWeightBundle(files, PATH), /conv1.weight.values.npy: byte/);
  const infinite = encodeNpy(ndArray("float32", [2], Float32Array.of(1, Infinity)));
  const scales = encodeWeightBundle(network()).set("conv1.weight.scale.npy", infinite);
  assertRefused(() => decodeWeightBundle(scales, PATH), /element 1: scale is Infinity/);
});

function network(): QuantizedGraph {
  const weight: QTensor = {
    values: ndArray("int8", [2, 3], Int8Array.of(-8, 7, 0, 1, 2, 3)),
    scale: Float32Array.of(0.5, 0.25),
    zeroPoint: new Int32Array(2),
    axis: 0,
    bits: 4,
  };
  const bias: QTensor = {
    values: ndArray("int32", [2], Int32Array.of(-(2 ** 31), 2 ** 31 - 1)),
    scale: Float32Array.of(0.1),
    zeroPoint: new Int32Array(1),
    axis: -1,
    bits: 32,
  };
  const names = ["conv1.weight", "A", "a", "", HOSTILE, "con", "x/y", "x_y", "n".repeat(500)];
  const weights = new Map(names.map((name) => [name, weight]));
  const floats = ndArray("float32", [2, 3], new Float32Array(6));
  return {
    graph: {
      name: "net",
      opset: 13,
      inputs: [],
      outputs: [],
      nodes: [{
        name: "n",
        opType: "Sum",
        inputs: [...names, "shape"],
        outputs: ["y"],
        attributes: {},
      }],
      initializers: new Map<string, NdArray>([
        ...names.map((name) => [name, floats] as const),
        ["shape", ndArray("int64", [2], BigInt64Array.of(1n, -1n))],
        ["unread", floats],
      ]),
    },
    weights,
    biases: new Map([["conv1.bias", bias]]),
    activations: new Map([
      ["x", { scale: 0.1, zeroPoint: 3, quantMin: 0, quantMax: 15, bits: 4 }],
    ]),
  };
}
