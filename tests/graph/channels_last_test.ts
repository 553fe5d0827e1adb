// The channels-last graph computes the same tensors with its axes turned, and weights go back exactly.
import { deepEqual, equal, throws } from "node:assert/strict";
import { UnsupportedError } from "../../src/core/errors.ts";
import { ndArray, sizeOf } from "../../src/core/nd_array.ts";
import { type ChannelsLastGraph, toChannelsLast } from "../../src/graph/channels_last.ts";
import { foldBatchNorm } from "../../src/graph/fold_batch_norm.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { simplify } from "../../src/graph/simplify.ts";
import {
  convLayout,
  flattenedLayout,
  linearLayout,
  toChannelsLastLayout,
  toOriginalLayout,
} from "../../src/graph/weight_layout.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { evaluate, permute, type Values } from "./_evaluate.ts";
import { batchNormInputs, convBatchNorm, int64, makeGraph, node } from "./_graphs.ts";
import { assertSame, network, NETWORKS, randomValues } from "./_networks.ts";

function turned(x: Values): Values {
  return x.shape.length === 4 ? permute(x, [0, 2, 3, 1]) : x;
}

// Compares every tensor that both graphs make: values (the same float64 sums in another order) and shapes.
function compare(graph: Graph, shape: readonly number[]): ChannelsLastGraph {
  const result = toChannelsLast(graph, inferShapes(graph, shape[0]!));
  const x = randomValues(11, shape);
  const expected = evaluate(graph, x);
  const actual = evaluate(result.graph, turned(x), "last");
  for (const { outputs: [name] } of result.graph.nodes) {
    assertSame(actual.get(name!)!, turned(expected.get(name!)!), 1e-12);
    deepEqual(result.shapes.get(name!), turned(expected.get(name!)!).shape);
  }
  for (const [name, array] of result.graph.initializers) {
    equal(array.dtype, "float32");
    deepEqual(result.shapes.get(name), array.shape);
  }
  deepEqual(result.shapes.get("x"), turned(x).shape);
  return result;
}

Deno.test("toChannelsLast() turns convolution, depthwise, grouped, pooling and batch norm", () => {
  const result = compare(
    makeGraph(["N", 3, 9, 8], [
      node("Conv", "x c.weight", "a", { pads: [1, 2, 0, 1], strides: [2, 1] }),
      node("BatchNormalization", batchNormInputs("a", "c"), "b"),
      node("Conv", "b d", "e", { group: 4, dilations: [1, 2] }),
      node("Conv", "e g bias", "f", { group: 2 }),
      node("MaxPool", "f", "h", { kernel_shape: [2, 1], pads: [1, 0, 0, 0] }),
      node("AveragePool", "h", "i", { kernel_shape: [1, 2], strides: [1, 2], pads: [0, 1, 0, 0] }),
      node("GlobalAveragePool", "i", "j"),
      node("Flatten", "j", "k"),
      node("Gemm", "k l", "y", { transB: 1 }),
    ], {
      ...convBatchNorm("c", [4, 3, 2, 3]),
      d: [4, 1, 2, 2],
      g: [6, 2, 1, 1],
      bias: [6],
      l: [5, 6],
    }),
    [2, 3, 9, 8],
  );
  deepEqual(result.graph.nodes[0]!.attributes, {
    kernel_shape: [2, 3],
    strides: [2, 1],
    dilations: [1, 1],
    pads: [1, 2, 0, 1],
    group: 1,
  });
  deepEqual(result.shapes.get("d"), [2, 2, 4]);
  equal(result.layouts.get("d")!.channelAxis, 2);
  deepEqual(result.shapes.get("g"), [6, 1, 1, 2]);
  equal(result.graph.nodes[7]!.opType, "Reshape");
  deepEqual([...result.layouts.keys()], ["c.weight", "d", "g", "l"]);
});

Deno.test("toChannelsLast() turns a Gemm over a flattened image into a convolution", () => {
  const graph = makeGraph(["N", 2, 3, 4], [
    node("Flatten", "x", "a"),
    node("Gemm", "a w b", "c", { transB: 1 }, "fc"),
    node("Relu", "c", "d"),
    node("Gemm", "d v", "y", { transB: 1 }),
  ], { w: [5, 24], b: [5], v: [3, 5] });
  const result = toChannelsLast(graph, inferShapes(graph, 2));
  const x = randomValues(1, [2, 2, 3, 4]);
  const last = evaluate(result.graph, turned(x), "last");
  for (const name of ["c", "y"]) {
    assertSame(last.get(name)!, evaluate(graph, x).get(name)!, 1e-12);
  }
  const [conv] = result.graph.nodes;
  deepEqual([conv!.opType, conv!.name, conv!.inputs], ["Conv", "fc", ["x", "w", "b"]]);
  deepEqual([result.shapes.get("w"), result.shapes.get("c")], [[5, 3, 4, 2], [2, 5]]);
  equal(result.shapes.has("a"), false);
});

Deno.test("toChannelsLast() renumbers the axes of Concat, Slice, Pad, ReduceMean, Softmax, Transpose", () => {
  const result = compare(
    makeGraph(["N", 3, 5, 4], [
      node("Slice", "x s e a t", "b"),
      node("Pad", "b p", "c"),
      node("Concat", "c c", "d", { axis: 1 }),
      node("Softmax", "d", "f", { axis: -3 }),
      node("Transpose", "f", "g", { perm: [0, 2, 1, 3] }),
      node("ReduceMean", "g", "h", { axes: [-1], keepdims: 1 }),
      node("Clip", "h lo hi", "i"),
      node("ReduceMean", "i", "y", { axes: [2, 3], keepdims: 0 }),
    ], {
      s: int64(0, 1),
      e: int64(9, 4),
      a: int64(2, 1),
      t: int64(2, 1),
      p: int64(0, 1, 0, 2, 0, 0, 1, 0),
      lo: { dtype: "float32", shape: [], data: Float32Array.of(0.05) },
      hi: { dtype: "float32", shape: [], data: Float32Array.of(0.2) },
    }),
    [2, 3, 5, 4],
  );
  deepEqual(result.graph.nodes.slice(0, 4).map((n) => n.attributes), [
    { axes: [1, 3], starts: [0, 1], ends: [5, 3], steps: [2, 1] },
    { pads: [0, 0, 2, 1, 0, 1, 0, 0], mode: "constant", value: 0 },
    { axis: 3 },
    { axis: 3 },
  ]);
  deepEqual([...result.graph.initializers.keys()], []);
});

Deno.test("toChannelsLast() turns constants that broadcast against images", () => {
  const shapes: [number[], number[]][] = [
    [[3, 1, 1], [1, 1, 1, 3]],
    [[1, 3, 1, 1], [1, 1, 1, 3]],
    [[4], [1, 1, 4, 1]],
    [[3, 5, 4], [1, 5, 4, 3]],
    [[], []],
    [[1], [1]],
  ];
  for (const [shape, expected] of shapes) {
    const graph = makeGraph(["N", 3, 5, 4], [node("Mul", "c x", "a"), node("Add", "a c", "y")], {
      c: shape,
    });
    deepEqual(compare(graph, [2, 3, 5, 4]).shapes.get("c"), expected);
  }
});

Deno.test("toChannelsLast() keeps matrices as they are", () => {
  const graph = makeGraph(["N", 6], [
    node("Gemm", "x w", "a", { transB: 1 }),
    node("Unsqueeze", "a u", "b"),
    node("Sigmoid", "b", "c"),
    node("Squeeze", "c u", "d"),
    node("Concat", "d x", "y", { axis: -1 }),
  ], { w: [5, 6], u: int64(2, 3) });
  const result = toChannelsLast(graph, inferShapes(graph, 2));
  deepEqual(result.shapes.get("b"), [2, 1, 1, 5]);
  deepEqual(result.graph.nodes.map((n) => n.opType), [
    "Gemm",
    "Reshape",
    "Sigmoid",
    "Reshape",
    "Concat",
  ]);
  deepEqual(result.graph.nodes[4]!.attributes, { axis: 1 });
});

const LAYOUTS = {
  convolution: convLayout([4, 3, 2, 5], 1),
  grouped: convLayout([4, 2, 2, 5], 2),
  depthwise: convLayout([4, 1, 2, 5], 4),
  "depthwise with multiplier": convLayout([8, 1, 2, 5], 4),
  linear: linearLayout([4, 6]),
  "flattened linear": flattenedLayout([4, 30], [3, 2, 5]),
};
const FINAL_SHAPES = {
  convolution: [4, 2, 5, 3],
  grouped: [4, 2, 5, 2],
  depthwise: [2, 5, 4],
  "depthwise with multiplier": [8, 2, 5, 1],
  linear: [4, 6],
  "flattened linear": [4, 2, 5, 3],
};
for (const [kind, layout] of Object.entries(LAYOUTS)) {
  Deno.test(`toOriginalLayout() undoes toChannelsLastLayout() for a ${kind} weight`, () => {
    deepEqual(layout.finalShape, FINAL_SHAPES[kind as keyof typeof FINAL_SHAPES]);
    const size = sizeOf(layout.originalShape);
    const original = ndArray(
      "float32",
      layout.originalShape,
      Float32Array.from({ length: size }, (_, i) => i),
    );
    const last = toChannelsLastLayout(original, layout);
    deepEqual(last.shape, layout.finalShape);
    deepEqual(toOriginalLayout(last, layout), original);
    throws(() => toOriginalLayout({ ...last, shape: [size] }, layout), /expected \[/);
    // All weights of an output channel stay in one slice along channelAxis.
    const perChannel = size / layout.originalShape[0]!;
    const inner = sizeOf(layout.finalShape.slice(layout.channelAxis + 1));
    last.data.forEach((value, i) => {
      const channel = Math.floor(i / inner) % layout.finalShape[layout.channelAxis]!;
      equal(Math.floor(value / perChannel), channel);
    });
  });
}

const REFUSED: [
  string,
  (number | string)[],
  Parameters<typeof node>[],
  Parameters<typeof makeGraph>[2],
][] = [
  ["1-D convolution", ["N", 3, 9], [["Conv", "x w", "y"]], { w: [4, 3, 3] }],
  ["Flatten of an image to the output", ["N", 3, 2, 2], [["Flatten", "x", "y"]], {}],
  ["Reshape of an image", ["N", 4, 2, 2], [["Reshape", "x s", "y"]], { s: int64(0, 2, 2, 4) }],
  ["Reshape that changes the padded axis", ["N", 6], [["Reshape", "x s", "y"]], {
    s: int64(0, 2, 3),
  }],
  ["mean over a spatial axis only", ["N", 3, 2, 2], [["ReduceMean", "x", "y", {
    axes: [3],
    keepdims: 0,
  }]], {}],
  [
    "a Transpose that moves the batch",
    [3, 3, 3],
    [["Transpose", "x", "y", { perm: [1, 0, 2] }]],
    {},
  ],
  ["a weight that is no constant", ["N", 3, 2, 2], [["Conv", "x x", "y"]], {}],
  ["a transposed Gemm input", [3, 3], [["Gemm", "x w", "y", { transA: 1 }]], { w: [3, 3] }],
];
for (const [what, shape, nodes, initializers] of REFUSED) {
  Deno.test(`toChannelsLast() refuses ${what}`, () => {
    const graph = makeGraph(shape, nodes.map((each) => node(...each)), initializers);
    const shapes = new Map(inferShapes(makeGraph(shape, [], initializers), 3));
    shapes.set(
      "y",
      graph.nodes[0]!.opType === "Conv" ? [3, 4, 7] : inferShapes(graph, 3).get("y")!,
    );
    throws(() => toChannelsLast(graph, shapes), UnsupportedError);
  });
}

for (const name of ["resnet20", "resnet8", "lenet", "dscnn"] as const) {
  Deno.test({
    name: `toChannelsLast() keeps the function of ${name}`,
    ignore: sharedDataMissing,
    fn() {
      const graph = foldBatchNorm(simplify(network(name)));
      const result = toChannelsLast(graph, inferShapes(graph, 1));
      const x = randomValues(13, [1, ...NETWORKS[name].image]);
      const expected = evaluate(graph, x).get("logits")!;
      assertSame(evaluate(result.graph, turned(x), "last").get("logits")!, expected, 1e-12);
    },
  });
}

Deno.test({
  name: "toChannelsLast() maps squeezenet",
  ignore: sharedDataMissing,
  fn() {
    const graph = simplify(network("squeezenet"));
    const result = toChannelsLast(graph, inferShapes(graph, 2));
    deepEqual(result.shapes.get("logits"), [2, 1000]);
    deepEqual(result.shapes.get("squeezenet0_conv3_weight"), [64, 3, 3, 16]);
  },
});
