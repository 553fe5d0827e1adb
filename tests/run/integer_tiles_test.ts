// What is tuned for a network is what its student runs, whatever the student's numbers are.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { distill } from "../../src/distill/distill.ts";
import { evaluationBatch } from "../../src/distill/evaluate.ts";
import { recordIntegerForward } from "../../src/distill/integer_inference.ts";
import { IntegerValues } from "../../src/distill/integer_values.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { DEFAULT_RECIPE } from "../../src/distill/recipe.ts";
import type { Device } from "../../src/gpu/device.ts";
import { KernelSurvey } from "../../src/gpu/kernel_survey.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { integerTiles } from "../../src/run/integer_tiles.ts";
import { forEachTarget, randomArray } from "../_gpu.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const GRAPH = makeGraph(["N", 3, 8, 8], [
  node("Conv", "x w b", "c", { pads: [1, 1, 1, 1] }),
  node("Relu", "c", "d"),
  node("Conv", "d v", "e", { pads: [1, 1, 1, 1], group: 6 }),
  node("Add", "e d", "f"),
  node("Conv", "f s", "g"),
  node("MaxPool", "g", "h", { kernel_shape: [2, 2], strides: [2, 2] }),
  node("ReduceMean", "h", "i", { axes: [2, 3], keepdims: 0 }),
  node("Gemm", "i t", "y", { transB: 1 }),
], { w: [6, 3, 3, 3], b: [6], v: [6, 1, 3, 3], s: [8, 6, 1, 1], t: [3, 8] });

/** Keys of the choices that a student's forward pass makes. */
function keysOf(device: Device, student: QuantizedGraph): string[] {
  const network = prepareNetwork(student.graph, DEFAULT_RECIPE, false);
  using values = new IntegerValues(device, student, network);
  using survey = new KernelSurvey(device);
  const x = survey.tensor([evaluationBatch(device, network), 8, 8, 3], "x");
  recordIntegerForward(survey, network, values, x);
  return survey.choices.map(({ key }) => key);
}

forEachTarget("integerTiles() gives the choices of a real student", async (device) => {
  const calibration = ndArray("float32", [8, 3, 8, 8], Float32Array.from(randomArray(1, 8 * 192)));
  const recipe = { method: "ptq", heldOut: 0, samples: 8, weightBits: 4 } as const;
  const { student } = await distill(GRAPH, { calibration }, recipe, { device });
  const before = device.liveBytes;
  const choices = integerTiles(device, GRAPH);
  assert.equal(device.liveBytes, before);
  assert.deepEqual(choices.map(({ key }) => key), keysOf(device, student));
  const names = choices.map(({ key }) => key.split(" ")[0]);
  assert.deepEqual(names.toSorted(), [
    ...Array(3).fill("integer_conv2d"),
    ...Array(2).fill("integer_depthwise_conv2d"),
  ]);
});
