// The recipe: everything that decides a run, as plain JSON. One schema gives the type, the defaults, the checks, the
// command line's flags and its --help.
import { z } from "zod";
import { FormatError } from "../core/errors.ts";

/** Cheap copies of the calibration images that the distillation sees besides the clean ones. */
export interface AugmentRecipe {
  /** Versions of each image, the clean one included; 1 = clean only. */
  readonly copies: number;
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
  readonly method: "ptq" | "qat" | "layerwise" | "blockwise" | "joint";
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
  /** What of a weight's rounding is learned. */
  readonly weightQuantizer: "lsq" | "ste" | "softRounding";
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
  /** Exponent p of activation observer `mse`. */
  readonly activationExponent: number;
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
  /** Whose activations a unit trains on. */
  readonly inputMode: "student" | "teacher" | "mixed";
  /** Augmented copies of the calibration inputs. */
  readonly augment: AugmentRecipe;
  /** MiB of GPU memory for the activations of all samples; `null` = the adapter's largest allocation, at least 1024. */
  readonly memoryBudget: number | null;
  /** Run folder of the command line. */
  readonly out: string | null;
}

/**
 * The batch norm policy that a recipe means.
 *
 * @param recipe complete
 * @returns its own policy, or what was measured to be best: at 3 bits and more batch norm is folded into the weights
 * before training; below that its statistics have to follow the student's; QAT keeps it frozen. One scale
 * a layer is one of the folded weights
 */
export function batchNormPolicy(
  { batchNorm, method, weightBits, activationBits, weightGranularity }: Recipe,
): Exclude<Recipe["batchNorm"], "auto"> {
  if (batchNorm !== "auto") return batchNorm;
  if (weightGranularity === "tensor") return "folded";
  if (method === "qat") return "frozen";
  return Math.min(weightBits, activationBits) >= 3 ? "folded" : "live";
}

const bits = (about: string) => z.int().min(2).max(8).default(8).describe(about);
const path = (about: string) => z.string().min(1).nullable().default(null).describe(about);
const numbers = (value: number, about: string) =>
  z.array(z.number()).min(1).default([value]).describe(about);

const augmentSchema = z.strictObject({
  copies: z.int().min(1).max(16).default(2).describe(
    "versions of each image, the clean one included",
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
  method: z.enum(["ptq", "qat", "layerwise", "blockwise", "joint"]).default("blockwise")
    .describe("how the student is made"),
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
  weightQuantizer: z.enum(["lsq", "ste", "softRounding"]).default("lsq")
    .describe("what of a weight's rounding is learned"),
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
  activationExponent: z.number().positive().default(2.4)
    .describe('exponent p of the L_p error of activation observer "mse"'),
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
  inputMode: z.enum(["student", "teacher", "mixed"]).default("student")
    .describe("whose activations a unit trains on"),
  augment: augmentSchema.default({ copies: 2, shift: 4, flip: true }).describe(
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

/** What `--help` and an error say about one key of the recipe. */
export interface RecipeField {
  /** `weightBits`, or `augment.copies` for a key inside another. */
  readonly key: string;
  readonly about: string;
  readonly default: unknown;
  /** For example `an integer from 2 to 8`. */
  readonly expected: string;
  /** How a word on the command line becomes the value. */
  readonly kind: "text" | "number" | "numbers" | "boolean";
  readonly nullable: boolean;
}

/** Every key of the recipe, in the order of the schema. */
export const RECIPE_FIELDS: readonly RecipeField[] = fieldsOf(
  z.toJSONSchema(recipeSchema) as JsonSchema,
  "",
);

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

/**
 * The name that was probably meant.
 *
 * @param name what was written
 * @param known the names there are
 * @returns the nearest known name by edit distance, `undefined` when none is near
 */
export function nearestName(name: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  // More than two fifths of the letters changed is another word, not a slip.
  let bound = Math.max(2, Math.floor(name.length * 0.4)) + 1;
  for (const candidate of known) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (distance < bound) [best, bound] = [candidate, distance];
  }
  return best;
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
  const { method, weightRounding, weightGranularity } = recipe;
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
  if (weightRounding === "gptq" && (method === "qat" || method === "joint")) {
    return {
      key: "weightRounding",
      detail: `found "gptq" with method "${method}", expected ptq, layerwise or blockwise`,
    };
  }
  return undefined;
}

/** The part of JSON Schema that zod writes for the recipe. */
interface JsonSchema {
  readonly type?: string | readonly string[];
  readonly anyOf?: readonly JsonSchema[];
  readonly enum?: readonly string[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly items?: JsonSchema;
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly default?: unknown;
  readonly description?: string;
}

function fieldsOf(schema: JsonSchema, prefix: string): RecipeField[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, property]) => {
    const key = prefix + name;
    if (property.properties !== undefined) return fieldsOf(property, `${key}.`);
    const inner = property.anyOf?.find(({ type }) => type !== "null") ?? property;
    const types = [inner.type ?? []].flat();
    const nullable = property.anyOf !== undefined || types.includes("null");
    const kind = types.includes("array")
      ? "numbers"
      : types.includes("boolean")
      ? "boolean"
      : types.includes("string")
      ? "text"
      : "number";
    const expected = expectedOf(inner, types) + (nullable ? " or null" : "");
    return [{
      key,
      about: property.description ?? "",
      default: property.default,
      expected,
      kind,
      nullable,
    }];
  });
}

function expectedOf(schema: JsonSchema, types: readonly string[]): string {
  if (schema.enum !== undefined) return `one of ${schema.enum.join(", ")}`;
  if (types.includes("array")) return "a list of numbers";
  if (types.includes("boolean")) return "true or false";
  if (types.includes("string")) return "a text";
  const noun = types.includes("integer") ? "an integer" : "a number";
  const { minimum, maximum, exclusiveMinimum } = schema;
  if (exclusiveMinimum !== undefined) return `${noun} above ${exclusiveMinimum}`;
  if (maximum === undefined || maximum === Number.MAX_SAFE_INTEGER) {
    return minimum === undefined ? noun : `${noun} of at least ${minimum}`;
  }
  return `${noun} from ${minimum} to ${maximum}`;
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

/** Levenshtein distance that counts two swapped neighbours as one slip (optimal string alignment). */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let above = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      // The rows are filled up to b.length, so every index below exists.
      let cost = Math.min(above[j]! + 1, row[j - 1]! + 1, above[j - 1]! + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, before[j - 2]! + 1);
      }
      row.push(cost);
    }
    [before, above] = [above, row];
  }
  return above[b.length]!;
}
