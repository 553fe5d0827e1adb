// What each method trains, on how many inputs and for how long, before anything runs: for the dry run.
import { type Block, wholeNetwork } from "../graph/blocks.ts";
import type { Device } from "../gpu/device.ts";
import { stepsFor } from "./block_loop.ts";
import { JOINT_STEPS } from "./methods/joint.ts";
import { lastStage } from "./methods/reconstruct.ts";
import { qatPlan } from "./methods/qat.ts";
import type { Network } from "./network.ts";
import { networkBatch } from "./network_training.ts";
import type { PreparedRun } from "./prepare_run.ts";
import { recipeAtBits } from "./progressive.ts";
import { EPTQ, PRESETS } from "./presets.ts";
import type { Recipe } from "./recipe.ts";
import { BLOCKWISE, type Stage, stagesFor } from "./stage.ts";
import { unitsOf } from "./units.ts";

/** What of a stage says what trains. */
type Training = Pick<Stage, "rates" | "weightQuantizer" | "activationQuantizer">;

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
  /** What trains. */
  readonly training: Training;
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
  const { method } = recipe;
  const clean = split.train.length;
  const whole = (stage: string, training: WholeTraining): PlannedStage[] => {
    const { steps } = training;
    if (steps === 0) return [];
    const most = networkBatch(device, network, clean, batch);
    const size = Math.min(most, training.batch ?? most);
    const unit = wholeNetwork(network.teacher.graph);
    return [{ stage, unit, whole: true, steps, likelySteps: steps, batch: size, training }];
  };
  const units = (training: Stage, stage: string = method): PlannedStage[] =>
    unitsOf(network.teacher, training.unit, recipe.groups).map((unit) => {
      const { steps } = training;
      const judged = training.adaptive && split.heldOut.length > 0;
      const likelySteps = judged ? stepsFor(steps, likelyError(network, unit)) : steps;
      const size = Math.min(batch, training.batch, trainRows);
      return { stage, unit, whole: false, steps, likelySteps, batch: size, training };
    });
  const own = stagesFor([BLOCKWISE], recipe)[0]!;
  // The whole network goes as many inputs at a time as fit.
  const { rates, weightQuantizer, activationQuantizer } = own;
  const step: Training = { rates, weightQuantizer, activationQuantizer };
  switch (method) {
    case "ptq":
      return recipe.weightRounding === "gptq"
        ? units({ ...own, unit: recipe.unit ?? "layer", steps: 0, adaptive: false })
        : [];
    case "joint":
      return whole("joint", { ...step, steps: recipe.steps ?? JOINT_STEPS });
    case "qat":
      return [...recipe.progressive, 0].flatMap((bits) => {
        const { blocks, networkSteps } = qatPlan(recipeAtBits(recipe, bits), clean, batch);
        return [
          ...(blocks.steps > 0 ? units(blocks, "blockwise") : []),
          ...whole("qat", { ...step, steps: networkSteps }),
        ];
      });
    case "eptq":
      return whole("eptq", stagesFor([EPTQ], recipe)[0]!);
    default: {
      const last = lastStage(method, recipe, clean);
      return [
        ...stagesFor(PRESETS[method].stages, recipe).flatMap((stage) => units(stage)),
        ...whole("network", {
          ...step,
          steps: recipe.networkSteps ?? last.steps,
          batch: last.batch,
        }),
      ];
    }
  }
}

/** What the plan tells of a training of the whole network. */
type WholeTraining = Training & Pick<Stage, "steps"> & {
  readonly batch?: number;
};

/** Error of a unit over the variance of its target, times 4^bits: that of ResNet-20 at 4 and at 3 bits. */
const ERROR_FACTOR = 20;

/** What rounding to the unit's fewest bits will cost, by rule of thumb. */
function likelyError({ weightBits, activationBits }: Network, unit: Block): number {
  const bits = unit.nodes.flatMap((node) => {
    const weight = weightBits.get(node.name);
    return weight === undefined ? [] : [weight, activationBits.get(node.inputs[0]!) ?? weight];
  });
  return bits.length === 0 ? 0 : ERROR_FACTOR * 4 ** -Math.min(...bits);
}
