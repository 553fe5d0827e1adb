// Which kernels a network trains with: its forward and backward pass at one batch size, surveyed without running.
import { binaryForward } from "../../kernels/elementwise.ts";
import type { TileChoice } from "../../kernels/kernel.ts";
import { Tape } from "../autograd/tape.ts";
import { prepareNetwork, shapesForBatch } from "../distill/network.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import type { Graph } from "../graph/graph.ts";
import { fuseLayers } from "../graph/layers.ts";
import { type OpContext, valueOf } from "../ops/context.ts";
import { recordSteps } from "../ops/ops.ts";

/** Bits do not change the kernels' shapes. */
const BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };

/**
 * Choices of tiles in a training step of a network.
 *
 * @param device whose kernels are surveyed
 * @param model the network
 * @param batch inputs of a step
 * @returns what the tuner measures, each kernel and shape once
 * @throws UnsupportedError when the network cannot be executed
 */
export function networkTiles(device: Device, model: Graph, batch: number): readonly TileChoice[] {
  const network = prepareNetwork(model, BITS, false);
  const { graph } = network.teacher;
  const shapes = shapesForBatch(network.teacher, batch);
  using survey = new KernelSurvey(device);
  const tensor = (name: string) => survey.tensor(shapes.get(name) ?? [1], name);
  const tape = new Tape(survey, (shape) => binaryForward({ operator: "add", a: shape, b: shape }));
  const context: OpContext = {
    recorder: survey,
    graph,
    shapes,
    values: new Map([[network.input, tensor(network.input)]]),
    parameter: (name) => ({ value: tensor(name), gradient: tensor(`gradient of ${name}`) }),
    quantizer: () => undefined,
    tape,
  };
  recordSteps(context, fuseLayers(graph, new Set(), shapes));
  tape.give(valueOf(context, network.output), () => {});
  tape.backward();
  return survey.choices;
}
