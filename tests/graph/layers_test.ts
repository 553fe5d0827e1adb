// Which nodes become one step, and that steps can be executed in the order given.
import { deepEqual, equal, ok } from "node:assert/strict";
import { toChannelsLast } from "../../src/graph/channels_last.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { fuseLayers, type Step } from "../../src/graph/layers.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "./_graphs.ts";
import { network } from "./_networks.ts";

// A step as text: operators of its nodes, what it reads and what it makes.
function describe(step: Step): string {
  if (step.kind === "node") return `${step.node.opType} -> ${step.node.outputs[0]}`;
  const { layer, batchNorm, residual, activation, input, output } = step;
  const parts = [layer, batchNorm, residual?.node, activation].filter((each) => each !== undefined);
  const other = residual === undefined ? "" : `+${residual.input}`;
  return `${parts.map((each) => each.opType).join("+")} ${input}${other} -> ${output}`;
}

function steps(graph: Graph, keep: readonly string[] = []): string[] {
  const result = fuseLayers(graph, new Set(keep), inferShapes(graph, 2));
  assertExecutable(graph, result);
  return result.map(describe);
}

// Each step finds what it reads, and each node runs exactly once.
function assertExecutable(graph: Graph, result: readonly Step[]): void {
  const made = new Set([...graph.initializers.keys(), ...graph.inputs.map((each) => each.name)]);
  const nodes: string[] = [];
  for (const step of result) {
    const own = step.kind === "node"
      ? [step.node]
      : [step.layer, step.batchNorm, step.residual?.node, step.activation].filter((n) =>
        n !== undefined
      );
    for (const each of own) {
      for (const input of each.inputs) ok(made.has(input), `${each.name} reads ${input} too early`);
      // Inner tensors of a step are seen by the step only: they are removed again below.
      for (const output of each.outputs) made.add(output);
      nodes.push(each.name);
    }
    for (const each of own.slice(0, -1)) made.delete(each.outputs[0]!);
  }
  deepEqual(nodes.toSorted(), graph.nodes.map((each) => each.name).toSorted());
  for (const output of graph.outputs) ok(made.has(output.name));
}

const RESIDUAL = makeGraph(["N", 4, 3, 3], [
  node("Conv", "x c.weight", "a"),
  node("BatchNormalization", batchNormInputs("a", "c"), "b"),
  node("Relu", "b", "r"),
  node("Conv", "r w", "d"),
  node("Add", "r d", "s"),
  node("Relu", "s", "y"),
], { ...convBatchNorm("c", [4, 4, 1, 1]), w: [4, 4, 1, 1] });

Deno.test("fuseLayers() fuses batch norm, residual addition and activation", () => {
  deepEqual(steps(RESIDUAL), ["Conv+BatchNormalization+Relu x -> r", "Conv+Add+Relu r+r -> y"]);
});

Deno.test("fuseLayers() ends a step at a kept tensor", () => {
  deepEqual(steps(RESIDUAL, ["d"]), [
    "Conv+BatchNormalization+Relu x -> r",
    "Conv r -> d",
    "Add -> s",
    "Relu -> y",
  ]);
  deepEqual(steps(RESIDUAL, ["s", "a"])[0], "Conv x -> a");
  deepEqual(steps(RESIDUAL, ["s"]).slice(1), ["Conv+Add r+r -> s", "Relu -> y"]);
  deepEqual(steps(RESIDUAL, ["y"]).slice(1), ["Conv+Add+Relu r+r -> y"]);
});

Deno.test("fuseLayers() ends a step at a graph output and at a tensor with two readers", () => {
  const graph = makeGraph(
    ["N", 4, 3, 3],
    [
      node("Conv", "x w", "a"),
      node("Relu", "a", "b"),
      node("Conv", "b w", "c"),
      node("Sigmoid", "c", "d"),
      node("Mul", "c d", "y"),
    ],
    { w: [4, 4, 1, 1] },
    { outputs: ["y", "a"] },
  );
  deepEqual(steps(graph), ["Conv x -> a", "Relu -> b", "Conv b -> c", "Sigmoid -> d", "Mul -> y"]);
});

Deno.test("fuseLayers() gives an Add of two layers to the later one", () => {
  for (const inputs of ["a b", "b a"]) {
    const graph = makeGraph(["N", 4, 3, 3], [
      node("Conv", "x w", "a"),
      node("Conv", "x v", "b"),
      node("Add", inputs, "s"),
      node("Clip", "s lo hi", "y"),
    ], { w: [4, 4, 1, 1], v: [4, 4, 1, 1], lo: [], hi: [] });
    deepEqual(steps(graph), ["Conv x -> a", "Conv+Add+Clip x+a -> y"]);
  }
});

Deno.test("fuseLayers() runs a step after the shortcut it adds", () => {
  const graph = makeGraph(["N", 4, 3, 3], [
    node("Conv", "x w", "a"),
    node("MaxPool", "x", "p", { kernel_shape: [1, 1] }),
    node("Add", "a p", "y"),
  ], { w: [4, 4, 1, 1] });
  deepEqual(steps(graph), ["MaxPool -> p", "Conv+Add x+p -> y"]);
});

Deno.test("fuseLayers() leaves additions that broadcast, of constants, and of a tensor to itself", () => {
  const graph = (add: string) =>
    makeGraph(["N", 4, 3, 3], [
      node("GlobalAveragePool", "x", "g"),
      node("Conv", "x w", "a"),
      node("Add", add, "s"),
      node("Add", "s g", "y"),
    ], { w: [4, 4, 1, 1], c: [2, 4, 3, 3] });
  for (const add of ["a g", "a c", "a a"]) {
    ok(steps(graph(add)).includes("Conv x -> a"), add);
  }
});

Deno.test("fuseLayers() does not fuse a batch norm after an activation", () => {
  const graph = makeGraph(["N", 4, 3, 3], [
    node("Conv", "x c.weight", "a"),
    node("Relu", "a", "b"),
    node("BatchNormalization", batchNormInputs("b", "c"), "y"),
  ], convBatchNorm("c", [4, 4, 1, 1]));
  deepEqual(steps(graph), ["Conv+Relu x -> b", "BatchNormalization -> y"]);
});

Deno.test({
  name: "fuseLayers() leaves only shortcuts and pooling of resnet20 unfused, channels last",
  ignore: sharedDataMissing,
  fn() {
    const first = simplify(network("resnet20"));
    const { graph, shapes } = toChannelsLast(first, inferShapes(first, 2));
    const result = fuseLayers(graph, new Set(), shapes);
    assertExecutable(graph, result);
    const single = result.flatMap((step) => step.kind === "node" ? [step.node.opType] : []);
    // Two shortcuts of two slices and a pad, and the global mean.
    deepEqual(single.toSorted(), ["Pad", "Pad", "ReduceMean", "Slice", "Slice", "Slice", "Slice"]);
    const residuals = result.filter((step) => step.kind === "layer" && step.residual !== undefined);
    equal(residuals.length, 9);
    equal(result.length - single.length, 20);
  },
});
