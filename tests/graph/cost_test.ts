// Counts worked out by hand from the layers' sizes.
import { deepEqual, equal } from "node:assert/strict";
import { toChannelsLast } from "../../src/graph/channels_last.ts";
import { countMacs, countWeights } from "../../src/graph/cost.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { makeGraph, node } from "./_graphs.ts";
import { network, type NETWORKS } from "./_networks.ts";

const GRAPH = makeGraph(["N", 4, 6, 6], [
  node("Conv", "x w", "a", {}, "conv"),
  node("Conv", "a d", "b", { group: 8 }, "depthwise"),
  node("Conv", "b g", "c", { group: 2 }, "grouped"),
  node("Flatten", "c", "e"),
  node("Gemm", "e f", "y", { transB: 1 }, "fc"),
], { w: [8, 4, 3, 3], d: [8, 1, 3, 3], g: [6, 4, 1, 1], f: [5, 24] });

const MACS = [
  ["conv", 2 * 4 * 4 * 8 * 4 * 9],
  ["depthwise", 2 * 2 * 2 * 8 * 9],
  ["grouped", 2 * 2 * 2 * 6 * 4],
  ["fc", 2 * 5 * 24],
];

Deno.test("countMacs() counts a batch of convolution, depthwise, grouped and linear layers", () => {
  deepEqual([...countMacs(GRAPH, inferShapes(GRAPH, 2))], MACS);
});

Deno.test("countMacs() and countWeights() give the same for channels last", () => {
  const last = toChannelsLast(GRAPH, inferShapes(GRAPH, 2));
  deepEqual([...countMacs(last.graph, last.shapes)], MACS);
  deepEqual(countWeights(last.graph), countWeights(GRAPH));
  deepEqual([...countWeights(GRAPH).values()], [288, 72, 24, 120]);
});

Deno.test("countMacs() counts the gates of an LSTM and the rows of sequences", () => {
  const graph = makeGraph(["N", 5, 3], [
    node("LSTM", "x w b", "h", { direction: "forward" }, "lstm"),
    node("Gemm", "h f", "y", { transB: 1, rank: 3 }, "fc"),
  ], { w: [8, 5], b: [8], f: [7, 2] });
  deepEqual([...countMacs(graph, inferShapes(graph, 2))], [
    ["lstm", 2 * 5 * 4 * 2 * (3 + 2)],
    ["fc", 2 * 5 * 7 * 2],
  ]);
  deepEqual([...countWeights(graph).values()], [40, 14]);
});

Deno.test({
  name: "countMacs() gives the multiply-accumulates of real networks",
  ignore: sharedDataMissing,
  fn() {
    const total = (name: keyof typeof NETWORKS) => {
      const graph = simplify(network(name));
      return [...countMacs(graph, inferShapes(graph, 1)).values()].reduce((a, b) => a + b, 0);
    };
    // Six 3x3 convolutions a stage; the first of a stage has half the input channels.
    const stage = (width: number, size: number) => 9 * width * width * size * size;
    const convolutions = 9 * 3 * 16 * 1024 + 6 * stage(16, 32) + stage(32, 16) / 2 +
      5 * stage(32, 16) +
      stage(64, 8) / 2 + 5 * stage(64, 8);
    equal(total("resnet20"), convolutions + 640);
    // Caffe's LeNet: 20*25*24*24 + 50*500*8*8 + 800*500 + 500*10.
    equal(total("lenet"), 2293000);
    const weights = [...countWeights(simplify(network("resnet20"))).values()];
    // 269722 parameters less batch norm (2 * 688) and the last bias.
    equal(weights.reduce((a, b) => a + b, 0), 269722 - 2 * 688 - 10);
  },
});
