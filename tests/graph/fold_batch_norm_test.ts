// Folding keeps the function of the network, touches nothing it must not, and names what it makes.
import { deepEqual, equal, throws } from "node:assert/strict";
import {
  batchNormAffine,
  findBatchNormFolds,
  foldBatchNorm,
} from "../../src/graph/fold_batch_norm.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { evaluate } from "./_evaluate.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "./_graphs.ts";
import { assertSame, network, NETWORKS, randomValues } from "./_networks.ts";

// Each weight is rounded to float32 once, 6e-8 relative; sums of a few dozen of them.
const ROUNDING = 1e-6;

function folded(graph: Graph, shape: readonly number[]): Graph {
  const before = [...graph.initializers].map(([name, { data }]) => [name, data.slice()]);
  const result = foldBatchNorm(graph);
  deepEqual([...graph.initializers].map(([name, { data }]) => [name, data]), before);
  const x = randomValues(3, shape);
  assertSame(evaluate(result, x).get("y")!, evaluate(graph, x).get("y")!, ROUNDING);
  return result;
}

Deno.test("foldBatchNorm() folds into a convolution without bias and names the new bias", () => {
  const graph = makeGraph(["N", 3, 5, 5], [
    node("Conv", "x c.weight", "a", { pads: [1, 1, 1, 1] }),
    node("BatchNormalization", batchNormInputs("a", "c"), "b", { epsilon: 0.01 }),
    node("Relu", "b", "y"),
  ], convBatchNorm("c", [4, 3, 3, 3]));
  const result = folded(graph, [2, 3, 5, 5]);
  deepEqual(result.nodes.map((n) => n.opType), ["Conv", "Relu"]);
  deepEqual(result.nodes[0]!.inputs, ["x", "c.weight", "c.bias"]);
  deepEqual(result.nodes[0]!.outputs, ["b"]);
  deepEqual([...result.initializers.keys()], ["c.weight", "c.bias"]);
});

Deno.test("foldBatchNorm() keeps the name of a bias and folds grouped convolutions", () => {
  const graph = makeGraph(["N", 4, 5, 5], [
    node("Conv", "x c.weight b0", "a", { group: 4 }),
    node("BatchNormalization", batchNormInputs("a", "c"), "y"),
  ], { ...convBatchNorm("c", [8, 1, 3, 3]), b0: [8] });
  const result = folded(graph, [2, 4, 5, 5]);
  deepEqual(result.nodes.map((n) => n.inputs), [["x", "c.weight", "b0"]]);
});

Deno.test("foldBatchNorm() folds into Gemm with either orientation of the weight", () => {
  for (const transB of [0, 1]) {
    const graph = makeGraph(["N", 3], [
      node("Gemm", "x w b0", "a", { transB }),
      node("BatchNormalization", batchNormInputs("a", "c"), "y"),
    ], { ...convBatchNorm("c", [4, 1]), w: transB === 1 ? [4, 3] : [3, 4], b0: [4] });
    equal(folded(graph, [2, 3]).nodes.length, 1);
  }
});

Deno.test("foldBatchNorm() gives layers that share a weight or bias their own", () => {
  const graph = makeGraph(["N", 4, 3, 3], [
    node("Conv", "x c.weight b0", "a"),
    node("BatchNormalization", batchNormInputs("a", "c"), "b"),
    node("Conv", "b c.weight b0", "y"),
  ], { ...convBatchNorm("c", [4, 4, 1, 1]), b0: [4] });
  const result = folded(graph, [2, 4, 3, 3]);
  deepEqual(result.nodes.map((n) => n.inputs.slice(1)), [["c.weight_1", "b0_1"], [
    "c.weight",
    "b0",
  ]]);
});

const KEPT: [string, Parameters<typeof node>[], string[]][] = [
  ["that reads a concatenation", [["Concat", "x x", "a", { axis: 1 }]], ["y"]],
  ["whose layer has another reader", [["Conv", "x c.weight", "a"], ["Relu", "a", "z"]], ["y", "z"]],
  ["whose layer makes a graph output", [["Conv", "x c.weight", "a"]], ["y", "a"]],
];
for (const [reason, before, outputs] of KEPT) {
  Deno.test(`foldBatchNorm() keeps a batch normalization ${reason}`, () => {
    const nodes = [
      ...before.map((each) => node(...each)),
      node("BatchNormalization", batchNormInputs("a", "c"), "y"),
    ];
    const graph = makeGraph(["N", 2, 3, 3], nodes, convBatchNorm("c", [4, 2, 1, 1]), { outputs });
    deepEqual(findBatchNormFolds(graph), []);
    deepEqual(folded(graph, [1, 2, 3, 3]).nodes, nodes);
  });
}

Deno.test("foldBatchNorm() keeps a batch normalization whose layer is read again later", () => {
  const graph = makeGraph(["N", 2, 3, 3], [
    node("Conv", "x c.weight", "a"),
    node("BatchNormalization", batchNormInputs("a", "c"), "b"),
    node("Mul", "a b", "y"),
  ], convBatchNorm("c", [4, 2, 1, 1]));
  deepEqual(folded(graph, [1, 2, 3, 3]).nodes, graph.nodes);
});

Deno.test("batchNormAffine() gives gamma / sqrt(var + eps) and beta - mean * scale", () => {
  const bn = node("BatchNormalization", "x g b m v", "y", { epsilon: 1 });
  const vector = (
    value: number,
  ) => ({ dtype: "float32", shape: [1], data: Float32Array.of(value) } as const);
  const graph = makeGraph(["N", 1], [bn], {
    g: vector(6),
    b: vector(10),
    m: vector(4),
    v: vector(8),
  });
  deepEqual(batchNormAffine(graph, bn), { scale: Float64Array.of(2), shift: Float64Array.of(2) });
  throws(() => batchNormAffine(makeGraph(["N", 1], [bn]), bn), /input "g" is not a constant/);
});

for (const [name, pairs] of [["resnet20", 19], ["resnet8", 7], ["dscnn", 9]] as const) {
  Deno.test({
    name: `foldBatchNorm() folds all ${pairs} pairs of ${name}`,
    ignore: sharedDataMissing,
    fn() {
      const graph = simplify(network(name));
      equal(findBatchNormFolds(graph).length, pairs);
      const result = foldBatchNorm(graph);
      equal(result.nodes.some((n) => n.opType === "BatchNormalization"), false);
      const x = randomValues(9, [1, ...NETWORKS[name].image]);
      const expected = evaluate(graph, x).get("logits")!;
      // One float32 rounding a weight, through up to 20 layers.
      assertSame(evaluate(result, x).get("logits")!, expected, 1e-5);
    },
  });
}
