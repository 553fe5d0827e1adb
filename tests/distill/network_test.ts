import assert from "node:assert/strict";
import { UnsupportedError } from "../../src/core/errors.ts";
import { nodesBetween, prepareNetwork, shapesForBatch } from "../../src/distill/network.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "../graph/_graphs.ts";

const BITS = { weightBits: 4, activationBits: 3, firstLastBits: 8 };

const MODEL = makeGraph(["N", 3, 4, 4], [
  node("Conv", "x one.weight", "a"),
  node("BatchNormalization", batchNormInputs("a", "one"), "b"),
  node("Relu", "b", "c"),
  node("Conv", "c w", "d"),
  node("Add", "d c", "e"),
  node("GlobalAveragePool", "e", "f"),
  node("Flatten", "f", "g"),
  node("Gemm", "g v", "y", { transB: 1 }),
], { ...convBatchNorm("one", [4, 3, 1, 1]), w: [4, 4, 1, 1], v: [2, 4] });

Deno.test("prepareNetwork() gives the first and last layer and what only they read more bits", () => {
  const network = prepareNetwork(MODEL, BITS, false);
  assert.deepEqual([...network.weightBits], [["Conv_a", 8], ["Conv_d", 4], ["Gemm_y", 8]]);
  const bits = Object.fromEntries(network.activationBits);
  assert.equal(bits.x, 8);
  assert.equal(bits.c, 3, "the middle layer reads it, too");
  assert.equal(bits.e, 8, "a pool before the last layer");
  assert.equal(network.input, "x");
  assert.equal(network.output, "y");
});

Deno.test("prepareNetwork() keeps batch norm for training only", () => {
  const types = (graph: typeof MODEL) => graph.nodes.map((n) => n.opType);
  const kept = prepareNetwork(MODEL, BITS, true), folded = prepareNetwork(MODEL, BITS, false);
  assert(types(kept.trained.graph).includes("BatchNormalization"));
  assert(!types(kept.teacher.graph).includes("BatchNormalization"));
  assert(!types(kept.folded).includes("BatchNormalization"));
  assert.deepEqual([...kept.batchNorms.keys()], ["Conv_a"]);
  assert.equal(folded.trained, folded.teacher);
});

Deno.test("prepareNetwork() refuses a shared weight and a network without layers", () => {
  const shared = makeGraph(["N", 4], [
    node("Gemm", "x w", "a", { transB: 1 }),
    node("Gemm", "a w", "y", { transB: 1 }),
  ], { w: [4, 4] });
  assert.throws(
    () => prepareNetwork(shared, BITS, false),
    (error) => error instanceof UnsupportedError && /"w" is shared/.test(error.message),
  );
  const none = makeGraph(["N", 4], [node("Relu", "x", "y")]);
  assert.throws(() => prepareNetwork(none, BITS, false), {
    name: "RangeError",
    message: /no Conv, Gemm or LSTM/,
  });
});

Deno.test("nodesBetween() takes what lies between tensors", () => {
  const names = (from: string[], to: string[]) =>
    nodesBetween(MODEL, from, to).map((n) => n.outputs[0]);
  assert.deepEqual(names(["c"], ["e"]), ["d", "e"]);
  assert.deepEqual(names(["x"], ["c"]), ["a", "b", "c"]);
  assert.deepEqual(names(["e"], ["e"]), []);
  assert.deepEqual(names(["d", "c"], ["y"]), ["e", "f", "g", "y"]);
});

Deno.test("shapesForBatch() changes the batch of activations only", () => {
  const { teacher } = prepareNetwork(MODEL, BITS, false);
  const shapes = shapesForBatch(teacher, 7);
  assert.deepEqual(shapes.get("x"), [7, 4, 4, 3]);
  assert.deepEqual(shapes.get("y"), [7, 2]);
  assert.deepEqual(shapes.get("w"), [4, 1, 1, 4]);
});
