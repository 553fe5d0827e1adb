// The recipe: everything that decides a run, as plain JSON. One schema gives the type, the defaults, the checks, the
// command line's flags and its --help.
import { z } from "zod";
import { FormatError } from "../core/errors.ts";
import { nearestName } from "../core/nearest_name.ts";
import type { ActivationTrainer } from "../quant/activation_parameters.ts";
import type { WeightQuantizer } from "../quant/training_parameters.ts";
import { type RecipeField, recipeFields } from "./recipe_fields.ts";
import type { ActivationMode, InputMode, UnitLoss } from "./stage.ts";
import type { Optimization } from "./training.ts";
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
  /** Bits of the activations, 2 to 8. */
  readonly activationBits: number;
  /** Bits of the first and the last layer, 2 to 8. */
  readonly firstLastBits: number;
  /** Calibration inputs used. */
  readonly samples: number;
  /** Fraction of them held out to accept or roll back a unit. */
  readonly heldOut: number;
  /** Training steps of a unit; `null` = the method's own. */
  readonly steps: number | null;
  /** Whole-network steps behind the units; `null` = chosen by the bits. */
  readonly networkSteps: number | null;
  /** Inputs of one training step; `null` = the method's own. */
  readonly batchSize: number | null;
  /** Of the weights, in units of the layer's rms; `null` = the method's own. */
  readonly learningRate: number | null;
  /** Of every random choice. */
  readonly seed: number;
  /** How the weights' scales start. */
  readonly weightObserver: "mse" | "minmax";
  /** Integer codes a weight channel may use. */
  readonly weightGrid: "symmetric" | "flip" | "offset" | "auto";
  /** How the weights' codes start: the nearest, or with each rounding error compensated by the weights after it. */
  readonly weightRounding: "nearest" | "gptq";
  /** How weights are quantized while they train; `null` = the method's own. */
  readonly weightQuantizer: WeightQuantizer | null;
  /** How the activations' ranges start. */
  readonly activationObserver: "mse" | "minmax" | "percentile" | "movingAverage";
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
  /** Whether a unit that got worse on held-out inputs is put back; `null` = the method's own. */
  readonly rollBack: boolean | null;
  /** Augmented copies of the calibration inputs. */
  readonly augment: AugmentRecipe;
  /** MiB of GPU memory for the activations of all samples; `null` = the adapter's largest allocation, at least 1024. */
  readonly memoryBudget: number | null;
  /** Run folder of the command line. */
  readonly out: string | null;
}

/** Methods that do not go through the network unit by unit. */
const WHOLE_NETWORK: ReadonlySet<Recipe["method"]> = new Set(["qat", "joint", "eptq"]);
/** Methods that were measured to gain from a live batch norm at 2 bits. */
const LIVE_BATCH_NORM: ReadonlySet<Recipe["method"]> = new Set(["layerwise", "blockwise", "joint"]);

/**
 * The batch norm policy that a recipe means.
 *
 * @param recipe complete
 * @returns its own policy, or what was measured to be best: at 3 bits and more batch norm is folded into the weights
 * before training; below that its statistics have to follow the student's; QAT keeps it frozen
 */
export function batchNormPolicy(
  { batchNorm, method, weightBits, activationBits }: Recipe,
): Exclude<Recipe["batchNorm"], "auto"> {
  if (batchNorm !== "auto") return batchNorm;
  if (method === "qat") return "frozen";
  if (!LIVE_BATCH_NORM.has(method)) return "folded";
  return Math.min(weightBits, activationBits) >= 3 ? "folded" : "live";
}

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

const recipeSchema = z.strictObject({
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
  activationBits: bits("bits of the activations"),
  firstLastBits: bits("bits of the first and the last layer"),
  samples: z.int().min(1).default(1024).describe("calibration inputs used"),
  heldOut: z.number().min(0).max(0.5).default(0.125)
    .describe("fraction of them held out to accept or roll back a unit"),
  steps: z.int().min(0).nullable().default(null)
    .describe("training steps of a unit; null = the method's own"),
  networkSteps: z.int().min(0).nullable().default(null)
    .describe("whole-network steps behind the units; null = chosen by the bits"),
  batchSize: z.int().min(1).max(4096).nullable().default(null)
    .describe("inputs of one training step; null = the method's own"),
  learningRate: z.number().positive().nullable().default(null)
    .describe("of the weights, in units of the layer's rms; null = the method's own"),
  seed: z.int().min(0).max(0xffffffff).default(0).describe("of every random choice"),
  weightObserver: z.enum(["mse", "minmax"]).default("mse")
    .describe("how the weights' scales start"),
  weightGrid: z.enum(["symmetric", "flip", "offset", "auto"]).default("auto")
    .describe('integer codes a weight channel may use; "auto" = flip below 8 bits'),
  weightRounding: z.enum(["nearest", "gptq"]).default("nearest")
    .describe(
      'how the weights\' codes start; "gptq" = later weights make up for each rounding error',
    ),
  weightQuantizer: z.enum(["lsq", "ste", "minMax", "softRounding"]).nullable().default(null)
    .describe("how weights are quantized while they train; null = the method's own"),
  activationQuantizer: z.enum(["lsq", "range"]).nullable().default(null)
    .describe(
      "what of an activation's grid is learned: its scale, or both ends; null = the method's own",
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
  schedule: z.enum(["cosine", "constant"]).nullable().default(null)
    .describe("of the learning rates; null = the method's own"),
  rollBack: z.boolean().nullable().default(null)
    .describe("put a unit back that got worse on held-out inputs; null = the method's own"),
  activationObserver: z.enum(["mse", "minmax", "percentile", "movingAverage"]).default("mse")
    .describe("how the activations' ranges start"),
  batchNorm: z.enum(["auto", "live", "frozen", "folded"]).default("auto")
    .describe(
      'batch norm of the student while it trains; "auto" = frozen for method "qat", else folded from 3 bits on, live below',
    ),
  teacherWeight: z.number().min(0).max(1).default(0.5)
    .describe('part of the teacher in the loss of method "qat", the rest is the labels\''),
  inputMode: z.enum(["student", "teacher", "mixed", "nearest"]).nullable().default(null)
    .describe("whose activations a unit trains on; null = the method's own"),
  augment: augmentSchema.default({ copies: null, shift: 4, flip: true }).describe(
    "augmented copies of the calibration inputs",
  ),
  memoryBudget: z.int().min(1).nullable().default(null).describe(
    "MiB of GPU memory for the activations of all samples, which stay in host memory where they need more; " +
      "null = the adapter's largest allocation, at least 1024",
  ),
  out: path("run folder with the student, its weights, recipe.json and report.json"),
});

/** The recipe with nothing asked for: every default. */
export const DEFAULT_RECIPE: Recipe = recipeSchema.parse({});

/** Every key of the recipe, in the order of the schema. */
export const RECIPE_FIELDS: readonly RecipeField[] = recipeFields(recipeSchema);

/** One thing wrong with a recipe. */
export interface RecipeProblem {
  /** The offending key, `""` for the recipe as a whole. */
  readonly key: string;
  /** What was found and what was expected. */
  readonly detail: string;
}

/**
 * Fills in the defaults and checks every key.
 *
 * @param value what a recipe file or a caller holds; absent keys get their default
 * @param path file, or another name for where the value comes from
 * @returns the complete recipe
 * @throws FormatError naming the first wrong key, what was found there and what was expected
 */
export function parseRecipe(value: unknown, path = "recipe"): Recipe {
  const checked = checkRecipe(value);
  if ("recipe" in checked) return checked.recipe;
  throw new FormatError(path, checked.problem.key, checked.problem.detail);
}

/**
 * {@linkcode parseRecipe} for callers that word the error themselves.
 *
 * @param value what a recipe file or a caller holds
 * @returns the complete recipe, or the first thing wrong with it
 */
export function checkRecipe(value: unknown): { recipe: Recipe } | { problem: RecipeProblem } {
  const result = recipeSchema.safeParse(value);
  if (!result.success) return { problem: problemOf(value, result.error.issues) };
  const recipe: Recipe = result.data;
  const problem = acrossKeys(recipe);
  return problem === undefined ? { recipe } : { problem };
}

/**
 * Checks the keys that are there, each for itself: a part of a recipe, to be completed by other parts.
 *
 * @param value part of a recipe
 * @returns the first thing wrong with it
 */
export function checkRecipePart(value: unknown): RecipeProblem | undefined {
  const result = recipeSchema.safeParse(value);
  return result.success ? undefined : problemOf(value, result.error.issues);
}

/** Rules that tie two keys together. */
function acrossKeys(recipe: Recipe): RecipeProblem | undefined {
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
  const { method, weightRounding } = recipe;
  if (weightRounding === "gptq" && WHOLE_NETWORK.has(method)) {
    return {
      key: "weightRounding",
      detail: `found "gptq" with method "${method}", expected ptq, layerwise or blockwise`,
    };
  }
  return undefined;
}

/** zod's first issue in our words. */
function problemOf(value: unknown, issues: readonly z.core.$ZodIssue[]): RecipeProblem {
  const unknown = issues.find((issue) => issue.code === "unrecognized_keys");
  if (unknown?.code === "unrecognized_keys") {
    const prefix = unknown.path.map((part) => `${String(part)}.`).join("");
    const key = prefix + unknown.keys[0];
    const near = nearestName(key, [...RECIPE_FIELDS.map((field) => field.key), "augment"]);
    return { key, detail: `unknown key${near === undefined ? "" : `, did you mean "${near}"?`}` };
  }
  const parts = issues[0]?.path ?? [];
  let found = value;
  for (const part of parts) found = (found as Record<PropertyKey, unknown>)[part];
  const key = parts.filter((part) => typeof part === "string").join(".");
  const expected = RECIPE_FIELDS.find((field) => field.key === key)?.expected ?? "a JSON object";
  return { key, detail: `found ${shown(found)}, expected ${expected}` };
}

function shown(value: unknown): string {
  if (typeof value === "number") return String(value);
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
