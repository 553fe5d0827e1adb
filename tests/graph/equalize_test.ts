// Passes that move ranges between layers: the function stays, the ranges become what they should be, in float64 with
// loops of the test's own.
import assert from "node:assert/strict";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { equalizeLayers, migrateRanges } from "../../src/graph/equalize.ts";
import { foldBatchNorm } from "../../src/graph/fold_batch_norm.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { evaluate } from "./_evaluate.ts";
import { makeGraph, node, normal } from "./_graphs.ts";
import { assertSame, network, NETWORKS, randomValues } from "./_networks.ts";

// Every weight is rounded to float32 once, 6e-8 relative, in up to 20 layers of sums that partly cancel.
const ROUNDING = 1e-5;

/** Rows of very different size, so that there is something to even out. */
function uneven(seed: number, shape: readonly number[]): NdArray {
  const { data } = normal(seed, shape) as NdArray<"float32">;
  const length = data.length / shape[0]!;
  return ndArray("float32", shape, data.map((w, i) => w * 2 ** (3 * (Math.floor(i / length) % 5))));
}

function weightOf(graph: Graph, name: string): { shape: readonly number[]; data: Float32Array } {
  return graph.initializers.get(name) as NdArray<"float32">;
}

/** [O]: largest |w| of each output channel. */
function made(graph: Graph, name: string): number[] {
  const { shape, data } = weightOf(graph, name);
  const length = data.length / shape[0]!;
  return Array.from(
    { length: shape[0]! },
    (_, o) => Math.max(...data.slice(o * length, (o + 1) * length).map(Math.abs)),
  );
}

/** Largest |w| that reads each input channel of a convolution [O, I / group, ...] or linear layer [O, C * features]. */
function read(graph: Graph, name: string, group = 1, features = 1): number[] {
  const { shape: [outputs = 1, inputs = 1], data } = weightOf(graph, name);
  const ranges = new Array<number>(group * inputs / features).fill(0);
  const kernel = data.length / outputs / inputs;
  data.forEach((w, at) => {
    const o = Math.floor(at / kernel / inputs), i = Math.floor(at / kernel) % inputs;
    const c = Math.floor((Math.floor(o / (outputs / group)) * inputs + i) / features);
    ranges[c] = Math.max(ranges[c]!, Math.abs(w));
  });
  return ranges;
}

function assertNear(actual: readonly number[], expected: readonly number[], tolerance: number) {
  assert.equal(actual.length, expected.length);
  actual.forEach((a, i) => {
    assert.ok(Math.abs(a / expected[i]! - 1) <= tolerance, `${i}: ${a} beside ${expected[i]}`);
  });
}

const FILTER = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };

/** A plain, a depthwise, a grouped and a linear layer with everything between them that a channel may pass. */
const CHAIN = makeGraph(["N", 3, 8, 8], [
  node("Conv", "x wa ba", "a", FILTER),
  node("Relu", "a", "ar"),
  node("Conv", "ar wb", "b", { ...FILTER, group: 6, strides: [2, 2] }),
  node("LeakyRelu", "b", "br", { alpha: 0.2 }),
  node("Conv", "br wc bc", "c", { ...FILTER, group: 2 }),
  node("PRelu", "c slope", "cr"),
  node("MaxPool", "cr", "cp", { kernel_shape: [2, 2], strides: [1, 1] }),
  node("Conv", "cp wd bd", "d", { kernel_shape: [1, 1] }),
  node("Clip", "d zero -", "dr"),
  node("AveragePool", "dr", "dp", { kernel_shape: [2, 2], pads: [0, 0, 1, 1] }),
  node("Flatten", "dp", "f"),
  node("Gemm", "f we be", "y", { transB: 1 }),
], {
  wa: uneven(1, [6, 3, 3, 3]),
  ba: [6],
  wb: uneven(2, [6, 1, 3, 3]),
  wc: uneven(3, [4, 3, 3, 3]),
  bc: [4],
  slope: [4, 1, 1],
  wd: uneven(4, [5, 4, 1, 1]),
  bd: [5],
  zero: ndArray("float32", [], Float32Array.of(0)),
  we: uneven(5, [3, 45]),
  be: [3],
});

Deno.test("equalizeLayers() keeps the function and makes both ranges of every channel equal", () => {
  const { graph, scales, skipped } = equalizeLayers(CHAIN);
  const x = randomValues(7, [2, 3, 8, 8]);
  assertSame(evaluate(graph, x).get("y")!, evaluate(CHAIN, x).get("y")!, ROUNDING);
  // The last change was below 1e-4; pairs around the last one changed may still be off by some of that.
  assertNear(made(graph, "wa"), read(graph, "wb", 6), 1e-3);
  assertNear(made(graph, "wb"), read(graph, "wc", 2), 1e-3);
  assertNear(made(graph, "wc"), read(graph, "wd"), 1e-3);
  assertNear(made(graph, "wd"), read(graph, "we", 1, 9), 1e-3);
  assert.deepEqual([...skipped], [["Gemm_y", '"y" is an output of the network']]);
  // The inner tensors were divided by the scales.
  const before = evaluate(CHAIN, x).get("d")!.data, after = evaluate(graph, x).get("d")!.data;
  const s = scales.get("Conv_d")!;
  assert.ok(Math.max(...s) / Math.min(...s) > 4, "there was something to do");
  const pixels = after.length / 2 / 5;
  after.forEach((v, i) => {
    const wanted = before[i]! / s[Math.floor(i / pixels) % 5]!;
    assert.ok(Math.abs(v - wanted) < 1e-4 * (1 + Math.abs(wanted)));
  });
  assert.deepEqual(made(CHAIN, "wa"), made(CHAIN, "wa"), "the original is left alone");
});

Deno.test("equalizeLayers() gives a depthwise triple the cube root of its ranges", () => {
  const graph = makeGraph(["N", 2, 5, 5], [
    node("Conv", "x wa", "a", FILTER),
    node("Relu", "a", "ar"),
    node("Conv", "ar wb", "b", { ...FILTER, group: 5 }),
    node("Relu", "b", "br"),
    node("Conv", "br wc", "y", { kernel_shape: [1, 1] }),
  ], { wa: uneven(1, [5, 2, 3, 3]), wb: uneven(8, [5, 1, 3, 3]), wc: [4, 5, 1, 1] });
  const [r1, r2, r3] = [made(graph, "wa"), made(graph, "wb"), read(graph, "wc")];
  const wanted = r1.map((r, c) => Math.cbrt(r * r2[c]! * r3[c]!));
  const result = equalizeLayers(graph).graph;
  for (const range of [made(result, "wa"), made(result, "wb"), read(result, "wc")]) {
    assertNear(range, wanted, 2e-4);
  }
});

Deno.test("equalizeLayers() follows a tensor to several readers and through Concat", () => {
  // SqueezeNet's fire module between two convolutions.
  const graph = makeGraph(["N", 2, 5, 5], [
    node("Conv", "x wa ba", "a", { kernel_shape: [1, 1] }),
    node("Relu", "a", "ar"),
    node("Conv", "ar wb", "b", { kernel_shape: [1, 1] }),
    node("Conv", "ar wc", "c", FILTER),
    node("Relu", "b", "br"),
    node("Relu", "c", "cr"),
    node("Concat", "br cr", "z", { axis: 1 }),
    node("Conv", "z wd", "y", { kernel_shape: [1, 1] }),
  ], {
    wa: uneven(1, [4, 2, 1, 1]),
    ba: [4],
    wb: uneven(2, [3, 4, 1, 1]),
    wc: uneven(3, [5, 4, 3, 3]),
    wd: uneven(4, [2, 8, 1, 1]),
  });
  const result = equalizeLayers(graph).graph;
  const x = randomValues(7, [2, 2, 5, 5]);
  assertSame(evaluate(result, x).get("y")!, evaluate(graph, x).get("y")!, ROUNDING);
  const both = read(result, "wb").map((r, c) => Math.max(r, read(result, "wc")[c]!));
  assertNear(made(result, "wa"), both, 1e-3);
  assertNear([...made(result, "wb"), ...made(result, "wc")], read(result, "wd"), 1e-3);
});

Deno.test("equalizeLayers() leaves alone, and names, what is no homogeneous way to a layer", () => {
  const graph = makeGraph(["N", 3, 4, 4], [
    node("Conv", "x wa", "a", FILTER),
    node("Clip", "a zero six", "ar"),
    node("Conv", "ar wb", "b", FILTER),
    node("Sigmoid", "b", "br"),
    node("Conv", "br wc", "c", FILTER),
    node("Relu", "c", "cr"),
    node("Conv", "cr wd", "d", FILTER),
    node("Add", "d cr", "y"),
  ], {
    ...Object.fromEntries(["wa", "wb", "wc", "wd"].map((name) => [name, [3, 3, 3, 3]])),
    zero: ndArray("float32", [], Float32Array.of(0)),
    six: ndArray("float32", [], Float32Array.of(6)),
  });
  const { graph: result, skipped } = equalizeLayers(graph);
  assert.deepEqual(Object.fromEntries(skipped), {
    Conv_a: '"Clip_ar" (Clip) mixes or clips it',
    Conv_b: '"Sigmoid_br" (Sigmoid) mixes or clips it',
    Conv_c: '"Add_y" (Add) mixes or clips it',
    Conv_d: '"Add_y" (Add) mixes or clips it',
  });
  for (const name of ["wa", "wb", "wc", "wd"]) {
    assert.deepEqual(weightOf(result, name).data, weightOf(graph, name).data);
  }
});

Deno.test("equalizeLayers() gives up on exponentially many ways", () => {
  // Each doubles the channels: 2^16 ways to the end, which would take no time here, but 2^60 are written as easily.
  const doubling = Array.from({ length: 16 }, (_, i) => {
    return node("Concat", `c${i} c${i}`, `c${i + 1}`, { axis: 1 });
  });
  const nodes = [node("Conv", "x w", "c0"), ...doubling];
  const graph = makeGraph(["N", 1, 1, 1], nodes, { w: [1, 1, 1, 1] }, { outputs: ["c16"] });
  assert.match(
    equalizeLayers(graph).skipped.get("Conv_c0")!,
    /^its channels go more than 1024 ways/,
  );
});

Deno.test("equalizeLayers() leaves channels alone that are zero on one side", () => {
  const wa = uneven(1, [4, 3, 1, 1]) as NdArray<"float32">, wb = uneven(2, [2, 4, 1, 1]);
  wa.data.fill(0, 3, 6);
  for (const o of [0, 1]) (wb as NdArray<"float32">).data[o * 4 + 2] = 0;
  const graph = makeGraph(["N", 3, 4, 4], [
    node("Conv", "x wa ba", "a"),
    node("Relu", "a", "r"),
    node("Conv", "r wb", "y"),
  ], { wa, ba: [4], wb });
  const { scales } = equalizeLayers(graph);
  const s = scales.get("Conv_a")!;
  assert.deepEqual([s[1], s[2]], [1, 1]);
  assert.ok(s[0] !== 1 && s[3] !== 1 && s.every(Number.isFinite));
});

Deno.test("migrateRanges() divides by max|x|^a / max|w|^(1-a) and keeps the function", () => {
  const x = randomValues(7, [2, 3, 8, 8]);
  const tensors = evaluate(CHAIN, x);
  // What each layer reads, by channel, as observed on x.
  const seen = (tensor: string): number[] => {
    const { shape: [, channels = 1], data } = tensors.get(tensor)!;
    const pixels = data.length / 2 / channels;
    return Array.from(
      { length: channels },
      (_, c) =>
        Math.max(...data.filter((_, i) => Math.floor(i / pixels) % channels === c).map(Math.abs)),
    );
  };
  const inputs = { Conv_b: seen("ar"), Conv_c: seen("br"), Conv_d: seen("cp"), Gemm_y: seen("dp") };
  const ranges = new Map(Object.entries(inputs));
  const { graph, scales } = migrateRanges(CHAIN, ranges, 0.3);
  assertSame(evaluate(graph, x).get("y")!, tensors.get("y")!, ROUNDING);
  const wanted = (xs: number[], ws: number[]) =>
    xs.map((r, c) => r > 0 ? r ** 0.3 / ws[c]! ** 0.7 : 1);
  assertNear([...scales.get("Conv_a")!], wanted(inputs.Conv_b, read(CHAIN, "wb", 6)), 1e-6);
  // The depthwise layer's own outputs were divided after its inputs had been multiplied: rows of c are as before.
  assertNear([...scales.get("Conv_b")!], wanted(inputs.Conv_c, read(CHAIN, "wc", 2)), 1e-6);
  assertNear([...scales.get("Conv_d")!], wanted(inputs.Gemm_y, read(CHAIN, "we", 1, 9)), 1e-6);
});

for (const name of ["dscnn", "resnet8"] as const) {
  Deno.test({
    name: `equalizeLayers() keeps the function of ${name}`,
    ignore: sharedDataMissing,
    fn: () => {
      const folded = foldBatchNorm(simplify(network(name)));
      const { graph, skipped } = equalizeLayers(folded);
      // All of DS-CNN is one chain; of ResNet-8's ten layers three make channels that no addition mixes.
      assert.equal(skipped.size, name === "dscnn" ? 1 : 7);
      const x = randomValues(7, [1, ...NETWORKS[name].image]);
      const output = folded.outputs[0]!.name;
      const [after, before] = [graph, folded].map((g) => evaluate(g, x).get(output)!);
      assertSame(after!, before!, ROUNDING);
    },
  });
}

Deno.test("equalizeLayers() follows the channels of sequences through single elements only", () => {
  const layers = (between: readonly ReturnType<typeof node>[]) =>
    simplify(makeGraph(["N", 4, 3], [
      node("MatMul", "x v", "a", {}, "one"),
      ...between,
      node("MatMul", "b w", "y", {}, "two"),
    ], { v: uneven(1, [3, 4]), w: [4, 2] }));
  const x = randomValues(3, [2, 4, 3]);
  const changed = (graph: Graph) => {
    const { graph: equalized, scales } = equalizeLayers(graph);
    assertSame(evaluate(equalized, x).get("y")!, evaluate(graph, x).get("y")!, ROUNDING);
    return scales.has("one");
  };
  assert.ok(changed(layers([node("Relu", "a", "b")])));
  // As many steps as channels: whoever took steps for channels would not notice by the sizes.
  assert.ok(!changed(layers([node("Relu", "a", "r"), node("Concat", "a r", "b", { axis: 1 })])));
});
