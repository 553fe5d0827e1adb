// What a run is made of before anything runs: the network made ready, which inputs train and which ones judge, how many go
// through it at a time, and how the activations of all of them are kept.
import { GpuError } from "../core/errors.ts";
import { chooseSamples, type Split, splitHeldOut } from "../data/sampler.ts";
import type { Device } from "../gpu/device.ts";
import type { Graph } from "../graph/graph.ts";
import { type FrontierPlace, placeFrontier, type SampleCounts } from "./frontier_memory.ts";
import { fittingBatch } from "./inference.ts";
import { type Network, prepareNetwork } from "./network.ts";
import { copiesFor } from "./presets.ts";
import { batchNormPolicy, type Recipe } from "./recipe.ts";

/** A run that has not begun. */
export interface PreparedRun {
  readonly network: Network;
  /** Indices of the calibration inputs. */
  readonly split: Split;
  /** Inputs trained on, augmented copies included. */
  readonly trainRows: number;
  /** Inputs that go through the network at a time. */
  readonly batch: number;
  /** Rows and batch that memory was chosen for. */
  readonly counts: SampleCounts;
  readonly frontier: FrontierPlace;
}

/** Samples that go through a network at a time unless the recipe says otherwise. */
const BATCH = 64;

/**
 * Prepares a run; nothing is uploaded or computed.
 *
 * @param device whose limits count
 * @param model the network as imported
 * @param available calibration inputs there are
 * @param recipe complete
 * @returns network, samples and memory
 * @throws GpuError when the device cannot store tiles as the recipe asks
 * @throws UnsupportedError when the network cannot be executed
 * @throws RangeError when an override matches no layer, or a mini-batch does not fit
 */
export function prepareRun(
  device: Pick<
    Device,
    "adapterName" | "hasFloat16Tiles" | "limits" | "maxTensorBytes" | "target"
  >,
  model: Graph,
  available: number,
  recipe: Recipe,
): PreparedRun {
  if (recipe.tileStorage === "float16" && !device.hasFloat16Tiles) {
    const reason = device.target.family === "gpu" ? "it has no shader-f16" : "it is a CPU adapter";
    throw new GpuError(`Cannot store tiles as float16 on "${device.adapterName}": ${reason}`);
  }
  const network = prepareNetwork(model, recipe, batchNormPolicy(recipe) !== "folded", recipe);
  const chosen = chooseSamples(available, recipe.samples, recipe.seed);
  const split = splitHeldOut(chosen, recipe.heldOut);
  const trainRows = split.train.length *
    copiesFor(recipe, network.teacher.shapes.get(network.input)!);
  const fitting = fittingBatch(device, network.trained, recipe.batchSize ?? BATCH);
  const batch = Math.min(fitting, trainRows);
  const counts = { rows: trainRows + split.heldOut.length, batch };
  const frontier = placeFrontier(device, network, counts, recipe);
  return { network, split, trainRows, batch, counts, frontier };
}
