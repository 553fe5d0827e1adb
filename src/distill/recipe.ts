// The recipe: everything that decides a run, as plain JSON. Its keys stand in recipe_keys.ts, their schema in
// recipe_schema.ts, the rules that tie them in recipe_rules.ts.
import { z } from "zod";
import { FormatError } from "../core/errors.ts";
import { nearestName } from "../core/nearest_name.ts";
import { fieldsOf, type JsonSchema, type RecipeField } from "./recipe_fields.ts";
import type { Recipe } from "./recipe_keys.ts";
import { acrossKeys, type RecipeProblem } from "./recipe_rules.ts";
import { overrideSchema, recipeSchema } from "./recipe_schema.ts";

export type { AugmentRecipe, Recipe } from "./recipe_keys.ts";
export { batchNormPolicy, type RecipeProblem } from "./recipe_rules.ts";

/** The recipe with nothing asked for: every default. */
export const DEFAULT_RECIPE: Recipe = recipeSchema.parse({});

/** Every key of the recipe, in the order of the schema. */
export const RECIPE_FIELDS: readonly RecipeField[] = fieldsOf(
  z.toJSONSchema(recipeSchema) as JsonSchema,
  "",
);

/** Keys of an override, called `overrides[].weightBits`. */
const OVERRIDE_FIELDS: readonly RecipeField[] = fieldsOf(
  z.toJSONSchema(overrideSchema) as JsonSchema,
  "overrides[].",
);

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

/** zod's first issue in our words. */
function problemOf(value: unknown, issues: readonly z.core.$ZodIssue[]): RecipeProblem {
  const unknown = issues.find((issue) => issue.code === "unrecognized_keys");
  if (unknown?.code === "unrecognized_keys") {
    const place = placeOf(unknown.path);
    const key = place === "" ? unknown.keys[0]! : `${place}.${unknown.keys[0]}`;
    const names = [...RECIPE_FIELDS.map((field) => field.key), "augment"];
    const near = place.startsWith("overrides[")
      ? nearestName(unknown.keys[0]!, Object.keys(overrideSchema.shape))
      : nearestName(key, names);
    return { key, detail: `unknown key${near === undefined ? "" : `, did you mean "${near}"?`}` };
  }
  const parts = issues[0]?.path ?? [];
  let found = value;
  for (const part of parts) found = (found as Record<PropertyKey, unknown>)[part];
  // A list of numbers or texts is named as a whole, an override by its place.
  const isOverride = parts[0] === "overrides";
  const key = placeOf(isOverride ? parts : parts.filter((part) => typeof part === "string"));
  const general = key.replace(/\[\d+\]/, "[]");
  const expected = [...RECIPE_FIELDS, ...OVERRIDE_FIELDS].find((field) => field.key === general)
    ?.expected ?? "a JSON object";
  return { key, detail: `found ${shown(found)}, expected ${expected}` };
}

/** `overrides[0].weightBits` for a path into a recipe. */
function placeOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>((place, part) => {
    if (typeof part === "number") return `${place}[${part}]`;
    return place === "" ? String(part) : `${place}.${String(part)}`;
  }, "");
}

function shown(value: unknown): string {
  if (typeof value === "number") return String(value);
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
