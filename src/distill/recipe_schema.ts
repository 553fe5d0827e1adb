// The schema of a recipe: it gives the defaults, the checks of each key, the command line's flags and its --help.
import { z } from "zod";
import { OVERRIDE_OPERATORS } from "./overrides.ts";

const bits = (about: string) => z.int().min(2).max(8).default(8).describe(about);
const path = (about: string) => z.string().min(1).nullable().default(null).describe(about);
const numbers = (value: number, about: string) =>
  z.array(z.number()).min(1).default([value]).describe(about);

const augmentSchema = z.strictObject({
  copies: z.int().min(1).max(16).nullable().default(null).describe(
    "versions of each image, the clean one included; null = the method's own",
  ),
  shift: z.int().min(0).max(64).default(4).describe("largest shift of a copy, in pixels"),
  flip: z.boolean().default(true).describe("mirror copies left to right at random"),
});

const globalSchema = z.strictObject({
  model: z.string().min(1).default("mnist").describe(
    'ONNX file, or "mnist" for the built-in example',
  ),
  calibration: path("unlabelled inputs: .npy, .npz, IDX, or a folder of PNG/JPEG images"),
  calibrationLabels: path('their class numbers; only method "qat" uses them'),
  evaluate: path("inputs to measure teacher and student on"),
  labels: path("class numbers of the --evaluate inputs"),
  mean: numbers(0, "subtracted after scaling: one number, or one a channel"),
  std: numbers(1, "divided by after the mean: one number, or one a channel"),
  scale: z.number().positive().nullable().default(null)
    .describe("pixels are multiplied by it first; null = 1/255 for uint8, else 1"),
  method: z.enum([
    "ptq",
    "qat",
    "layerwise",
    "blockwise",
    "joint",
    "parallel",
    "amct",
    "adaround",
    "adaquant",
    "brecq",
    "qdrop",
    "ppq",
    "eptq",
  ]).default("blockwise").describe(
    "how the student is made; those behind joint have the constants of the published methods",
  ),
  weightBits: bits("bits of the weights"),
  activationBits: z.int().min(2).max(8).nullable().default(8)
    .describe("bits of the activations; null = they stay float (weight-only)"),
  activationRanges: z.enum(["static", "dynamic"]).default("static").describe(
    'when the activations\' ranges are known: before, from the calibration inputs; "dynamic" = at run time, from what ' +
      'each layer reads, 8 bits, method "ptq" only',
  ),
  firstLastBits: bits("bits of the first and the last layer"),
  weightGroup: z.int().min(2).nullable().default(null).describe(
    'input channels whose weights share a scale, with --activation-bits null and method "ptq"; null = all',
  ),
  samples: z.int().min(1).default(1024).describe("calibration inputs used"),
  heldOut: z.number().min(0).max(0.5).default(0.125)
    .describe("fraction of them held out to accept or roll back a unit"),
  steps: z.int().min(0).nullable().default(null)
    .describe(
      "training steps of a unit, in method \"qat\" before the network's (0 leaves them out); null = the method's own",
    ),
  networkSteps: z.int().min(0).nullable().default(null)
    .describe("whole-network steps behind the units; null = the method's own"),
  batchSize: z.int().min(1).max(4096).nullable().default(null)
    .describe("inputs of one training step; null = the method's own"),
  learningRate: z.number().positive().nullable().default(null)
    .describe("of the weights, in units of the layer's rms; null = the method's own"),
  seed: z.int().min(0).max(0xffffffff).default(0).describe("of every random choice"),
  tileStorage: z.enum(["float32", "float16"]).default("float32")
    .describe(
      "how a GPU keeps the operands of forward products while training; float16 needs its shader-f16",
    ),
  weightObserver: z.enum(["mse", "minmax", "hessian"]).default("mse")
    .describe(
      'how the weights\' scales start; "hessian" = squared error weighted by the mean square of the input',
    ),
  weightGrid: z.enum(["symmetric", "flip", "offset", "auto"]).default("auto")
    .describe('integer codes a weight channel may use; "auto" = flip below 8 bits'),
  weightRounding: z.enum(["nearest", "gptq"]).default("nearest")
    .describe(
      'how the weights\' codes start; "gptq" = later weights make up for each rounding error',
    ),
  weightQuantizer: z.enum(["lsq", "ewgs", "ste", "minMax", "dorefa", "n2uq", "softRounding"])
    .nullable()
    .default(null).describe(
      "how weights are quantized while they train; null = the method's own",
    ),
  activationQuantizer: z.enum(["lsq", "lsqPlus", "pact", "ewgs", "dorefa", "range", "n2uq"])
    .nullable()
    .default(null).describe(
      "what of an activation's grid is learned: its scale (lsq, ewgs), zero point too (lsqPlus), the upper end (pact), " +
        "both ends (range), the thresholds before its levels (n2uq), nothing (dorefa); null = the method's own",
    ),
  activationTraining: z.enum(["quantized", "float", "dropped", "gradual"]).nullable()
    .default(null).describe(
      "what of the activations is quantized while a unit trains; null = the method's own",
    ),
  unit: z.enum(["layer", "block", "merged", "stage", "network"]).nullable().default(null)
    .describe("what is trained at a time; null = the method's own"),
  groups: z.array(z.string().regex(/^.+?\.\..+$/)).default([])
    .describe(
      "first..last, two layers by name: the units from one to the other are trained as one",
    ),
  loss: z.enum(["power", "fisher", "hessian"]).nullable().default(null)
    .describe("the error of a unit's output that is minimized; null = the method's own"),
  schedule: z.enum(["cosine", "step", "constant"]).nullable().default(null)
    .describe(
      "of the learning rates; step = a tenth from half of the steps on, a hundredth from three quarters on; " +
        "null = the method's own",
    ),
  warmup: z.number().min(0).max(1).nullable().default(null)
    .describe("part of the steps in which the learning rates rise; null = the method's own"),
  optimizer: z.enum(["adam", "sgd"]).nullable().default(null)
    .describe(
      'of whole-network training in method "qat"; sgd = with Nesterov momentum, rates not relative; null = adam',
    ),
  progressive: z.array(z.int().min(3).max(8)).default([])
    .describe('bits that method "qat" trains with before its own, from many to few, such as 4,3'),
  reestimateBatchNorm: z.boolean().default(false)
    .describe(
      "measure the statistics of batch norm anew with the trained integers; needs batch norm that is not folded",
    ),
  rollBack: z.boolean().nullable().default(null)
    .describe("put a unit back that got worse on held-out inputs; null = the method's own"),
  earlyStop: z.number().min(0.1).max(1).nullable().default(null)
    .describe(
      "part of a unit's steps without a lower held-out error after which its training ends, with the best that was " +
        "seen; null = all steps",
    ),
  activationObserver: z.enum([
    "mse",
    "minmax",
    "percentile",
    "movingAverage",
    "kl",
    "aciqLaplace",
    "aciqGauss",
    "ifmr",
    "hfmg",
  ]).default("mse").describe("how the activations' ranges start"),
  weightExponent: z.number().positive().default(2.4)
    .describe('exponent p of the L_p error of weight observer "mse"'),
  weightGranularity: z.enum(["channel", "tensor"]).default("channel")
    .describe('one weight scale an output channel or one a layer; "tensor" with method "ptq" only'),
  activationExponent: z.number().positive().nullable().default(null)
    .describe(
      'exponent p of the L_p error of activation observer "mse"; null = the method\'s own, or ' +
        "the one with the least error of the network's output",
    ),
  activationPercentile: z.number().min(1).max(100).default(99.99)
    .describe(
      'share of the values inside the range of activation observer "percentile", in per cent',
    ),
  activationGrid: z.enum(["auto", "symmetric", "affine"]).default("auto")
    .describe(
      'zero point of activations on both sides of 0: "symmetric" = 0, "affine" = any; "auto" = affine',
    ),
  calibrationSamples: z.int().min(1).default(256)
    .describe("calibration inputs that choose the activations' ranges, in whole batches"),
  batchNorm: z.enum(["auto", "live", "frozen", "folded"]).default("auto")
    .describe(
      'batch norm of the student while it trains; "auto" = frozen for method "qat", else folded from 3 bits on, live below',
    ),
  teacherWeight: z.number().min(0).max(1).default(0.5)
    .describe('part of the teacher in the loss of method "qat", the rest is the labels\''),
  inputMode: z.enum(["student", "teacher", "float", "mixed", "nearest"]).nullable().default(null)
    .describe("whose activations a unit trains on; null = the method's own"),
  augment: augmentSchema.default({ copies: null, shift: 4, flip: true }).describe(
    "augmented copies of the calibration inputs",
  ),
  memoryBudget: z.int().min(1).nullable().default(null).describe(
    "MiB of GPU memory for the activations of all samples, which stay in host memory where they need more; " +
      "null = the adapter's largest allocation, at least 1024",
  ),
  out: path("run folder with the student, its weights, recipe.json and report.json"),
  equalization: z.enum(["none", "crossLayer"]).default("none").describe(
    '"crossLayer" = weight ranges evened out across layers first (DFQ), for one scale a layer',
  ),
  absorbBiases: z.boolean().default(false)
    .describe("high biases of batch norm moved on to the layers behind (DFQ)"),
  biasCorrection: z.enum(["none", "empirical", "analytic"]).default("none").describe(
    'how method "ptq" puts the mean of every layer\'s outputs right: from the calibration inputs, or from batch norm alone',
  ),
  migration: z.number().min(0).max(1).nullable().default(null).describe(
    "how much of the activations' ranges goes into the weights (SmoothQuant), usually 0.5; null = nothing is moved",
  ),
});

/** A key that an override may have: the same values, no default. */
const overridable = globalSchema.shape;

/** One entry of `overrides`. */
export const overrideSchema = z.strictObject({
  layers: z.string().min(1).exactOptional(),
  operators: z.enum(OVERRIDE_OPERATORS).exactOptional(),
  weightBits: overridable.weightBits.unwrap().exactOptional(),
  activationBits: overridable.activationBits.unwrap().exactOptional(),
  weightGrid: overridable.weightGrid.unwrap().exactOptional(),
  weightObserver: overridable.weightObserver.unwrap().exactOptional(),
  quantize: z.boolean().exactOptional(),
});

/** A complete recipe. */
export const recipeSchema = globalSchema.extend({
  overrides: z.array(overrideSchema).default([]).describe(
    "what differs for layers whose name matches, or whose operator it is; may be repeated, the last wins",
  ),
  skipLayers: z.array(z.string().min(1)).default([]).describe(
    "patterns of layers that stay float, * stands for any characters",
  ),
  skipOperators: z.array(z.enum(OVERRIDE_OPERATORS)).default([]).describe(
    "operators whose layers stay float",
  ),
});
