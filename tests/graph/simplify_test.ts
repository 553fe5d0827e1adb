// Each rewriting on a small graph: the form it produces, and that the function stays the same.
import { deepEqual, equal } from "node:assert/strict";
import type { Graph, Node } from "../../src/graph/graph.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { evaluate } from "./_evaluate.ts";
import { int64, makeGraph, node } from "./_graphs.ts";
import { assertSame, network, NETWORKS, randomValues } from "./_networks.ts";

// float32 constants are rewritten by at most one rounding each; float64 otherwise.
const ROUNDING = 1e-6;

function operators(graph: Graph): string {
  return graph.nodes.map((each) => each.opType).join(" ");
}

function only(graph: Graph, opType: string): Node {
  const found = graph.nodes.filter((each) => each.opType === opType);
  equal(found.length, 1);
  return found[0]!;
}

// Simplifies and checks that the output tensor "y" stays the same function of x.
function simplified(graph: Graph, shape: readonly number[]): Graph {
  const before = structuredClone(graph.nodes);
  const result = simplify(graph);
  deepEqual(graph.nodes, before);
  const x = randomValues(5, shape);
  assertSame(evaluate(result, x).get("y")!, evaluate(graph, x).get("y")!, ROUNDING);
  return result;
}

Deno.test("simplify() turns the exporter's shape arithmetic around Reshape into Flatten", () => {
  const graph = makeGraph(["N", 3, 4, 4], [
    node("Shape", "x", "s"),
    node("Gather", "s zero", "n", { axis: 0 }),
    node("Unsqueeze", "n axis", "n1"),
    node("Concat", "n1 rest", "target", { axis: 0 }),
    node("Reshape", "x target", "flat"),
    node("Gemm", "flat w", "y", { transB: 1 }),
  ], { zero: int64(0), axis: int64(0), rest: int64(-1), w: [5, 48] });
  const result = simplify(graph);
  equal(operators(result), "Flatten Gemm");
  deepEqual([...result.initializers.keys()], ["w"]);
});

Deno.test("simplify() turns Reshape to a fixed batch into Flatten", () => {
  const graph = makeGraph([1, 3, 2, 2], [node("Reshape", "x s", "y")], { s: int64(1, 12) });
  const result = simplified(graph, [1, 3, 2, 2]);
  equal(operators(result), "Flatten");
  deepEqual(inferShapes(result, 8).get("y"), [8, 12]);
});

Deno.test("simplify() keeps a Reshape that is no flattening, for any batch", () => {
  const graph = makeGraph(["N", 6], [node("Reshape", "x s", "y")], { s: int64(-1, 2, 3) });
  const result = simplified(graph, [4, 6]);
  equal(operators(result), "Reshape");
  deepEqual([...result.initializers.values()][0]!.data, BigInt64Array.of(0n, 2n, 3n));
});

Deno.test("simplify() removes Identity, Dropout and empty Pad and keeps the output's name", () => {
  const graph = makeGraph(["N", 2, 3, 3], [
    node("Identity", "x", "a"),
    node("Pad", "a p", "b"),
    node("Relu", "b", "c"),
    node("Dropout", "c", "d mask"),
    node("Identity", "d", "y"),
  ], { p: int64(0, 0, 0, 0, 0, 0, 0, 0) });
  const result = simplified(graph, [2, 2, 3, 3]);
  equal(operators(result), "Relu");
  deepEqual([result.nodes[0]!.inputs, result.nodes[0]!.outputs], [["x"], ["y"]]);
});

Deno.test("simplify() renames an output's other readers with it", () => {
  const graph = makeGraph(
    ["N", 3],
    [
      node("Relu", "x", "a"),
      node("Sigmoid", "a", "z"),
      node("Identity", "a", "y"),
    ],
    {},
    { outputs: ["y", "z"] },
  );
  const result = simplified(graph, [2, 3]);
  equal(operators(result), "Relu Sigmoid");
  deepEqual(result.nodes[1]!.inputs, ["y"]);
});

Deno.test("simplify() keeps an Identity that joins a graph input or another output to an output", () => {
  const graph = makeGraph(
    ["N", 3],
    [
      node("Identity", "x", "y"),
      node("Relu", "x", "z"),
      node("Identity", "z", "w"),
    ],
    {},
    { outputs: ["y", "z", "w"] },
  );
  equal(operators(simplified(graph, [2, 3])), "Identity Relu Identity");
});

Deno.test("simplify() gives one tensor's name to one output only", () => {
  const graph = makeGraph(
    ["N", 3],
    [
      node("Relu", "x", "a"),
      node("Identity", "a", "y"),
      node("Identity", "a", "z"),
    ],
    {},
    { outputs: ["y", "z"] },
  );
  const result = simplified(graph, [2, 3]);
  deepEqual(result.nodes.map((n) => n.outputs[0]), ["y", "z"]);
  deepEqual(result.nodes[1]!.inputs, ["y"]);
});

Deno.test("simplify() leaves a constant that is a graph output to its node", () => {
  const graph = makeGraph(
    ["N", 3],
    [
      node("Relu", "x", "y"),
      node("Constant", "-", "z", { value_float: 1 }),
    ],
    {},
    { outputs: ["y", "z"] },
  );
  equal(operators(simplify(graph)), "Relu Constant");
});

Deno.test("simplify() makes auto_pad explicit, the odd pixel after for UPPER and before for LOWER", () => {
  for (
    const [mode, pads] of [["SAME_UPPER", [0, 1, 1, 1]], ["SAME_LOWER", [1, 1, 0, 1]]] as const
  ) {
    const attributes = { auto_pad: mode, strides: [2, 2] };
    const graph = makeGraph(["N", 2, 4, 5], [node("Conv", "x w", "y", attributes)], {
      w: [3, 2, 3, 3],
    });
    deepEqual(only(simplify(graph), "Conv").attributes, { strides: [2, 2], pads });
  }
});

Deno.test("simplify() merges a zero Pad into all convolutions that read it", () => {
  const graph = makeGraph(["N", 2, 5, 5], [
    node("Pad", "x p", "a"),
    node("Conv", "a w", "b", { pads: [1, 1, 1, 1] }),
    node("Conv", "a v", "c", { strides: [1, 1], pads: [1, 1, 1, 1] }),
    node("Add", "b c", "y"),
  ], { p: int64(0, 0, 0, 1, 0, 0, 2, 3), w: [3, 2, 3, 3], v: [3, 2, 3, 3] });
  const result = simplified(graph, [2, 2, 5, 5]);
  equal(operators(result), "Conv Conv Add");
  deepEqual(result.nodes.slice(0, 2).map((n) => n.attributes.pads), [[1, 2, 3, 4], [1, 2, 3, 4]]);
});

const KEPT_PADS: [string, Record<string, Parameters<typeof int64>>, string, number][] = [
  ["pads channels", { p: [0, 1, 0, 0, 0, 0, 0, 0] }, "Conv", 3],
  ["crops", { p: [0, 0, 1, 0, 0, 0, -1, 0] }, "Conv", 2],
  ["is read by pooling too", { p: [0, 0, 1, 0, 0, 0, 1, 0] }, "MaxPool", 2],
];
for (const [reason, { p }, opType, channels] of KEPT_PADS) {
  Deno.test(`simplify() keeps a Pad that ${reason}`, () => {
    const reader = opType === "Conv"
      ? node("Conv", "a w", "y")
      : node("MaxPool", "a", "y", { kernel_shape: [2, 2] });
    const graph = makeGraph(["N", 2, 5, 5], [node("Pad", "x p", "a"), reader], {
      p: int64(...p!),
      w: [3, channels, 3, 3],
    });
    equal(operators(simplified(graph, [1, 2, 5, 5])), `Pad ${opType}`);
  });
}

Deno.test("simplify() keeps a Pad for all its readers when one is no convolution", () => {
  const graph = makeGraph(["N", 2, 5, 5], [
    node("Pad", "x p", "a"),
    node("Conv", "a w", "b"),
    node("MaxPool", "a", "c", { kernel_shape: [3, 3] }),
    node("Mul", "b c", "y"),
  ], { p: int64(0, 0, 1, 0, 0, 0, 1, 0), w: [2, 2, 3, 3] });
  deepEqual(only(simplified(graph, [1, 2, 5, 5]), "Conv").inputs, ["a", "w"]);
});

Deno.test("simplify() keeps a Pad with a value or a mode of its own", () => {
  for (const [attributes, value] of [[{}, [1]], [{ mode: "reflect" }, [0]]] as const) {
    const graph = makeGraph(["N", 2, 5, 5], [
      node("Pad", "x p v", "a", attributes),
      node("Conv", "a w", "y"),
    ], {
      p: int64(0, 0, 1, 1, 0, 0, 1, 1),
      v: { dtype: "float32", shape: [], data: Float32Array.from(value) },
      w: [3, 2, 3, 3],
    });
    equal(operators(simplify(graph)), "Pad Conv");
  }
});

Deno.test("simplify() turns MatMul and Add into Gemm with weight [O, I]", () => {
  for (const bias of [[5], [1, 5], [1]]) {
    const graph = makeGraph(["N", 3], [
      node("MatMul", "x w", "a", {}, "fc"),
      node("Add", "b a", "y"),
    ], { w: [3, 5], b: bias });
    const result = simplified(graph, [4, 3]);
    const gemm = only(result, "Gemm");
    deepEqual([gemm.name, gemm.inputs, gemm.outputs], ["fc", ["x", "w", "b"], ["y"]]);
    deepEqual(result.initializers.get("w")!.shape, [5, 3]);
    deepEqual(result.initializers.get("b")!.shape, [5]);
  }
});

Deno.test("simplify() keeps an Add apart from a MatMul that others read", () => {
  const graph = makeGraph(["N", 3], [
    node("MatMul", "x w", "a"),
    node("Add", "a b", "c"),
    node("Mul", "c a", "y"),
  ], { w: [3, 5], b: [5] });
  equal(operators(simplified(graph, [4, 3])), "Gemm Add Mul");
});

Deno.test("simplify() rewrites alpha, beta and transB away and copies shared weights", () => {
  const graph = makeGraph(["N", 4], [
    node("Gemm", "x w b", "a", { alpha: 2, beta: -0.5 }),
    node("Gemm", "a w", "y"),
  ], { w: [4, 4], b: [4] });
  const result = simplified(graph, [3, 4]);
  deepEqual(result.nodes.map((n) => n.attributes), [{ transB: 1 }, { transB: 1 }]);
  // The first user gets the copy, the last one left keeps the name.
  deepEqual(result.nodes.map((n) => n.inputs[1]), ["w_1", "w"]);
});

for (const name of Object.keys(NETWORKS) as (keyof typeof NETWORKS)[]) {
  Deno.test({
    name: `simplify() keeps the function of ${name}`,
    ignore: sharedDataMissing,
    fn() {
      const graph = network(name);
      const result = simplify(graph);
      const { image } = NETWORKS[name];
      const classes = { resnet20: 10, resnet8: 10, squeezenet: 1000, lenet: 10, dscnn: 12 }[name];
      deepEqual(inferShapes(result, 3).get("logits"), [3, classes]);
      // squeezenet has 350 M multiply-accumulates, too many for the plain evaluator.
      if (name === "squeezenet") return;
      const x = randomValues(7, [1, ...image]);
      const expected = evaluate(graph, x).get("logits")!;
      assertSame(evaluate(result, x).get("logits")!, expected, ROUNDING);
      const pads = result.nodes.filter((each) => each.opType === "Pad").length;
      // resnet20 keeps the two that pad channels.
      equal(pads, { resnet20: 2, resnet8: 0, lenet: 0, dscnn: 0 }[name]);
    },
  });
}
