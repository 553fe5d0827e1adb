// What a recipe holds: everything that decides a run, as plain JSON.
import type { ActivationTrainer } from "../quant/activation_parameters.ts";
import type { WeightQuantizer } from "../quant/training_parameters.ts";
import type { Override, OverrideOperator } from "./overrides.ts";
import type { ActivationMode, InputMode, UnitLoss } from "./stage.ts";
import type { Optimization } from "./optimization.ts";
import type { UnitKind } from "./units.ts";

/** Cheap copies of the calibration images that the distillation sees besides the clean ones. */
export interface AugmentRecipe {
  /** Versions of each image, the clean one included; 1 = clean only, `null` = the method's own. */
  readonly copies: number | null;
  /** Largest shift in pixels; what comes in at the border is black. */
  readonly shift: number;
  /** Whether copies are mirrored left to right at random. */
  readonly flip: boolean;
}

/** A complete recipe: the same recipe, data and device give the same student. */
export interface Recipe {
  /** ONNX file, or `mnist` for the built-in example. Paths matter to the command line only. */
  readonly model: string;
  /** Unlabelled inputs: .npy, .npz, IDX, or a folder of PNG/JPEG images. */
  readonly calibration: string | null;
  /** Their class numbers; only method `qat` uses them. */
  readonly calibrationLabels: string | null;
  /** Inputs to measure teacher and student on. */
  readonly evaluate: string | null;
  /** Class numbers of the `evaluate` inputs. */
  readonly labels: string | null;
  /** Subtracted after scaling: one number, or one a channel. */
  readonly mean: readonly number[];
  /** Divided by after the mean: one number, or one a channel. */
  readonly std: readonly number[];
  /** Pixels are multiplied by it first; `null` = 1/255 for uint8, else 1. */
  readonly scale: number | null;
  /** How the student is made. */
  readonly method:
    | "ptq"
    | "qat"
    | "layerwise"
    | "blockwise"
    | "joint"
    | "parallel"
    | "amct"
    | "adaround"
    | "adaquant"
    | "brecq"
    | "qdrop"
    | "ppq"
    | "eptq";
  /** Bits of the weights, 2 to 8. */
  readonly weightBits: number;
  /** Bits of the activations, 2 to 8; `null` = they stay float, only weights are quantized. */
  readonly activationBits: number | null;
  /**
   * When the activations' ranges are known: before, from the calibration inputs; or at run time only, from what each
   * layer of method `ptq` reads, 8 bits.
   */
  readonly activationRanges: "static" | "dynamic";
  /**
   * Bits of the first and the last layer, 2 to 8; of their weights only where activations stay float or have their
   * ranges at run time.
   */
  readonly firstLastBits: number;
  /** Input weights of an output channel that share a scale, in the order of the file; `null` = all of them. */
  readonly weightGroup: number | null;
  /** Calibration inputs used. */
  readonly samples: number;
  /** Fraction of them held out to accept or roll back a unit. */
  readonly heldOut: number;
  /** Training steps of a unit, before the network's in method `qat`; `null` = the method's own. */
  readonly steps: number | null;
  /** Whole-network steps behind the units; `null` = the method's own. */
  readonly networkSteps: number | null;
  /** Inputs of one training step; `null` = the method's own. */
  readonly batchSize: number | null;
  /** Of the weights, in units of the layer's rms; `null` = the method's own. */
  readonly learningRate: number | null;
  /** Of every random choice. */
  readonly seed: number;
  /**
   * How a GPU keeps the operands of the student's forward products while it trains; sums, gradients and whatever is
   * measured stay float32. `float16` needs the adapter's feature shader-f16.
   */
  readonly tileStorage: "float32" | "float16";
  /** How the weights' scales start; `hessian`: squared error weighted by the mean square of the input. */
  readonly weightObserver: "mse" | "minmax" | "hessian";
  /** Integer codes a weight channel may use. */
  readonly weightGrid: "symmetric" | "flip" | "offset" | "auto";
  /** How the weights' codes start: the nearest, or with each rounding error compensated by the weights after it. */
  readonly weightRounding: "nearest" | "gptq";
  /** How weights are quantized while they train; `null` = the method's own. */
  readonly weightQuantizer: WeightQuantizer | null;
  /** How the activations' ranges start. */
  readonly activationObserver:
    | "mse"
    | "minmax"
    | "percentile"
    | "movingAverage"
    | "kl"
    | "aciqLaplace"
    | "aciqGauss"
    | "ifmr"
    | "hfmg";
  /** Exponent p of weight observer `mse`. */
  readonly weightExponent: number;
  /** One scale an output channel, or one a layer. */
  readonly weightGranularity: "channel" | "tensor";
  /** Exponent p of activation observer `mse`; `null` = the method's own, or the one with the least output error. */
  readonly activationExponent: number | null;
  /** Share of the values inside the range, in per cent, of activation observer `percentile`. */
  readonly activationPercentile: number;
  /** Zero point of activations below and above 0: 0, or any; `auto` is `affine`. Without values below 0 it is always 0. */
  readonly activationGrid: "auto" | "symmetric" | "affine";
  /** Calibration inputs that the activations' ranges are chosen on, in whole batches. */
  readonly calibrationSamples: number;
  /** Batch norm of the student while it trains. */
  readonly batchNorm: "auto" | "live" | "frozen" | "folded";
  /** Part of the teacher in the loss of method `qat`, 0 to 1; the rest is the labels'. */
  readonly teacherWeight: number;
  /** How activations are quantized while they train; `null` = the method's own. */
  readonly activationQuantizer: ActivationTrainer | null;
  /** What of the activations is quantized while a unit trains; `null` = the method's own. */
  readonly activationTraining: ActivationMode | null;
  /** Whose activations a unit trains on; `null` = the method's own. */
  readonly inputMode: InputMode | null;
  /** What is trained at a time; `null` = the method's own. */
  readonly unit: UnitKind | null;
  /** `first..last`, two layers by node name: the units from one to the other are trained as one. */
  readonly groups: readonly string[];
  /** The error of a unit's output; `null` = the method's own. */
  readonly loss: UnitLoss["kind"] | null;
  /** Of the learning rates; `null` = the method's own. */
  readonly schedule: Optimization["schedule"] | null;
  /** Part of the steps in which the learning rates rise; `null` = the method's own. */
  readonly warmup: number | null;
  /** Of whole-network training in method `qat`; `null` = Adam. */
  readonly optimizer: "adam" | "sgd" | null;
  /** Bits that method `qat` trains with before its own, from many to few. */
  readonly progressive: readonly number[];
  /** Whether batch norm's statistics are measured anew with the trained integers. */
  readonly reestimateBatchNorm: boolean;
  /** Whether a unit that got worse on held-out inputs is put back; `null` = the method's own. */
  readonly rollBack: boolean | null;
  /** Part of a unit's steps without a lower held-out error after which its training ends; `null` = all steps. */
  readonly earlyStop: number | null;
  /** Augmented copies of the calibration inputs. */
  readonly augment: AugmentRecipe;
  /** MiB of GPU memory for the activations of all samples; `null` = the adapter's largest allocation, at least 1024. */
  readonly memoryBudget: number | null;
  /** Run folder of the command line. */
  readonly out: string | null;
  /** What differs for some layers: layer names over operators over the keys above, later entries over earlier ones. */
  readonly overrides: readonly Override[];
  /** Patterns of layers that stay float. */
  readonly skipLayers: readonly string[];
  /** Operators whose layers stay float. */
  readonly skipOperators: readonly OverrideOperator[];
  /** Whether weight ranges are evened out across layers, before anything else (DFQ). */
  readonly equalization: "none" | "crossLayer";
  /** Whether biases that a batch norm made high are moved on to the layers behind (DFQ). */
  readonly absorbBiases: boolean;
  /** How method `ptq` puts the mean of every layer's outputs right. */
  readonly biasCorrection: "none" | "empirical" | "analytic";
  /** How much of the activations' ranges goes into the weights, 0 to 1 (SmoothQuant); `null` = nothing is moved. */
  readonly migration: number | null;
}
