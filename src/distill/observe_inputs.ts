// Something about the inputs of every layer, summed up on the GPU batch by batch while the teacher runs.
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { RowSet } from "./frontier.ts";
import type { NetworkValues } from "./inference.ts";
import type { Network } from "./network.ts";
import { type PassOptions, TeacherPass, type TensorObserver } from "./teacher_pass.ts";

/** How inputs are observed. */
export interface ObserveOptions extends PassOptions {
  /** Records what is to be known of a tensor. */
  readonly record: (plan: Plan, x: Tensor) => Tensor;
}

/**
 * The tensors that layers with quantized weights read.
 *
 * @param network the network
 * @returns each name once, in the order of the layers
 */
export function layerInputs({ teacher, weightBits }: Network): string[] {
  const layers = teacher.graph.nodes.filter(({ name }) => weightBits.has(name));
  return [...new Set(layers.map((node) => node.inputs[0]!))];
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
  { record, ...options }: ObserveOptions,
  see: (tensor: string, found: Float32Array) => void,
): Promise<void> {
  const tensors = layerInputs(network);
  const found: Tensor[] = [];
  const observe: TensorObserver = (plan, x, i) => {
    found[i] = record(plan, x);
  };
  const pass = new TeacherPass(device, network, values, images, tensors, options);
  await pass.compileAhead([observe]);
  await pass.run(observe, async () => {
    for (const [i, name] of tensors.entries()) see(name, await device.read(found[i]!));
  });
}
