import assert from "node:assert/strict";
import { fromBinary } from "@bufbuild/protobuf";
import {
  AttributeProto_AttributeType as Type,
  ModelProtoSchema,
  TensorProto_DataType as DataType,
} from "onnx-buf";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import {
  floatTensor,
  floatValue,
  type GraphInit,
  type ModelInit,
  onnxFile,
} from "./_onnx_model.ts";
import { assertRefused, PATH } from "./_refused.ts";

const load = (graph?: GraphInit, model?: ModelInit) =>
  importOnnx(onnxFile(graph, model), { path: PATH });

Deno.test("importOnnx() gives names, shapes, nodes and initializers as the file has them", () => {
  assert.deepEqual(load(), {
    name: "net",
    opset: 13,
    inputs: [{ name: "x", dtype: "float32", shape: ["N", 2] }],
    outputs: [{ name: "y", dtype: "float32", shape: ["N", 2] }],
    nodes: [
      { name: "add", opType: "Add", inputs: ["x", "w"], outputs: ["sum"], attributes: {} },
      { name: "relu", opType: "Relu", inputs: ["sum"], outputs: ["y"], attributes: {} },
    ],
    initializers: new Map([["w", ndArray("float32", [2], Float32Array.of(1, -2))]]),
  });
});

Deno.test("importOnnx() reads every element type from its typed field", () => {
  const dims = [2n];
  const tensors: [NonNullable<GraphInit["initializer"]>[number], NdArray][] = [
    [{ dataType: DataType.DOUBLE, doubleData: [0.1, 2] }, f64(0.1, 2)],
    [
      { dataType: DataType.INT8, int32Data: [-128, 127] },
      ndArray("int8", [2], Int8Array.of(-128, 127)),
    ],
    [
      { dataType: DataType.UINT8, int32Data: [0, 255] },
      ndArray("uint8", [2], Uint8Array.of(0, 255)),
    ],
    [{ dataType: DataType.INT4, rawData: Uint8Array.of(0x78) }, i8(-8, 7)],
    [{ dataType: DataType.INT4, int32Data: [0xf1] }, i8(1, -1)],
    [{ dataType: DataType.INT32, int32Data: [-5, 6] }, ndArray("int32", [2], Int32Array.of(-5, 6))],
    [{ dataType: DataType.UINT32, uint64Data: [5n, 2n ** 32n - 1n] }, u32(5, 2 ** 32 - 1)],
    [{ dataType: DataType.INT64, int64Data: [-1n, 2n ** 60n] }, i64(-1n, 2n ** 60n)],
    [{ dataType: DataType.BOOL, int32Data: [1, 0] }, ndArray("bool", [2], Uint8Array.of(1, 0))],
    [{ dataType: DataType.FLOAT16, int32Data: [0x3e00, 0xc000] }, f32(1.5, -2)],
    [{ dataType: DataType.FLOAT16, rawData: Uint8Array.of(0, 0x3e, 0, 0xc0) }, f32(1.5, -2)],
    [{ dataType: DataType.INT64, rawData: new Uint8Array(16).fill(255) }, i64(-1n, -1n)],
  ];
  const initializer = [floatTensor("w", dims, [0, 0])];
  for (const [i, [tensor]] of tensors.entries()) {
    initializer.push({ ...tensor, dims, name: `t${i}` });
  }
  const graph = load({ initializer });
  for (const [i, [, expected]] of tensors.entries()) {
    assert.deepEqual(graph.initializers.get(`t${i}`), expected, `tensor ${i}`);
  }
});

Deno.test("importOnnx() and exportOnnx() keep attributes, telling integers from floats", () => {
  const attribute = [
    { name: "alpha", type: Type.FLOAT, f: 1 },
    { name: "other", type: Type.FLOAT, f: 0.5 },
    { name: "axis", type: Type.INT, i: -1n },
    { name: "ends", type: Type.INTS, ints: [1n, 2n ** 63n - 1n] },
    { name: "scales", type: Type.FLOATS, floats: [1, 2] },
    { name: "mode", type: Type.STRING, s: new TextEncoder().encode("größer") },
    { name: "names", type: Type.STRINGS, strings: [new TextEncoder().encode("a")] },
    { name: "__proto__", type: Type.INT, i: 3n },
    { name: "value", type: Type.TENSOR, t: floatTensor("", [], [2]) },
  ];
  const node = [{ name: "n", opType: "Op", input: ["x"], output: ["y"], attribute }];
  const graph = load({ node });
  const { attributes } = graph.nodes[0]!;
  assert.deepEqual(Object.entries(attributes), [
    ["alpha", 1],
    ["other", 0.5],
    ["axis", -1],
    ["ends", [1, Number.MAX_SAFE_INTEGER]],
    ["scales", [1, 2]],
    ["mode", "größer"],
    ["names", ["a"]],
    ["__proto__", 3],
    ["value", ndArray("float32", [], Float32Array.of(2))],
  ]);
  const exported = exportOnnx(graph);
  const types = fromBinary(ModelProtoSchema, exported).graph?.node[0]?.attribute;
  assert.deepEqual(types?.map(({ type }) => type), attribute.map(({ type }) => type));
  const { initializers: _, ...rest } = importOnnx(exported);
  assert.deepEqual({ ...rest, initializers: graph.initializers }, graph);
});

Deno.test("importOnnx() folds Constant nodes, names unnamed nodes, hides initializers among inputs", () => {
  const node = [
    {
      opType: "Constant",
      output: ["w"],
      attribute: [{ name: "value_floats", type: Type.FLOATS, floats: [1, 2] }],
    },
    {
      opType: "Constant",
      output: ["i"],
      attribute: [{ name: "value_int", type: Type.INT, i: 7n }],
    },
    { name: "Relu_3", opType: "Add", input: ["x", "w"], output: ["sum"] },
    { opType: "Relu", input: ["sum"], output: ["y"] },
  ];
  const initializer = [floatTensor("v", [1n], [3])];
  const input = [floatValue("x", ["N", 2]), floatValue("v", [1])];
  const graph = load({ node, initializer, input });
  assert.deepEqual(graph.inputs.map(({ name }) => name), ["x"]);
  assert.deepEqual(graph.nodes.map(({ name }) => name), ["Relu_3", "Relu_3_"]);
  assert.deepEqual(graph.initializers.get("w"), f32(1, 2));
  assert.deepEqual(graph.initializers.get("i"), ndArray("int64", [], BigInt64Array.of(7n)));
});

Deno.test("importOnnx() makes float16 networks float32, casts included", () => {
  const half = {
    case: "tensorType" as const,
    value: { elemType: DataType.FLOAT16, shape: { dim: [] } },
  };
  const node = [{
    opType: "Cast",
    input: ["x"],
    output: ["y"],
    attribute: [{ name: "to", type: Type.INT, i: BigInt(DataType.FLOAT16) }],
  }];
  const graph = load({ node, input: [{ name: "x", type: { value: half } }] });
  assert.equal(graph.inputs[0]?.dtype, "float32");
  assert.equal(graph.nodes[0]?.attributes["to"], DataType.FLOAT);
});

Deno.test("importOnnx() names sizes that the file leaves open", () => {
  const open = floatValue("x", [0, -1, "", 4]);
  assert.deepEqual(load({ input: [open] }).inputs[0]?.shape, ["x_axis0", "x_axis1", "x_axis2", 4]);
});

Deno.test("importOnnx() refuses every truncation, naming the place", () => {
  const file = onnxFile();
  for (let size = 0; size < file.length; size++) {
    assertRefused(() => importOnnx(file.subarray(0, size), { path: PATH }), /: .+: /);
  }
});

Deno.test("importOnnx() never throws anything but its own errors on damaged bytes", () => {
  const file = onnxFile();
  for (let at = 0; at < file.length; at++) {
    for (const mask of [1, 2, 4, 0x10, 0x80, 0xff]) {
      const damaged = file.map((byte, i) => i === at ? byte ^ mask : byte);
      try {
        importOnnx(damaged, { path: PATH });
      } catch (error) {
        assertRefused(() => {
          throw error;
        }, /./);
      }
    }
  }
});

const add = { name: "add", opType: "Add", input: ["x", "w"], output: ["sum"] };
const relu = { name: "relu", opType: "Relu", input: ["sum"], output: ["y"] };
const weight = (changes: object) => ({
  initializer: [{ ...floatTensor("w", [2n], [1, 2]), ...changes }],
});
const attribute = (changes: object) => ({
  node: [add, { ...relu, attribute: [{ name: "a", ...changes }] }],
});

const REFUSED: readonly [what: string, graph: GraphInit, model: ModelInit, message: RegExp][] = [
  ["an old opset", {}, { opsetImport: [{ version: 6n }] }, /opset 6, expected 7 to 25/],
  ["a future opset", {}, { opsetImport: [{ version: 99n }] }, /opset 99/],
  ["no default opset", {}, { opsetImport: [{ domain: "a", version: 1n }] }, /0 times/],
  ["two default opsets", {}, {
    opsetImport: [{ version: 13n }, { domain: "ai.onnx", version: 14n }],
  }, /2 times/],
  ["a future IR version", {}, { irVersion: 99n }, /ir_version: is 99/],
  ["redefined operators", {}, { functions: [{ name: "Relu" }] }, /redefines an ONNX operator/],
  ["no graph", {}, { graph: undefined! }, /holds no graph/],
  [
    "custom operators",
    { node: [add, { ...relu, domain: "com.microsoft" }] },
    {},
    /"relu".*"com.microsoft"/,
  ],
  ["a nested graph", attribute({ type: Type.GRAPH, g: {} }), {}, /"a" has the type GRAPH/],
  ["an attribute without type", attribute({ i: 1n }), {}, /type UNDEFINED/],
  ["an attribute that is NaN", attribute({ type: Type.FLOAT, f: NaN }), {}, /"a": is NaN/],
  [
    "an attribute that is no UTF-8",
    attribute({ type: Type.STRING, s: Uint8Array.of(255) }),
    {},
    /UTF-8/,
  ],
  [
    "an attribute twice",
    {
      node: [add, { ...relu, attribute: [1, 2].map(() => ({ name: "a", type: Type.INT })) }],
    },
    {},
    /attribute "a": is there twice/,
  ],
  [
    "a dangling input",
    { node: [add, { ...relu, input: ["z"] }] },
    {},
    /"relu" .*"z" is made by no node/,
  ],
  ["nodes out of order", { node: [relu, add] }, {}, /"sum" is made later, by node "add"/],
  ["a cycle", { node: [{ ...add, input: ["y", "w"] }, relu] }, {}, /"y" is made later/],
  ["a tensor made twice", { node: [add, relu, { ...relu, name: "b" }] }, {}, /"y" is made twice/],
  [
    "a node that overwrites a weight",
    { node: [add, { ...relu, output: ["w"] }] },
    {},
    /"w" is made twice/,
  ],
  [
    "a node name twice",
    { node: [add, { ...relu, name: "add" }] },
    {},
    /node "add": is there twice/,
  ],
  ["a node without operator", { node: [{ ...add, opType: "" }] }, {}, /has no operator/],
  ["an output nobody makes", { output: [floatValue("q", [1])] }, {}, /output "q": no node makes/],
  ["no output", { output: [] }, {}, /no output/],
  [
    "an input twice",
    { input: [floatValue("x", [1]), floatValue("x", [1])] },
    {},
    /input "x": is there twice/,
  ],
  [
    "an input without shape",
    {
      input: [{ name: "x", type: { value: { case: "tensorType", value: { elemType: 1 } } } }],
    },
    {},
    /has no shape/,
  ],
  [
    "an input that is a sequence",
    {
      input: [{ name: "x", type: { value: { case: "sequenceType", value: {} } } }],
    },
    {},
    /sequenceType, expected a tensor/,
  ],
  [
    "a weight twice",
    { initializer: [floatTensor("w", [], [1]), floatTensor("w", [], [1])] },
    {},
    /twice/,
  ],
  ["a weight without name", weight({ name: "" }), {}, /initializer 0: has no name/],
  ["a weight that is NaN", weight({ floatData: [1, NaN] }), {}, /"w": element 1 is NaN/],
  [
    "a weight that is infinite",
    weight({ floatData: [-Infinity, 1] }),
    {},
    /"w": element 0 is -Infinity/,
  ],
  ["a weight in another file", weight({ dataLocation: 1 }), {}, /"w": .*external data/],
  ["a weight in segments", weight({ segment: { begin: 0n, end: 1n } }), {}, /segments/],
  ["a weight of text", weight({ dataType: DataType.STRING }), {}, /element type STRING/],
  ["a weight of an unknown type", weight({ dataType: 77 }), {}, /element type 77/],
  [
    "a weight with too few numbers",
    weight({ floatData: [1] }),
    {},
    /needs 2 bytes, there are 1|needs 2/,
  ],
  ["a weight with too many numbers", weight({ floatData: [1, 2, 3] }), {}, /float_data has 3/],
  ["a weight in the wrong field", weight({ floatData: [], doubleData: [1, 2] }), {}, /needs 2/],
  ["a weight of 2^64 bytes", weight({ dims: [2n ** 32n, 2n ** 30n] }), {}, /needs/],
  ["a weight of negative size", weight({ dims: [-2n] }), {}, /has the size -2/],
  [
    "raw data of another size",
    weight({ floatData: [], rawData: new Uint8Array(9) }),
    {},
    /raw_data has 9/,
  ],
  [
    "an int8 out of range",
    weight({ dataType: DataType.INT8, floatData: [], int32Data: [1, 128] }),
    {},
    /128, expected -128 to 127/,
  ],
  [
    "int4 with too many bytes",
    weight({ dataType: DataType.INT4, floatData: [], rawData: new Uint8Array(2) }),
    {},
    /shape \[2\] does not go with 2 bytes of two int4 each/,
  ],
  [
    "int4 with too few bytes",
    weight({ dataType: DataType.INT4, floatData: [], rawData: new Uint8Array(1), dims: [3n] }),
    {},
    /shape \[3\] does not go with 1 bytes/,
  ],
  ["sparse weights", { sparseInitializer: [{}] }, {}, /sparse/],
  [
    "a Constant without value",
    { node: [add, { opType: "Constant", output: ["c"] }, relu] },
    {},
    /attributes none/,
  ],
  [
    "names with control characters",
    { node: [add, { ...relu, input: ["\u001b[31m\n\u0085"] }] },
    {},
    /\\u001b\[31m\\n\\u0085/,
  ],
];

for (const [what, graph, model, message] of REFUSED) {
  Deno.test(`importOnnx() refuses ${what}`, () => assertRefused(() => load(graph, model), message));
}

Deno.test("importOnnx() refuses garbage, text and nesting without end", () => {
  const given = (bytes: Uint8Array) => () => importOnnx(bytes, { path: PATH });
  assertRefused(given(new Uint8Array()), /ir_version: is 0/);
  assertRefused(given(new Uint8Array(100).fill(255)), /byte 0: .*not an ONNX model/);
  assertRefused(given(new TextEncoder().encode("<html></html>")), /not an ONNX model/);
  // Each level is a graph attribute of a node: 7 graph, 1 node, 5 attribute, 6 graph.
  let nested = new Uint8Array();
  for (let i = 0; i < 201; i++) nested = wrap([50, 42, 10][i % 3]!, nested);
  assertRefused(given(wrap(58, nested)), /nested deeper than 32/);
  // Two bytes an attribute: the objects would need hundreds of times the file's size.
  const attributes = new Uint8Array(5_000_000).map((_, i) => i % 2 === 0 ? 42 : 0);
  assertRefused(given(wrap(58, wrap(10, attributes))), /more than 2000000 fields/);
});

function wrap(tag: number, bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const size: number[] = [];
  for (let rest = bytes.length; size.length === 0 || rest > 0; rest >>= 7) {
    size.push((rest & 127) | (rest > 127 ? 128 : 0));
  }
  const whole = new Uint8Array(1 + size.length + bytes.length);
  whole.set([tag, ...size]);
  whole.set(bytes, 1 + size.length);
  return whole;
}

function f32(...values: number[]): NdArray {
  return ndArray("float32", [values.length], Float32Array.from(values));
}

function f64(...values: number[]): NdArray {
  return ndArray("float64", [values.length], Float64Array.from(values));
}

function i8(...values: number[]): NdArray {
  return ndArray("int8", [values.length], Int8Array.from(values));
}

function u32(...values: number[]): NdArray {
  return ndArray("uint32", [values.length], Uint32Array.from(values));
}

function i64(...values: bigint[]): NdArray {
  return ndArray("int64", [values.length], BigInt64Array.from(values));
}
