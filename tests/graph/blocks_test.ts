// Where networks of the usual kinds are cut, and that the pieces fit together again.
import { deepEqual, equal, ok } from "node:assert/strict";
import {
  type Block,
  blockGraph,
  cutIntoBlocks,
  partitionIntoLayers,
  wholeNetwork,
} from "../../src/graph/blocks.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { evaluate } from "./_evaluate.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "./_graphs.ts";
import { network, NETWORKS, randomValues } from "./_networks.ts";

// Blocks as text: outputs of the nodes of each.
function nodesOf(blocks: readonly Block[]): string[] {
  return blocks.map((block) => block.nodes.map((each) => each.outputs[0]).join(" "));
}

// Every node is in one block, blocks run in order, and each has the weights it needs and the outputs others read.
function assertPartition(graph: Graph, blocks: readonly Block[]): void {
  const made = new Set(graph.inputs.map((input) => input.name));
  const nodes = blocks.flatMap((block) => block.nodes);
  deepEqual(nodes.map((n) => n.name).toSorted(), graph.nodes.map((n) => n.name).toSorted());
  for (const block of blocks) {
    for (const input of block.inputs) ok(made.has(input), `${block.name} reads ${input} too early`);
    for (const output of block.outputs) made.add(output);
    ok(block.nodes.some((n) => n.opType === "Conv" || n.opType === "Gemm"), block.name);
  }
  for (const output of graph.outputs) ok(made.has(output.name));
  equal(new Set(blocks.map((block) => block.name)).size, blocks.length);
}

// Runs the blocks one after another and compares with the whole network, bit by bit.
function assertComposes(graph: Graph, blocks: readonly Block[], shape: readonly number[]): void {
  const shapes = inferShapes(graph, shape[0]!);
  const x = randomValues(2, shape);
  const expected = evaluate(graph, x);
  const made = new Map([["x", x]]);
  for (const block of blocks) {
    const part = blockGraph(graph, block, shapes);
    deepEqual(part.inputs.map((info) => info.name), block.inputs);
    for (const info of part.inputs.slice(1)) {
      // The evaluator takes one input; the others stand in as constants.
      const { shape: sizes, data } = made.get(info.name)!;
      (part.initializers as Map<string, unknown>).set(info.name, {
        dtype: "float64",
        shape: sizes,
        data,
      });
    }
    const tensors = evaluate(part, made.get(block.inputs[0]!)!);
    for (const output of block.outputs) {
      deepEqual(tensors.get(output), expected.get(output));
      made.set(output, tensors.get(output)!);
    }
  }
}

const W = { w: [4, 4, 1, 1], v: [4, 4, 1, 1], u: [4, 4, 1, 1], fc: [3, 4] };

const RESIDUAL = makeGraph(
  ["N", 4, 4, 4],
  [
    node("Conv", "x c.weight", "a"),
    node("BatchNormalization", batchNormInputs("a", "c"), "b"),
    node("Relu", "b", "r"),
    node("Conv", "r w", "d"),
    node("Relu", "d", "e"),
    node("Conv", "e v", "f"),
    node("Slice", "r", "s1", { starts: [0], ends: [4], axes: [2] }),
    node("Add", "f s1", "g"),
    node("Relu", "g", "h"),
    node("MaxPool", "h", "i", { kernel_shape: [2, 2] }),
    node("ReduceMean", "i", "j", { axes: [2, 3], keepdims: 0 }),
    node("Gemm", "j fc", "k", { transB: 1 }),
    node("Softmax", "k", "y"),
  ],
  { ...W, ...convBatchNorm("c", [4, 4, 1, 1]) },
  { opset: 9 },
);

Deno.test("cutIntoBlocks() cuts a residual network between its blocks, the head with its pooling", () => {
  const blocks = cutIntoBlocks(RESIDUAL);
  deepEqual(nodesOf(blocks), ["a b r", "d e f s1 g h i", "j k y"]);
  deepEqual(blocks.map((b) => [b.inputs, b.outputs]), [[["x"], ["r"]], [["r"], ["i"]], [["i"], [
    "y",
  ]]]);
  assertPartition(RESIDUAL, blocks);
  assertComposes(RESIDUAL, blocks, [2, 4, 4, 4]);
});

Deno.test("partitionIntoLayers() leaves a shortcut to the layer that adds it", () => {
  const blocks = partitionIntoLayers(RESIDUAL);
  deepEqual(nodesOf(blocks), ["a b r", "d e", "f s1 g h i j", "k y"]);
  deepEqual(blocks[2]!.inputs, ["e", "r"]);
  assertPartition(RESIDUAL, blocks);
  assertComposes(RESIDUAL, blocks, [2, 4, 4, 4]);
});

Deno.test("cutIntoBlocks() makes one block of each layer of a depthwise-separable network", () => {
  const graph = makeGraph(
    ["N", 4, 4, 4],
    [
      node("Pad", "x", "p", { pads: [0, 0, 1, 1, 0, 0, 1, 1] }),
      node("Conv", "p d", "a", { group: 4 }),
      node("Relu", "a", "b"),
      node("Conv", "b w", "c"),
      node("Relu", "c", "e"),
      node("AveragePool", "e", "f", { kernel_shape: [4, 4] }),
      node("Flatten", "f", "g"),
      node("Gemm", "g fc", "y", { transB: 1 }),
    ],
    { ...W, d: [4, 1, 3, 3] },
    { opset: 10 },
  );
  const blocks = cutIntoBlocks(graph);
  deepEqual(nodesOf(blocks), ["p a b", "c e f", "g y"]);
  assertPartition(graph, blocks);
  deepEqual(nodesOf(partitionIntoLayers(graph)), ["p a b", "c e f g", "y"]);
});

const FIRE = makeGraph(["N", 4, 4, 4], [
  node("Conv", "x w", "a", {}, "squeeze"),
  node("Relu", "a", "b"),
  node("Conv", "b v", "c", {}, "fire/one/Conv"),
  node("Relu", "c", "d"),
  node("Conv", "b u", "e", {}, "fire/three/Conv"),
  node("Relu", "e", "f"),
  node("Concat", "d f", "g", { axis: 1 }),
  node("MaxPool", "g", "y", { kernel_shape: [2, 2] }),
], W);

Deno.test("cutIntoBlocks() keeps the two branches of a fire module together", () => {
  const blocks = cutIntoBlocks(FIRE);
  deepEqual(nodesOf(blocks), ["a b", "c d e f g y"]);
  deepEqual(blocks.map((block) => block.name), ["squeeze", "fire"]);
  assertComposes(FIRE, blocks, [1, 4, 4, 4]);
});

Deno.test("partitionIntoLayers() gives a Concat to the last of its layers", () => {
  const blocks = partitionIntoLayers(FIRE);
  deepEqual(nodesOf(blocks), ["a b", "c d", "e f g y"]);
  deepEqual(blocks[2]!.inputs, ["b", "d"]);
  deepEqual(blocks.map((block) => block.name), ["squeeze", "fire/one", "fire/three"]);
  assertComposes(FIRE, blocks, [1, 4, 4, 4]);
});

Deno.test("cutIntoBlocks() keeps a branch at the input in the first block", () => {
  const graph = makeGraph(["N", 4, 4, 4], [
    node("Conv", "x w", "a"),
    node("Conv", "a v", "b"),
    node("Add", "b x", "c"),
    node("Conv", "c u", "y"),
  ], W);
  const blocks = cutIntoBlocks(graph);
  deepEqual(nodesOf(blocks), ["a b c", "y"]);
  deepEqual(blocks[0]!.name, "Conv_a..Conv_b");
  assertComposes(graph, blocks, [1, 4, 4, 4]);
});

Deno.test("cutIntoBlocks() gives out a graph output from the middle with its block", () => {
  const graph = makeGraph(
    ["N", 4, 4, 4],
    [
      node("Conv", "x w", "a"),
      node("Relu", "a", "z"),
      node("Conv", "z v", "y"),
    ],
    W,
    { outputs: ["a", "y"] },
  );
  deepEqual(cutIntoBlocks(graph).map((block) => block.outputs), [["z", "a"], ["y"]]);
});

Deno.test("partitionIntoLayers() puts the layer's own output first, whatever the order of the file", () => {
  const graph = makeGraph(["N", 4, 4, 4], [
    node("Relu", "x", "p"),
    node("Conv", "x w", "a"),
    node("Conv", "p v", "b"),
    node("Relu", "a", "c"),
    node("Relu", "b", "d"),
    node("Add", "c p", "e"),
    node("Concat", "d e", "y", { axis: 1 }),
  ], W);
  const blocks = partitionIntoLayers(graph);
  deepEqual(nodesOf(blocks), ["a c p e", "b d y"]);
  deepEqual(blocks[0]!.outputs, ["e", "p"]);
  assertComposes(graph, blocks, [1, 4, 4, 4]);
});

Deno.test("wholeNetwork() is the graph as one block", () => {
  const block = wholeNetwork(RESIDUAL);
  deepEqual([block.name, block.inputs, block.outputs], ["test", ["x"], ["y"]]);
  const part = blockGraph(RESIDUAL, block, inferShapes(RESIDUAL, 1));
  deepEqual([part.nodes, part.inputs], [RESIDUAL.nodes, RESIDUAL.inputs]);
  equal(part.initializers.has("u"), false);
});

const BLOCK_COUNTS = {
  resnet20: [11, 20],
  resnet8: [5, 10],
  squeezenet: [18, 26],
  lenet: [4, 4],
  dscnn: [10, 10],
};
for (const [name, counts] of Object.entries(BLOCK_COUNTS)) {
  Deno.test({
    name: `cutIntoBlocks() and partitionIntoLayers() cut ${name} into ${counts.join(" and ")}`,
    ignore: sharedDataMissing,
    fn() {
      const key = name as keyof typeof NETWORKS;
      const graph = simplify(network(key));
      const blocks = cutIntoBlocks(graph), layers = partitionIntoLayers(graph);
      assertPartition(graph, blocks);
      assertPartition(graph, layers);
      deepEqual([blocks.length, layers.length], counts);
      ok(blocks.every((block) => block.inputs.length === 1 && block.outputs.length === 1));
      if (name === "squeezenet") return;
      assertComposes(graph, layers, [1, ...NETWORKS[key].image]);
    },
  });
}

Deno.test({
  name: "cutIntoBlocks() names the 11 units of resnet20",
  ignore: sharedDataMissing,
  fn() {
    const blocks = cutIntoBlocks(simplify(network("resnet20")));
    deepEqual(blocks.map((block) => block.name), [
      "conv1",
      ...[1, 2, 3].flatMap((layer) => [0, 1, 2].map((i) => `layer${layer}/layer${layer}.${i}`)),
      "linear",
    ]);
    deepEqual(blocks.at(-1)!.nodes.map((n) => n.opType), ["ReduceMean", "Gemm"]);
  },
});
