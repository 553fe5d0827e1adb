// Absorption keeps the function where channels stay above what was absorbed, and touches nothing that could tell.
import assert from "node:assert/strict";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { absorbBiases } from "../../src/graph/absorb_biases.ts";
import { batchNormStatistics, divideStatistics } from "../../src/graph/channel_statistics.ts";
import { foldBatchNorm } from "../../src/graph/fold_batch_norm.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { evaluate, type Values } from "./_evaluate.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "./_graphs.ts";
import { assertSame, randomValues } from "./_networks.ts";

const vector = (...values: number[]): NdArray =>
  ndArray("float32", [values.length], Float32Array.from(values));

/** Channel 0 is high above zero, 1 is not, 2 has a negative gamma and is high, 3 has no spread. */
const BATCH_NORM = {
  ...convBatchNorm("c", [4, 3, 1, 1]),
  "c.gamma": vector(0.5, 2, -1, 0),
  "c.beta": vector(5, 1, 4, 2),
};
const ABSORBED = [5 - 1.5, 0, 4 - 3, 2];

function makeNet(
  tail: ReturnType<typeof node>[],
  arrays: Record<string, readonly number[]>,
): Graph {
  return makeGraph(["N", 3, 4, 4], [
    node("Conv", "x c.weight", "a"),
    node("BatchNormalization", batchNormInputs("a", "c"), "b"),
    node("Relu", "b", "r"),
    ...tail,
  ], { ...BATCH_NORM, ...arrays });
}

const TAIL = [
  node("MaxPool", "r", "p", { kernel_shape: [2, 2], pads: [0, 0, 1, 1] }),
  node("Conv", "p w", "y", { kernel_shape: [3, 3], group: 2 }),
];

function absorbed(graph: Graph) {
  return absorbBiases(foldBatchNorm(graph), batchNormStatistics(graph));
}

Deno.test("absorbBiases() moves mean - 3 deviations on, and keeps the function above it", () => {
  const net = makeNet(TAIL, { w: [6, 2, 3, 3] });
  const { graph, constants, statistics } = absorbed(net);
  assert.deepEqual([...constants.get("Conv_a")!], ABSORBED);
  assert.deepEqual([...statistics.get("Conv_a")!.mean], [1.5, 1, 3, 0]);
  assert.deepEqual([...statistics.get("Conv_a")!.deviation], [0.5, 2, 1, 0]);
  // Inputs so small that the batch norm gives about what it gives at 0, and its mean put there.
  const still = {
    ...net,
    initializers: new Map(net.initializers).set("c.mean", vector(0, 0, 0, 0)),
  };
  const x: Values = randomValues(7, [2, 3, 4, 4]);
  const small = { ...x, data: x.data.map((v) => v * 0.02) };
  const quiet = absorbed(still).graph;
  const before = evaluate(still, small), after = evaluate(quiet, small);
  const largest = (values: Values) => Math.max(...values.data);
  assert.ok(largest(after.get("r")!) < largest(before.get("r")!) - 1, "ranges became smaller");
  // Weights rounded to float32 once.
  assertSame(after.get("y")!, before.get("y")!, 1e-6);
  // Far below c the function does change: the test above says something.
  const far = { ...x, data: x.data.map((v) => v * 20) };
  const [p, q] = [evaluate(net, far).get("y")!, evaluate(graph, far).get("y")!];
  assert.ok(p.data.some((v, i) => Math.abs(v - q.data[i]!) > 0.1));
});

Deno.test("absorbBiases() leaves alone what a shift would show behind", () => {
  const padded = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };
  const tails = [
    [node("Conv", "r w", "y", { ...padded, kernel_shape: [1, 1] })],
    [node("Conv", "r w", "d"), node("Add", "d r", "y")],
    [
      node("AveragePool", "r", "p", { ...padded, count_include_pad: 1 }),
      node("Conv", "p w", "y"),
    ],
  ];
  for (const tail of tails) {
    const net = makeNet(tail, { w: [4, 4, 1, 1] });
    const { graph, constants } = absorbed(net);
    assert.equal(constants.size, 0);
    assert.deepEqual(graph.initializers, foldBatchNorm(net).initializers);
  }
  const kept = makeNet(tails[2]!.with(0, node("AveragePool", "r", "p", padded)), {
    w: [4, 4, 1, 1],
  });
  assert.equal(absorbed(kept).constants.size, 1, "padding that is not counted");
});

Deno.test("absorbBiases() skips layers without batch norm", () => {
  const net = makeGraph(["N", 3, 4, 4], [
    node("Conv", "x w b", "a"),
    node("Relu", "a", "r"),
    node("Conv", "r v", "y"),
  ], { w: [4, 3, 1, 1], b: vector(9, 9, 9, 9), v: [2, 4, 1, 1] });
  assert.equal(absorbed(net).constants.size, 0);
});

Deno.test("divideStatistics() divides mean and deviation of the layers with scales", () => {
  const one = { mean: Float64Array.of(4, -3), deviation: Float64Array.of(2, 1) };
  const table = new Map([["a", one], ["b", one]]);
  const result = divideStatistics(table, new Map([["a", Float64Array.of(2, 0.5)]]));
  assert.deepEqual([...result.get("a")!.mean], [2, -6]);
  assert.deepEqual([...result.get("a")!.deviation], [1, 2]);
  assert.deepEqual(result.get("b"), one);
});
