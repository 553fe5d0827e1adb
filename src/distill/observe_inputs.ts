// Something about the inputs of every layer, summed up on the GPU batch by batch while the teacher runs.
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { RowSet } from "./frontier.ts";
import { type NetworkValues, partBetween, recordForward } from "./inference.ts";
import type { Network } from "./network.ts";

/** How inputs are observed. */
export interface ObserveOptions {
  readonly batch: number;
  /** How many of the network's inputs, from the first on; those that fill no batch are left out. */
  readonly samples: number;
  readonly compiling?: CompileOptions;
  /** Records what is to be known of a tensor. */
  readonly record: (plan: Plan, x: Tensor) => Tensor;
}

/**
 * Runs the teacher and hands out what was recorded of each layer's input.
 *
 * @param device where to run
 * @param network the network
 * @param values the teacher's values
 * @param images the network's inputs
 * @param options batches, and what to record
 * @param see called for each batch and tensor that a layer reads
 */
export async function observeInputs(
  device: Device,
  network: Network,
  values: NetworkValues,
  images: RowSet,
  { batch, samples, compiling, record }: ObserveOptions,
  see: (tensor: string, found: Float32Array) => void,
): Promise<void> {
  const { nodes } = network.teacher.graph;
  const layers = nodes.filter((node) => network.weightBits.has(node.name));
  const tensors = [...new Set(layers.map((node) => node.inputs[0]!))];
  const part = partBetween(network.teacher, [network.input], tensors);
  const size = Math.min(batch, samples);
  const recordAll = (plan: Plan) => {
    const input = plan.tensor([size, ...images.rowShape], network.input);
    const inputs = new Map([[network.input, input]]);
    const all = recordForward(plan, part, values, inputs, new Set(tensors));
    return { input, found: tensors.map((name) => [name, record(plan, all.get(name)!)] as const) };
  };
  if (compiling) {
    using survey = new KernelSurvey(device);
    recordAll(survey);
    await device.compileAhead(survey.kernels, compiling);
  }
  using plan = new Plan(device);
  const { input, found } = recordAll(plan);
  for (let row = 0; row + size <= samples; row += size) {
    images.copyOut(row, size, input);
    plan.replay();
    for (const [name, tensor] of found) see(name, await device.read(tensor));
  }
}
