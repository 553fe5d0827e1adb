// Students of the real networks, made in seconds: post-training quantization, nothing trained. One number of inputs for
// calibration and evaluation gives all of it one set of shaders, whose compilation takes most of the time.
import { distill, type DistillData } from "../../src/distill/distill.ts";
import { predict } from "../../src/distill/evaluate.ts";
import { NetworkValues } from "../../src/distill/inference.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import type { Report } from "../../src/distill/report.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { testDevice } from "../_gpu.ts";
import { type NetworkName, part, type RealNetwork, realNetwork } from "./_networks.ts";

/** A finished student and where it comes from. */
export interface MadeStudent {
  readonly real: RealNetwork;
  readonly student: QuantizedGraph;
  readonly report: Report;
  readonly onnx: Uint8Array<ArrayBuffer>;
}

/**
 * Makes a PTQ student, calibrated on the first of its inputs.
 *
 * @param name network
 * @param count inputs to compare on
 * @param options the recipe's changes, calibration inputs, and whether the report evaluates the inputs
 */
export async function ptqStudent(
  name: NetworkName,
  count: number,
  { recipe = {}, calibrated = 64, evaluate = false }: {
    readonly recipe?: Partial<Recipe>;
    readonly calibrated?: number;
    readonly evaluate?: boolean;
  } = {},
): Promise<MadeStudent> {
  const real = realNetwork(name, count);
  const data: DistillData = {
    calibration: part(real.images, 0, calibrated),
    ...(evaluate && { evaluation: real.images, evaluationLabels: real.labels }),
  };
  const changes = { method: "ptq", heldOut: 0, augment: { copies: 1, shift: 0, flip: false } };
  const complete = { ...real.preprocessing, ...changes, ...recipe } as Partial<Recipe>;
  const device = await testDevice();
  const { student, report } = await distill(real.graph, data, complete, { device });
  return { real, student, report, onnx: exportOnnx(student) };
}

/** Logits of the simulation: the frozen student's integers as the float32 values they stand for, on the GPU. */
export async function simulatedLogits({ real, student }: MadeStudent): Promise<Float32Array> {
  const device = await testDevice();
  // The bits are not used: the quantizers are there.
  const bits = { weightBits: 8, activationBits: 8, firstLastBits: 8 };
  const network = prepareNetwork(student.graph, bits, false);
  const { initializers } = network.teacher.graph;
  const { activations, dynamicLayers } = student;
  using values = new NetworkValues(device, initializers, activations, dynamicLayers);
  return await predict(device, network, values, real.images, real.preprocessing);
}
