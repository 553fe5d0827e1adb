// Act-to-weight migration (SmoothQuant, Xiao et al. 2023; AMCT's DMQ): channels that are wide in the activations are made
// narrower there and wider in the weights that read them, by ranges seen on calibration inputs.
import { rangePerChannel } from "../../kernels/observer.ts";
import type { Device } from "../gpu/device.ts";
import { divideStatistics } from "../graph/channel_statistics.ts";
import { migrateRanges } from "../graph/equalize.ts";
import { rowsAndChannels } from "../ops/context.ts";
import type { RowSet } from "./frontier.ts";
import { teacherValues } from "./inference.ts";
import { type Network, withWeights } from "./network.ts";
import { observeInputs, type ObserveOptions } from "./observe_inputs.ts";

/**
 * Moves a part of the activations' ranges into the weights.
 *
 * @param device where the teacher runs
 * @param network the network
 * @param images its inputs
 * @param strength 0 to 1
 * @param options batch and number of inputs looked at
 * @returns the network with other weights and the same function
 */
export async function migrateActivations(
  device: Device,
  network: Network,
  images: RowSet,
  strength: number,
  options: Omit<ObserveOptions, "record">,
): Promise<Network> {
  using values = teacherValues(device, network);
  const ranges = new Map<string, Float64Array>();
  await observeInputs(device, network, values, images, {
    ...options,
    record: (plan, x) => {
      const spec = rowsAndChannels(x.shape);
      const range = plan.tensor([2, spec.channels], `range of ${x.label}`);
      plan.run(rangePerChannel(spec, device.target), { x, range });
      return range;
    },
  }, (tensor, found) => {
    const channels = found.length / 2;
    const before = ranges.get(tensor) ?? new Float64Array(channels);
    ranges.set(tensor, before.map((r, c) => Math.max(r, -found[c]!, found[channels + c]!)));
  });
  const layers = network.teacher.graph.nodes.filter((node) => network.weightBits.has(node.name));
  const byLayer = new Map(layers.map(({ name, inputs }) => [name, ranges.get(inputs[0]!)!]));
  const { graph, scales } = migrateRanges(network.folded, byLayer, strength);
  return withWeights(network, graph, divideStatistics(network.statistics, scales));
}
