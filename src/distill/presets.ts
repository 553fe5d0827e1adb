// The methods that train unit by unit, as rows of one table: stilla's own, and the published ones with the constants of
// their papers and code, so that another tool's result can be reproduced by naming it. Where a constant is not public
// it says so. All are label-free.
import type { Recipe } from "./recipe.ts";
import { BLOCKWISE, type Stage, type UnitLoss } from "./stage.ts";
import type { Optimization } from "./optimization.ts";

/** A method that trains units. */
export interface Preset {
  readonly stages: readonly Stage[];
  /** What keys of the recipe mean that are left to the method. */
  readonly calibration?: {
    readonly copies?: number;
    readonly weightGrid?: Exclude<Recipe["weightGrid"], "auto">;
  };
}

/** Names of the methods in the table. */
export type PresetName = Exclude<Recipe["method"], "ptq" | "qat" | "joint" | "eptq">;

/** As PyTorch's Adam. */
const ADAM = { beta1: 0.9, beta2: 0.999, warmup: 0 } as const;

/** AdaRound's regulariser (Nagel et al. 2020), beside an error summed over the channels. */
const ROUNDING = { regularizer: 0.01, warmup: 0.2, betaStart: 20, betaEnd: 2 } as const;

const CONSTANT: Optimization = { ...ADAM, schedule: "constant", rounding: ROUNDING };
const COSINE: Optimization = { ...CONSTANT, schedule: "cosine" };
const SUM_OF_SQUARES: UnitLoss = { kind: "power", exponent: 2, scale: "channelSum" };
const NOTHING = { weights: 0, weightScales: 0, activationScales: 0, biases: 0, absolute: true };

/** What the published methods have in common; each says what it does differently. */
const PUBLISHED: Stage = {
  ...BLOCKWISE,
  loss: SUM_OF_SQUARES,
  rates: NOTHING,
  ratesBatch: null,
  optimization: CONSTANT,
  adaptive: false,
  batch: 32,
  rollBack: false,
};

/** Learned rounding on floating-point activations, Adam at 1e-3. */
const ADAROUND: Stage = {
  ...PUBLISHED,
  unit: "layer",
  activations: "float",
  weightQuantizer: "softRounding",
  rates: { ...NOTHING, weights: 1e-3, constantWeights: true },
  steps: 10_000,
};

const PUBLISHED_CALIBRATION = { copies: 1 } as const;
const ASYMMETRIC = { ...PUBLISHED_CALIBRATION, weightGrid: "offset" } as const;

/** The table. */
export const PRESETS: Readonly<Record<PresetName, Preset>> = {
  layerwise: { stages: [{ ...BLOCKWISE, unit: "layer" }] },
  blockwise: { stages: [BLOCKWISE] },
  /** Every layer on the teacher's own input, so that no layer waits for another (`layerwise_kd` of Model-Optimizer). */
  parallel: { stages: [{ ...BLOCKWISE, unit: "layer", inputMode: "teacher" }] },
  /** AMCT's layer-wise distillation (hicann/amct at 2be20da), which keeps latent weights here. */
  amct: {
    stages: [{
      ...PUBLISHED,
      unit: "layer",
      inputMode: "nearest",
      weightQuantizer: "minMax",
      activationQuantizer: "range",
      loss: { kind: "power", exponent: 2, scale: "mean" },
      rates: {
        weights: 1e-3,
        weightScales: 0,
        activationScales: 0.1,
        biases: 1e-3,
        absolute: true,
        weightDecay: 0.01,
      },
      // One epoch of 1,024 images.
      steps: 32,
    }],
    calibration: { ...PUBLISHED_CALIBRATION, weightGrid: "symmetric" },
  },
  /** AdaRound (Nagel et al. 2020). */
  adaround: { stages: [ADAROUND], calibration: PUBLISHED_CALIBRATION },
  /** AdaQuant (Hubara et al. 2020): weights, scales and biases of a layer; rates from memory of the authors' code. */
  adaquant: {
    stages: [{
      ...PUBLISHED,
      unit: "layer",
      loss: { kind: "power", exponent: 2, scale: "mean" },
      rates: {
        weights: 1e-5,
        weightScales: 1e-3,
        activationScales: 1e-3,
        biases: 1e-3,
        absolute: true,
      },
      steps: 1000,
    }],
    calibration: PUBLISHED_CALIBRATION,
  },
  /** BRECQ (Li et al. 2021): rounding block by block, then the activations' scales by an L_2.4 error. */
  brecq: {
    stages: [
      { ...ADAROUND, unit: "block", steps: 20_000 },
      {
        ...PUBLISHED,
        weightQuantizer: "ste",
        loss: { ...SUM_OF_SQUARES, exponent: 2.4 },
        rates: { ...NOTHING, activationScales: 4e-4 },
        optimization: COSINE,
        steps: 5000,
      },
    ],
    calibration: ASYMMETRIC,
  },
  /** QDrop (Wei et al. 2022): rounding and scales together, on activations of which half are quantized. */
  qdrop: {
    stages: [{
      ...ADAROUND,
      unit: "block",
      inputMode: "mixed",
      activations: "dropped",
      rates: { ...NOTHING, weights: 1e-3, constantWeights: true, activationScales: 4e-5 },
      optimization: COSINE,
      steps: 20_000,
    }],
    calibration: ASYMMETRIC,
  },
  /** PPQ's learned step size pass (openppl/ppq at e39eecb): weights and scales of a block, undone where it got worse. */
  ppq: {
    stages: [{
      ...PUBLISHED,
      loss: { kind: "power", exponent: 2, scale: "mean" },
      rates: {
        weights: 5e-5,
        weightScales: 5e-5,
        activationScales: 5e-5,
        biases: 5e-5,
        absolute: true,
      },
      steps: 500,
      rollBack: true,
    }],
    calibration: { ...PUBLISHED_CALIBRATION, weightGrid: "symmetric" },
  },
};

/** EPTQ trains the network as a whole (methods/eptq.ts). */
export const EPTQ: Stage = {
  ...PUBLISHED,
  unit: "network",
  activations: "gradual",
  weightQuantizer: "softRounding",
  rates: {
    weights: 3e-2,
    constantWeights: true,
    weightScales: 0,
    activationScales: 1e-4,
    biases: 1e-4,
    absolute: true,
  },
  optimization: { ...CONSTANT, rounding: { ...ROUNDING, regularizer: 0.01 } },
  loss: { kind: "hessian", exponent: 2, scale: "variance" },
  steps: 80_000,
};

/**
 * Versions of each image that a recipe means.
 *
 * @param recipe method and augmentation
 * @returns its own number, or the method's: published methods see clean images only
 */
export function copiesFor(
  { method, augment: { copies } }: Pick<Recipe, "method" | "augment">,
): number {
  return copies ?? calibrationOf(method)?.copies ?? 2;
}

/**
 * The codes that a recipe lets a weight use.
 *
 * @param recipe method and grid
 * @param bits of the weight
 * @returns its own grid, or the method's
 */
export function weightGridFor(
  { method, weightGrid }: Pick<Recipe, "method" | "weightGrid">,
  bits: number,
): Exclude<Recipe["weightGrid"], "auto"> {
  if (weightGrid !== "auto") return weightGrid;
  // Mirrored codes below 8 bits cost nothing and halve the error of lopsided channels.
  return calibrationOf(method)?.weightGrid ?? (bits < 8 ? "flip" : "symmetric");
}

function calibrationOf(method: Recipe["method"]): Preset["calibration"] {
  if (method === "eptq") return PUBLISHED_CALIBRATION;
  return method in PRESETS ? PRESETS[method as PresetName].calibration : undefined;
}
