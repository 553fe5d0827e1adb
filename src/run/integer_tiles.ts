// Which integer kernels a network's student runs on: its forward pass at the batch size of an evaluation, surveyed without
// running. The student is made up, as its kernels depend on what is quantized, not on the numbers.
import type { TileChoice } from "../../kernels/kernel.ts";
import { ndArray, sizeOf } from "../core/nd_array.ts";
import { evaluationBatch } from "../distill/evaluate.ts";
import { recordIntegerForward } from "../distill/integer_inference.ts";
import { IntegerValues } from "../distill/integer_values.ts";
import { type Network, prepareNetwork } from "../distill/network.ts";
import { DEFAULT_RECIPE } from "../distill/recipe.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import type { Graph } from "../graph/graph.ts";
import type { QTensor, QuantizedGraph } from "../graph/quantized_graph.ts";

/**
 * Choices of tiles in the forward pass of a student on its integers.
 *
 * @param device whose kernels are surveyed
 * @param model the fp32 network
 * @returns what the tuner measures, each kernel and shape once
 * @throws UnsupportedError when the network cannot be executed
 */
export function integerTiles(device: Device, model: Graph): readonly TileChoice[] {
  const student = anyStudent(prepareNetwork(model, DEFAULT_RECIPE, false));
  const network = prepareNetwork(student.graph, DEFAULT_RECIPE, false);
  const { teacher, input } = network;
  using values = new IntegerValues(device, student, network);
  using survey = new KernelSurvey(device);
  const rowShape = teacher.shapes.get(input)!.slice(1); // the input of a graph has a shape
  const x = survey.tensor([evaluationBatch(device, network), ...rowShape], input);
  recordIntegerForward(survey, network, values, x);
  return survey.choices.filter(({ integers }) => integers !== undefined);
}

/** Quantizers wherever a network has them, with steps of 1. */
function anyStudent({ folded, activationBits, weightBits }: Network): QuantizedGraph {
  const { initializers, nodes } = folded;
  const step = { scale: Float32Array.of(1), zeroPoint: Int32Array.of(0), axis: -1 };
  const weights = new Map<string, QTensor>(), biases = new Map<string, QTensor>();
  for (const { name, inputs: [, weight = "", bias = ""] } of nodes) {
    const shape = initializers.get(weight)?.shape;
    if (!weightBits.has(name) || shape === undefined) continue;
    weights.set(weight, {
      ...step,
      values: ndArray("int8", shape, new Int8Array(sizeOf(shape))),
      bits: 8,
    });
    if (bias === "") continue;
    const channels = sizeOf(initializers.get(bias)?.shape ?? []);
    const values = ndArray("int32", [channels], new Int32Array(channels));
    biases.set(bias, { ...step, values, bits: 32 });
  }
  const quantizer = { scale: 1, zeroPoint: 0, quantMin: 0, quantMax: 255, bits: 8 };
  const activations = new Map(activationBits.keys().map((name) => [name, quantizer]));
  return { graph: folded, weights, biases, activations };
}
