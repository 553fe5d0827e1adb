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
    readonly activationExponent?: number;
    readonly weightGrid?: Exclude<Recipe["weightGrid"], "auto">;
  };
}

/** Names of the methods in the table. */
export type PresetName = Exclude<Recipe["method"], "ptq" | "qat" | "joint" | "eptq">;

/** As PyTorch's Adam. */
const ADAM = { beta1: 0.9, beta2: 0.999, warmup: 0 } as const;

/** AdaRound's regulariser (Nagel et al. 2020), beside an error summed over the channels; BRECQ and QDrop have it as it is. */
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

/** Learned rounding on floating-point activations, Adam at 1e-3: what AdaRound, BRECQ and QDrop share. */
const LEARNED_ROUNDING: Stage = {
  ...PUBLISHED,
  unit: "layer",
  activations: "float",
  weightQuantizer: "softRounding",
  rates: { ...NOTHING, weights: 1e-3, constantWeights: true },
  steps: 10_000,
};

const CALIBRATION = { copies: 1, activationExponent: 2.4 } as const;
const ASYMMETRIC = { ...CALIBRATION, weightGrid: "offset" } as const;
const SYMMETRIC = { ...CALIBRATION, weightGrid: "symmetric" } as const;

/** The table. */
export const PRESETS: Readonly<Record<PresetName, Preset>> = {
  layerwise: { stages: [{ ...BLOCKWISE, unit: "layer" }] },
  blockwise: { stages: [BLOCKWISE] },
  /** Every layer on the teacher's own input, so that no layer waits for another (`layerwise_kd` of Model-Optimizer). */
  parallel: { stages: [{ ...BLOCKWISE, unit: "layer", inputMode: "teacher" }] },
  /** AMCT's layer-wise distillation (hicann/amct at 2be20da, distill/distill_helper.py), which keeps latent weights here. */
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
    calibration: SYMMETRIC,
  },
  /**
   * AdaRound (Nagel et al. 2020): 10,000 steps as in the paper, where AIMET takes 15,000 below 8 bits; the exponent falls as
   * a cosine, and codes are symmetric (quic/aimet at c51b284, aimet_torch/v1/adaround).
   */
  adaround: {
    stages: [{
      ...LEARNED_ROUNDING,
      optimization: { ...CONSTANT, rounding: { ...ROUNDING, betaDecay: "cosine" } },
    }],
    calibration: SYMMETRIC,
  },
  /**
   * AdaQuant (Hubara et al. 2020): weights, ranges and biases of a layer, one layer after another as with --seq_adaquant
   * (itayhubara/CalibTIP at 8bffbe4, utils/adaquant.py). The authors learn the weights' zero points too.
   */
  adaquant: {
    stages: [{
      ...PUBLISHED,
      unit: "layer",
      activationQuantizer: "range",
      loss: { kind: "power", exponent: 2, scale: "mean" },
      rates: {
        weights: 1e-5,
        weightScales: 1e-3,
        weightRanges: true,
        activationScales: 0.1,
        biases: 1e-3,
        absolute: true,
      },
      batch: 50,
      steps: 1000,
    }],
    calibration: ASYMMETRIC,
  },
  /**
   * BRECQ (Li et al. 2021): rounding block by block on the student's inputs, then the activations' scales by an L_2.4 error
   * on the float network's (yhhhli/BRECQ at e455d62: main_imagenet.py passes `asym` to the first pass only).
   */
  brecq: {
    stages: [
      { ...LEARNED_ROUNDING, unit: "block", steps: 20_000 },
      {
        ...PUBLISHED,
        inputMode: "float",
        weightQuantizer: "ste",
        loss: { ...SUM_OF_SQUARES, exponent: 2.4 },
        rates: { ...NOTHING, activationScales: 4e-4 },
        optimization: COSINE,
        steps: 5000,
      },
    ],
    calibration: ASYMMETRIC,
  },
  /**
   * QDrop (Wei et al. 2022): rounding and scales together, on activations of which half are quantized (wimh966/QDrop at
   * ef37616, qdrop/solver/recon.py and exp/w2a4/r18/config.yaml).
   */
  qdrop: {
    stages: [{
      ...LEARNED_ROUNDING,
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
    calibration: SYMMETRIC,
  },
};

/**
 * EPTQ trains the network as a whole (methods/eptq.ts), with the constants of the authors' toolkit, which leaves the
 * activations' ranges as calibrated (SonySemiconductorSolutions/mct-model-optimization at 2c8d568,
 * gptq/common/gptq_constants.py), and the steps of their paper's code (ssi-research/eptq at 408963a, main.py).
 */
export const EPTQ: Stage = {
  ...PUBLISHED,
  unit: "network",
  activations: "gradual",
  weightQuantizer: "softRounding",
  rates: {
    ...NOTHING,
    weights: 3e-2,
    constantWeights: true,
    biases: 1e-4,
  },
  // Beside the errors of all layers, each weighted by its importance, as the regulariser of the layer is.
  optimization: { ...CONSTANT, rounding: { ...ROUNDING, regularizer: 10 } },
  loss: { kind: "hessian", exponent: 2, scale: "variance" },
  steps: 80_000,
};

/**
 * Versions of each image that a recipe means.
 *
 * @param recipe method and augmentation
 * @param shape of the network's inputs; only those with four axes are images
 * @returns its own number, or the method's: published methods see clean images only
 */
export function copiesFor(
  { method, augment: { copies } }: Pick<Recipe, "method" | "augment">,
  { length: axes }: readonly number[],
): number {
  if (axes !== 4) return 1;
  return copies ?? calibrationOf(method)?.copies ?? 2;
}

/**
 * The exponent of the L_p error by which a recipe chooses activation scales.
 *
 * @param recipe method and exponent
 * @returns its own exponent, or the method's; null: the network's output decides
 */
export function activationExponentFor(
  { method, activationExponent }: Pick<Recipe, "method" | "activationExponent">,
): number | null {
  return activationExponent ?? calibrationOf(method)?.activationExponent ?? null;
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
  if (method === "eptq") return SYMMETRIC;
  return method in PRESETS ? PRESETS[method as PresetName].calibration : undefined;
}
