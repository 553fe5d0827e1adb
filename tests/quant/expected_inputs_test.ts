// The analytic mean against numeric integration, and which layers' inputs it can tell.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { clippedNormalMean, expectedInputs } from "../../src/quant/expected_inputs.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

/** Midpoint rule over 12 deviations to either side; the integrand's kinks limit it to about 1e-6. */
function integrated(mean: number, deviation: number, low: number, high: number): number {
  const steps = 20000;
  let sum = 0;
  for (let i = 0; i < steps; i++) {
    const z = -12 + 24 * (i + 0.5) / steps;
    const x = Math.min(Math.max(mean + deviation * z, low), high);
    sum += x * Math.exp(-z * z / 2);
  }
  return sum * 24 / steps / Math.sqrt(2 * Math.PI);
}

Deno.test("clippedNormalMean() is the integral, for Relu, Clip and no bound", () => {
  for (const mean of [-20, -3, -0.5, 0, 0.7, 2, 9]) {
    for (const deviation of [0.01, 0.3, 1, 4]) {
      for (const [low, high] of [[0, Infinity], [0, 6], [-1, 1], [-Infinity, Infinity]] as const) {
        const found = clippedNormalMean(mean, deviation, low, high);
        const wanted = integrated(mean, deviation, low, high);
        assert.ok(
          Math.abs(found - wanted) < 2e-6 * (1 + Math.abs(wanted)),
          `${mean}, ${deviation}, ${low}..${high}: ${found} beside ${wanted}`,
        );
      }
    }
  }
  assert.equal(clippedNormalMean(3, 0, 0, 2), 2);
  assert.equal(clippedNormalMean(-3, 0, 0, Infinity), 0);
});

const scalar = (value: number) => ndArray("float32", [], Float32Array.of(value));
const STATISTICS = new Map(["a", "b"].map((name, i) => [`Conv_${name}`, {
  mean: Float64Array.of(1, -1).map((m) => m + i),
  deviation: Float64Array.of(0.5, 2),
}]));

/** Expected inputs of the layer that makes y. */
function expected(nodes: ReturnType<typeof node>[]): number[] | undefined {
  const graph = makeGraph(["N", 3, 4, 4], [
    node("Conv", "x wa", "a"),
    node("Conv", "x wb", "b"),
    ...nodes,
  ], {
    wa: [2, 3, 1, 1],
    wb: [2, 3, 1, 1],
    w2: [3, 2, 1, 1],
    w4: [3, 4, 1, 1],
    w8: [3, 8],
    low: scalar(0),
    high: scalar(6),
  });
  const found = expectedInputs(graph, STATISTICS).get(nodes.at(-1)!.name);
  return found && [...found];
}

Deno.test("expectedInputs() tells what comes through activations, averages and Concat", () => {
  const mean = (of: string, low: number, high: number) => {
    const { mean, deviation } = STATISTICS.get(`Conv_${of}`)!;
    return [...mean].map((m, c) => clippedNormalMean(m, deviation[c]!, low, high));
  };
  assert.deepEqual(expected([node("Conv", "a w2", "y")]), [1, -1]);
  const relu = [node("Relu", "a", "ar"), node("Clip", "b low high", "br")];
  const both = [...mean("a", 0, Infinity), ...mean("b", 0, 6)];
  const concat = node("Concat", "ar br", "z", { axis: 1 });
  assert.deepEqual(expected([...relu, concat, node("Conv", "z w4", "y")]), both);
  const pool = node("AveragePool", "ar", "p", { kernel_shape: [3, 3] });
  const linear = [node("Flatten", "p", "f"), node("Gemm", "f w8", "y", { transB: 1 })];
  assert.deepEqual(expected([relu[0]!, pool, ...linear]), mean("a", 0, Infinity));
  const leaky = [node("LeakyRelu", "a", "l", { alpha: 0.25 }), node("Conv", "l w2", "y")];
  assert.deepEqual(
    expected(leaky),
    mean("a", 0, Infinity).map((e, c) => 0.25 * [1, -1][c]! + 0.75 * e),
  );
});

Deno.test("expectedInputs() tells nothing of maxima, sums, inputs and half-known tensors", () => {
  const read = node("Conv", "z w2", "y");
  assert.equal(expected([node("MaxPool", "a", "z", { kernel_shape: [2, 2] }), read]), undefined);
  assert.equal(expected([node("Add", "a b", "z"), read]), undefined);
  assert.equal(expected([node("Relu", "x", "z"), node("Conv", "z wa", "y")]), undefined);
  const unknown = [node("Conv", "x wb", "u"), node("Concat", "a u", "z", { axis: 1 })];
  assert.equal(expected([...unknown, node("Conv", "z w4", "y")]), undefined);
});
