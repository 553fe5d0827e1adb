// A stage of a method: one pass over the units of a network, each trained to give what the teacher's gives. What the
// published methods differ in are the fields below, so that a method is a row of values (presets.ts); the recipe
// may set most of them by itself.
import type { ActivationTrainer } from "../quant/activation_parameters.ts";
import type { LearningRates, WeightQuantizer } from "../quant/training_parameters.ts";
import type { Recipe } from "./recipe.ts";
import { OPTIMIZATION, type Optimization } from "./optimization.ts";
import type { UnitKind } from "./units.ts";

/**
 * Whose activations a unit trains on: the student's; the teacher's, through the quantizers of the student; the teacher's as
 * they are (float, the second pass of BRECQ); each element the student's or the teacher's as it is, with probability one
 * half (QDrop); or the nearer: a mini-batch of the student's unless it differs from the teacher's, quantized, by more than
 * half of its mean square (AMCT).
 */
export type InputMode = "student" | "teacher" | "float" | "mixed" | "nearest";

/**
 * How the activations inside a unit are quantized while it trains: all of them; none; each element with probability one
 * half (QDrop); or ever more of each element (gradual, EPTQ).
 */
export type ActivationMode = "quantized" | "float" | "dropped" | "gradual";

/** The error of a unit's output that is minimized. */
export interface UnitLoss {
  /**
   * The mean over all elements of |error|^exponent; "fisher" weights each squared error with the squared gradient of the
   * network's output divergence (BRECQ), "hessian" each sample by a label-free estimate of the Hessian (EPTQ).
   */
  readonly kind: "power" | "fisher" | "hessian";
  /** 2 for squared errors. */
  readonly exponent: number;
  /** The mean divided by the variance of the target, the mean itself, or summed over the channels (AdaRound). */
  readonly scale: "variance" | "mean" | "channelSum";
}

/** One pass over the units. */
export interface Stage {
  readonly unit: UnitKind;
  readonly inputMode: InputMode;
  readonly activations: ActivationMode;
  readonly weightQuantizer: WeightQuantizer;
  readonly activationQuantizer: ActivationTrainer;
  readonly loss: UnitLoss;
  readonly rates: LearningRates;
  /** Inputs of a step for which the rates hold; others scale them by the root. null: the rates are what they are. */
  readonly ratesBatch: number | null;
  readonly optimization: Optimization;
  /** Training steps of a unit. */
  readonly steps: number;
  /** Whether units that lose little by rounding get fewer steps. */
  readonly adaptive: boolean;
  /** Inputs of a step. */
  readonly batch: number;
  /** Whether a unit that became worse on held-out inputs is put back. */
  readonly rollBack: boolean;
}

/**
 * Inputs of a unit's step: many small steps reach a low error sooner than few large ones, and on a CPU an input costs
 * the same in either.
 */
export const UNIT_BATCH = 16;

/** stilla's own way to train a block; the other stages say what they do differently. */
export const BLOCKWISE: Stage = {
  unit: "block",
  inputMode: "student",
  activations: "quantized",
  weightQuantizer: "lsq",
  activationQuantizer: "lsq",
  loss: { kind: "power", exponent: 2, scale: "variance" },
  rates: { weights: 0.01, weightScales: 1e-3, activationScales: 2e-3, biases: 1e-3 },
  ratesBatch: UNIT_BATCH,
  optimization: OPTIMIZATION,
  steps: 300,
  adaptive: true,
  batch: UNIT_BATCH,
  rollBack: true,
};

/**
 * The stages of a method as a recipe wants them.
 *
 * @param stages the method's own
 * @param recipe what it sets by itself; its `steps` are those of the first stage, and later ones change in proportion
 * @returns the stages to run
 */
export function stagesFor(stages: readonly Stage[], recipe: Recipe): Stage[] {
  const [first] = stages;
  const factor = recipe.steps === null || !first ? 1 : recipe.steps / first.steps;
  return stages.map((stage, i) => {
    const own = (i === 0 ? recipe.steps : null) ?? Math.round(stage.steps * factor);
    return {
      ...stage,
      unit: recipe.unit ?? stage.unit,
      inputMode: recipe.inputMode ?? stage.inputMode,
      activations: recipe.activationTraining ?? stage.activations,
      weightQuantizer: recipe.weightQuantizer ?? stage.weightQuantizer,
      activationQuantizer: recipe.activationQuantizer ?? stage.activationQuantizer,
      loss: { ...stage.loss, ...(recipe.loss && { kind: recipe.loss }) },
      optimization: {
        ...stage.optimization,
        ...(recipe.schedule && { schedule: recipe.schedule }),
        ...(recipe.warmup !== null && { warmup: recipe.warmup }),
      },
      steps: own,
      adaptive: stage.adaptive && recipe.steps === null,
      batch: recipe.batchSize ?? stage.batch,
      rollBack: recipe.rollBack ?? stage.rollBack,
    };
  });
}

/**
 * Learning rates of a unit's step.
 *
 * @param stage its rates
 * @param recipe its own number is the weights' rate and scales the others with it
 * @param batch inputs of a step: a mean over more of them allows larger steps (Malladi et al. 2022, for Adam)
 * @returns the rates
 */
export function learningRates(
  { rates, ratesBatch }: Pick<Stage, "rates" | "ratesBatch">,
  { learningRate }: Pick<Recipe, "learningRate">,
  batch: number,
): LearningRates {
  const byBatch = ratesBatch === null ? 1 : Math.sqrt(batch / ratesBatch);
  const factor = learningRate === null || rates.weights === 0
    ? byBatch
    : learningRate / rates.weights;
  return {
    ...rates,
    weights: rates.weights * factor,
    weightScales: rates.weightScales * factor,
    activationScales: rates.activationScales * factor,
    biases: rates.biases * factor,
  };
}
