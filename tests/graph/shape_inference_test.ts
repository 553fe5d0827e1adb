// Shape rules against sizes worked out by hand from the ONNX operator specification.
import { deepEqual, equal, throws } from "node:assert/strict";
import { UnsupportedError } from "../../src/core/errors.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { int64, makeGraph, node } from "./_graphs.ts";

// One node from x, as [operator and inputs, attributes, initializers, input shape, expected shape, opset].
const CASES: [
  string,
  Parameters<typeof node>[3],
  Parameters<typeof makeGraph>[2],
  number[],
  number[],
  number?,
][] = [
  ["Conv x w", { strides: [2, 2], pads: [1, 1, 1, 1] }, { w: [8, 3, 3, 3] }, [2, 3, 9, 8], [
    2,
    8,
    5,
    4,
  ]],
  ["Conv x w b", { dilations: [2, 2] }, { w: [8, 3, 3, 3], b: [8] }, [2, 3, 9, 8], [2, 8, 5, 4]],
  ["Conv x w", { group: 4 }, { w: [8, 1, 1, 1] }, [2, 4, 5, 5], [2, 8, 5, 5]],
  ["Conv x w", { auto_pad: "SAME_UPPER", strides: [2, 2] }, { w: [4, 3, 3, 3] }, [1, 3, 5, 6], [
    1,
    4,
    3,
    3,
  ]],
  ["Conv x w", { auto_pad: "VALID" }, { w: [4, 3, 3, 3] }, [1, 3, 5, 6], [1, 4, 3, 4]],
  ["Conv x w", {}, { w: [4, 3, 3] }, [2, 3, 9], [2, 4, 7]],
  ["MaxPool x", { kernel_shape: [3, 3], strides: [2, 2] }, {}, [1, 4, 6, 6], [1, 4, 2, 2]],
  ["MaxPool x", { kernel_shape: [3, 3], strides: [2, 2], ceil_mode: 1 }, {}, [1, 4, 6, 6], [
    1,
    4,
    3,
    3,
  ]],
  // The third window would start at 4, past the input of 3 and its padding of 1 before: dropped.
  [
    "AveragePool x",
    { kernel_shape: [2, 2], strides: [2, 2], ceil_mode: 1, pads: [1, 1, 1, 1] },
    {},
    [1, 4, 3, 3],
    [1, 4, 2, 2],
  ],
  ["AveragePool x", { kernel_shape: [2, 2], auto_pad: "SAME_LOWER", strides: [2, 2] }, {}, [
    1,
    4,
    5,
    5,
  ], [1, 4, 3, 3]],
  ["GlobalAveragePool x", {}, {}, [2, 4, 5, 6], [2, 4, 1, 1]],
  ["Gemm x w b", { transB: 1 }, { w: [5, 3], b: [5] }, [2, 3], [2, 5]],
  ["Gemm x w b", {}, { w: [3, 5], b: [1, 5] }, [2, 3], [2, 5]],
  ["Gemm x w", { transA: 1 }, { w: [2, 5] }, [2, 3], [3, 5]],
  ["MatMul x w", {}, { w: [4, 6] }, [2, 3, 4], [2, 3, 6]],
  ["BatchNormalization x c c c c", {}, { c: [3] }, [2, 3, 4, 4], [2, 3, 4, 4]],
  ["Add x c", {}, { c: [3, 1, 1] }, [2, 3, 4, 4], [2, 3, 4, 4]],
  ["Mul c x", {}, { c: [5, 1, 1, 1, 1] }, [2, 3, 4, 4], [5, 2, 3, 4, 4]],
  ["PRelu x c", {}, { c: [3, 1, 1] }, [2, 3, 4, 4], [2, 3, 4, 4]],
  ["ReduceMean x", { axes: [2, -1], keepdims: 0 }, {}, [2, 3, 4, 4], [2, 3]],
  ["ReduceMean x a", {}, { a: int64(1) }, [2, 3, 4, 4], [2, 1, 4, 4], 18],
  ["ReduceMean x", {}, {}, [2, 3, 4, 4], [1, 1, 1, 1]],
  ["Concat x c", { axis: -3 }, { c: [2, 5, 4, 4] }, [2, 3, 4, 4], [2, 8, 4, 4]],
  ["Slice x", { starts: [1], ends: [-1], axes: [2] }, {}, [2, 3, 5, 4], [2, 3, 3, 4], 9],
  ["Slice x s e a t", {}, { s: int64(0, 9), e: int64(99, -99), a: int64(2, 3), t: int64(2, -3) }, [
    2,
    3,
    5,
    7,
  ], [2, 3, 3, 3]],
  ["Pad x", { pads: [0, 1, 0, 2, 0, 3, -1, 0] }, {}, [2, 3, 5, 4], [2, 7, 4, 6], 10],
  ["Pad x p - a", {}, { p: int64(1, 2), a: int64(-1) }, [2, 3, 5, 4], [2, 3, 5, 7], 18],
  ["Flatten x", {}, {}, [2, 3, 5, 4], [2, 60]],
  ["Flatten x", { axis: 4 }, {}, [2, 3, 5, 4], [120, 1]],
  ["Reshape x s", {}, { s: int64(0, -1, 10) }, [2, 3, 5, 4], [2, 6, 10]],
  ["Transpose x", { perm: [0, 2, 3, 1] }, {}, [2, 3, 5, 4], [2, 5, 4, 3]],
  ["Transpose x", {}, {}, [2, 3, 5], [5, 3, 2]],
  ["Softmax x", { axis: 1 }, {}, [2, 3, 5, 4], [2, 3, 5, 4]],
  ["Squeeze x", { axes: [2, 3] }, {}, [2, 3, 1, 1], [2, 3], 11],
  ["Squeeze x a", {}, { a: int64(-1) }, [2, 3, 1, 1], [2, 3, 1]],
  ["Unsqueeze x a", {}, { a: int64(2, -1) }, [2, 3], [2, 3, 1, 1]],
  ["Dropout x", {}, {}, [2, 3], [2, 3]],
  ["HardSwish x", {}, {}, [2, 3], [2, 3]],
];

for (const [text, attributes, initializers, shape, expected, opset = 13] of CASES) {
  Deno.test(`inferShapes() ${text} ${JSON.stringify(attributes)} of [${shape}] is [${expected}]`, () => {
    const [opType, ...inputs] = text.split(" ");
    const nodes = [node(opType!, inputs.join(" "), "y", attributes)];
    const graph = makeGraph(["N", ...shape.slice(1)], nodes, initializers, { opset });
    deepEqual(inferShapes(graph, shape[0]!).get("y"), expected);
  });
}

Deno.test("inferShapes() follows the shape arithmetic that exporters write around Reshape", () => {
  const graph = makeGraph(["N", 3, 4, 4], [
    node("Shape", "x", "s"),
    node("Constant", "-", "zero", { value_int: 0 }),
    node("Gather", "s zero", "n", { axis: 0 }),
    node("Unsqueeze", "n axis", "n1"),
    node("Concat", "n1 rest", "target", { axis: 0 }),
    node("Reshape", "x target", "y"),
  ], { axis: int64(0), rest: int64(-1) });
  deepEqual(inferShapes(graph, 7).get("y"), [7, 48]);
});

const CONFLICTS: [string, Parameters<typeof node>[3], Parameters<typeof makeGraph>[2], RegExp][] = [
  [
    "Conv x w",
    {},
    { w: [8, 4, 3, 3] },
    /^node "Conv_y" \(Conv\): the input has 3 channels.*needs 4$/,
  ],
  ["Conv x w", { strides: [0, 1] }, { w: [8, 3, 3, 3] }, /strides is \[0,1\], expected 2 positive/],
  ["Conv x w", {}, { w: [8, 3, 9, 9] }, /window of 9 does not fit in axis 2 of size 5/],
  ["Conv x w", { group: 0 }, { w: [8, 3, 3, 3] }, /group is 0/],
  ["Gemm x w", {}, { w: [3, 4] }, /expected two matrices/],
  ["Add x c", {}, { c: [4] }, /cannot broadcast \[2, 3, 5, 5\] with \[4\]/],
  ["Concat x c", { axis: 1 }, { c: [2, 3, 5, 6] }, /cannot join/],
  ["Concat x c", { axis: 4 }, { c: [2, 3, 5, 5] }, /axis 4 is not one of the 4 axes/],
  ["Reshape x s", {}, { s: int64(7, -1) }, /cannot reshape/],
  ["Slice x s e a t", {}, { s: int64(0), e: int64(1), a: int64(1), t: int64(0) }, /a step is 0/],
  ["Relu z", {}, {}, /no node before it makes its input "z"/],
  ["Relu -", {}, {}, /input 0 is missing/],
];

for (const [text, attributes, initializers, message] of CONFLICTS) {
  Deno.test(`inferShapes() names the node of the conflict in ${text} ${JSON.stringify(attributes)}`, () => {
    const [opType, ...inputs] = text.split(" ");
    const nodes = [node(opType!, inputs.join(" "), "y", attributes)];
    throws(() => inferShapes(makeGraph(["N", 3, 5, 5], nodes, initializers), 2), (error) => {
      equal(error instanceof RangeError, true);
      return message.test((error as Error).message) && !(error as Error).message.includes("\n");
    });
  });
}

for (const opType of ["GRU", "constructor", "__proto__"]) {
  Deno.test(`inferShapes() refuses operator ${opType} and lists what is supported`, () => {
    const graph = makeGraph(["N", 3], [node(opType, "x", "y")]);
    throws(() => inferShapes(graph, 2), (error) => {
      equal(error instanceof UnsupportedError && error.opType === opType, true);
      return /supported are Add, AveragePool, .*Unsqueeze/.test((error as Error).message);
    });
  });
}

Deno.test("inferShapes() refuses a reshape that depends on data", () => {
  const graph = makeGraph(["N", 3], [node("Reshape", "x x", "y")]);
  throws(() => inferShapes(graph, 2), /must be a constant/);
});
