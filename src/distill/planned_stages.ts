// What each method trains, on how many inputs and for how long, before anything runs: for the dry run.
import { type Block, cutIntoBlocks, partitionIntoLayers, wholeNetwork } from "../graph/blocks.ts";
import type { Device } from "../gpu/device.ts";
import { stepsFor, UNIT_BATCH } from "./block_loop.ts";
import { BLOCK_STEPS, stageFor } from "./methods/blockwise.ts";
import { JOINT_STEPS } from "./methods/joint.ts";
import { LAYER_STEPS } from "./methods/layerwise.ts";
import { qatSteps } from "./methods/qat.ts";
import type { Network } from "./network.ts";
import { networkBatch } from "./network_training.ts";
import type { PreparedRun } from "./prepare_run.ts";
import type { Recipe } from "./recipe.ts";

/** Training of a unit, or of the whole network. */
export interface PlannedStage {
  /** As in the progress of a run. */
  readonly stage: string;
  readonly unit: Block;
  /** Whether the whole network is trained behind, or instead of, its units. */
  readonly whole: boolean;
  /** At most. */
  readonly steps: number;
  /** How many are likely: a unit that loses little by rounding gets fewer. */
  readonly likelySteps: number;
  /** Inputs of a step. */
  readonly batch: number;
}

/**
 * The training of a run, in order.
 *
 * @param device whose limits count
 * @param prepared the run
 * @param recipe its recipe
 * @returns none where nothing is trained or compensated
 */
export function plannedStages(
  device: Pick<Device, "maxTensorBytes">,
  { network, split, trainRows, batch }: PreparedRun,
  recipe: Recipe,
): PlannedStage[] {
  const { graph } = network.teacher;
  const { method } = recipe;
  const clean = split.train.length;
  const whole = (stage: string, steps: number): PlannedStage[] => {
    const size = networkBatch(device, network, clean, batch);
    const unit = wholeNetwork(graph);
    return steps === 0
      ? []
      : [{ stage, unit, whole: true, steps, likelySteps: steps, batch: size }];
  };
  const units = (blocks: readonly Block[], ownSteps: number) =>
    blocks.map((unit): PlannedStage => {
      const steps = recipe.steps ?? ownSteps;
      const judged = recipe.steps === null && split.heldOut.length > 0;
      const likelySteps = judged ? stepsFor(steps, likelyError(network, unit)) : steps;
      const size = Math.min(batch, recipe.batchSize ?? UNIT_BATCH, trainRows);
      return { stage: method, unit, whole: false, steps, likelySteps, batch: size };
    });
  switch (method) {
    case "ptq":
      return recipe.weightRounding === "gptq" ? units(partitionIntoLayers(graph), 0) : [];
    case "layerwise":
      return units(partitionIntoLayers(graph), LAYER_STEPS);
    case "blockwise":
      return [
        ...units(cutIntoBlocks(graph), BLOCK_STEPS),
        ...whole("network", recipe.networkSteps ?? stageFor(recipe.activationBits).steps),
      ];
    case "joint":
      return whole("joint", recipe.steps ?? JOINT_STEPS);
    case "qat":
      return whole("qat", recipe.steps ?? qatSteps(clean, batch));
  }
}

/** Error of a unit over the variance of its target, times 4^bits: that of ResNet-20 at 8 and at 4 bits. */
const ERROR_FACTOR = 100;

/** What rounding to the unit's fewest bits will cost, by rule of thumb. */
function likelyError({ weightBits, activationBits }: Network, unit: Block): number {
  const bits = unit.nodes.flatMap((node) => {
    const weight = weightBits.get(node.name);
    return weight === undefined ? [] : [weight, activationBits.get(node.inputs[0]!) ?? weight];
  });
  return bits.length === 0 ? 0 : ERROR_FACTOR * 4 ** -Math.min(...bits);
}
