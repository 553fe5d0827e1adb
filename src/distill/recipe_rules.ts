// What keys of a recipe say together: rules that tie them, and what follows from them.
import { MOST_THRESHOLD_BITS } from "../quant/thresholds.ts";
import { overrideProblem } from "./overrides.ts";
import type { Recipe } from "./recipe_keys.ts";

/** One thing wrong with a recipe. */
export interface RecipeProblem {
  /** The offending key, `""` for the recipe as a whole. */
  readonly key: string;
  /** What was found and what was expected. */
  readonly detail: string;
}

/** Methods that do not go through the network unit by unit. */
const WHOLE_NETWORK: ReadonlySet<Recipe["method"]> = new Set(["qat", "joint", "eptq"]);

/** Methods that train no units. */
const UNTRAINED_UNITS: ReadonlySet<Recipe["method"]> = new Set(["ptq", "joint", "eptq"]);

/** Methods that were measured to gain from a live batch norm at 2 bits. */
const LIVE_BATCH_NORM: ReadonlySet<Recipe["method"]> = new Set([
  "layerwise",
  "blockwise",
  "joint",
  "qat",
]);

/**
 * The batch norm policy that a recipe means.
 *
 * @param recipe complete
 * @returns its own policy, or what was measured to be best: at 3 bits and more batch norm is folded into the weights
 * before training; below that its statistics have to follow the student's; QAT keeps it frozen. What rewrites folded
 * weights has nothing but them to train.
 */
export function batchNormPolicy(recipe: Recipe): Exclude<Recipe["batchNorm"], "auto"> {
  const { batchNorm, method, weightBits, activationBits } = recipe;
  if (batchNorm !== "auto") return batchNorm;
  if (foldedOnly(recipe) !== undefined) return "folded";
  if (!LIVE_BATCH_NORM.has(method)) return "folded";
  return Math.min(weightBits, activationBits ?? weightBits) >= 3 ? "folded" : "live";
}

/**
 * Checks the rules that tie keys together.
 *
 * @param recipe complete, every key checked for itself
 * @returns the first thing wrong with it
 */
export function acrossKeys(recipe: Recipe): RecipeProblem | undefined {
  const { mean, std } = recipe;
  const zero = std.find((value) => !(value > 0));
  if (zero !== undefined) {
    return { key: "std", detail: `found ${zero}, expected numbers above 0` };
  }
  if (mean.length !== 1 && std.length !== 1 && mean.length !== std.length) {
    return {
      key: "mean",
      detail: `found ${mean.length} numbers but std has ${std.length}, expected as many of both`,
    };
  }
  if (recipe.labels !== null && recipe.evaluate === null) {
    return { key: "labels", detail: "labels were given but nothing to evaluate" };
  }
  if (recipe.calibrationLabels !== null && recipe.calibration === null) {
    return { key: "calibrationLabels", detail: "labels were given but no calibration inputs" };
  }
  if (
    recipe.method === "qat" && recipe.calibration !== null && recipe.calibrationLabels === null
  ) {
    return {
      key: "calibrationLabels",
      detail: 'method "qat" trains with labels, expected a file of them',
    };
  }
  const { method, weightRounding, weightGranularity, weightGroup } = recipe;
  if (weightGranularity === "tensor" && method !== "ptq") {
    return {
      key: "weightGranularity",
      detail:
        `found "tensor" with method "${method}", which trains a scale a channel, expected ptq`,
    };
  }
  if (weightGranularity === "tensor" && batchNormPolicy(recipe) !== "folded") {
    return {
      key: "weightGranularity",
      detail: `found "tensor" with batchNorm "${recipe.batchNorm}", expected auto or folded`,
    };
  }
  const grouped = weightGroup === null ? undefined : groupProblem(recipe);
  if (grouped !== undefined) {
    return { key: "weightGroup", detail: `found ${weightGroup} ${grouped}` };
  }
  if (weightRounding === "gptq" && WHOLE_NETWORK.has(method)) {
    return {
      key: "weightRounding",
      detail: `found "gptq" with method "${method}", expected ptq, layerwise or blockwise`,
    };
  }
  const dynamic = recipe.activationRanges === "dynamic" ? dynamicProblem(recipe) : undefined;
  if (dynamic !== undefined) {
    return { key: "activationRanges", detail: `found "dynamic" with ${dynamic}` };
  }
  for (const [i, override] of recipe.overrides.entries()) {
    const detail = overrideProblem(override);
    if (detail !== undefined) return { key: `overrides[${i}]`, detail };
  }
  if (recipe.biasCorrection !== "none" && method !== "ptq") {
    return {
      key: "biasCorrection",
      detail:
        `found "${recipe.biasCorrection}" with method "${method}", which trains biases, expected ptq`,
    };
  }
  if (recipe.migration !== null && recipe.equalization !== "none") {
    return {
      key: "migration",
      detail:
        `found ${recipe.migration} with equalization "${recipe.equalization}", which it would ` +
        "undo, expected one of the two",
    };
  }
  const training = trainingProblem(recipe);
  if (training !== undefined) return training;
  const folded = foldedOnly(recipe);
  if (folded !== undefined && (recipe.batchNorm === "live" || recipe.batchNorm === "frozen")) {
    return {
      key: "batchNorm",
      detail:
        `found "${recipe.batchNorm}" with ${folded}, which works on weights with batch norm ` +
        "folded in, expected auto or folded",
    };
  }
  return undefined;
}

/** Rules of the keys that say how a network trains. */
function trainingProblem(recipe: Recipe): RecipeProblem | undefined {
  const { method, optimizer, progressive, weightBits, activationBits } = recipe;
  if (method !== "qat" && optimizer === "sgd") {
    return { key: "optimizer", detail: `found "sgd" with method "${method}", expected qat` };
  }
  if (method !== "qat" && progressive.length > 0) {
    return { key: "progressive", detail: `found bits with method "${method}", expected qat` };
  }
  if (recipe.activationQuantizer === "n2uq") {
    const detail = thresholdProblem(recipe);
    if (detail !== undefined) {
      return { key: "activationQuantizer", detail: `found "n2uq" with ${detail}` };
    }
  }
  if (recipe.earlyStop !== null && UNTRAINED_UNITS.has(method)) {
    return {
      key: "earlyStop",
      detail: `found ${recipe.earlyStop} with method "${method}", which trains no units`,
    };
  }
  if (recipe.earlyStop !== null && recipe.heldOut === 0) {
    return {
      key: "earlyStop",
      detail: `found ${recipe.earlyStop} with heldOut 0, expected inputs to judge by`,
    };
  }
  const last = Math.min(weightBits, activationBits ?? weightBits);
  const falls = [...progressive, last].every((bits, i, all) => i === 0 || bits < all[i - 1]!);
  if (!falls) {
    return {
      key: "progressive",
      detail: `found ${progressive.join(", ")}, expected ever fewer bits, all more than ${last}`,
    };
  }
  if (recipe.reestimateBatchNorm && batchNormPolicy(recipe) === "folded") {
    return {
      key: "reestimateBatchNorm",
      detail: 'batch norm is folded, expected "batchNorm" to be live or frozen',
    };
  }
  return undefined;
}

/** What a recipe with learned thresholds may not have beside them. */
function thresholdProblem(
  { method, activationBits, activationTraining }: Recipe,
): string | undefined {
  if (method !== "qat") return `method "${method}", expected qat`;
  if (activationBits === null || activationBits > MOST_THRESHOLD_BITS) {
    return `activationBits ${activationBits}, expected 2 to ${MOST_THRESHOLD_BITS}`;
  }
  if (activationTraining !== null && activationTraining !== "quantized") {
    return `activationTraining "${activationTraining}", expected quantized`;
  }
  return undefined;
}

/** What a recipe with scales of groups may not have beside them. */
function groupProblem(
  { activationBits, method, weightGranularity }: Recipe,
): string | undefined {
  if (activationBits !== null) {
    return `with activationBits ${activationBits}, expected null: groups are for weights alone`;
  }
  if (method !== "ptq") {
    return `with method "${method}", which trains a scale a channel, expected ptq`;
  }
  if (weightGranularity === "tensor") return 'with weightGranularity "tensor", expected channel';
  return undefined;
}

/** What a recipe with ranges at run time may not have beside them. */
function dynamicProblem(
  { activationBits, method, activationGrid, reestimateBatchNorm, overrides }: Recipe,
): string | undefined {
  if (activationBits !== 8) return `activationBits ${activationBits}, expected 8`;
  if (method !== "ptq") return `method "${method}", which trains with known ranges, expected ptq`;
  if (activationGrid === "symmetric") {
    return 'activationGrid "symmetric", expected auto or affine: zero points follow the ranges';
  }
  if (reestimateBatchNorm) return "reestimateBatchNorm, which needs known ranges, expected none";
  const i = overrides.findIndex(({ activationBits: own = 8 }) => own !== 8 && own !== null);
  if (i < 0) return undefined;
  return `activationBits ${overrides[i]!.activationBits} in overrides[${i}], expected 8 or null`;
}

/** The first key that asks for something that works on folded weights only. */
function foldedOnly(recipe: Recipe): keyof Recipe | undefined {
  if (recipe.equalization !== "none") return "equalization";
  if (recipe.absorbBiases) return "absorbBiases";
  if (recipe.biasCorrection !== "none") return "biasCorrection";
  if (recipe.migration !== null) return "migration";
  if (recipe.weightGroup !== null) return "weightGroup";
  return recipe.weightGranularity === "tensor" ? "weightGranularity" : undefined;
}
