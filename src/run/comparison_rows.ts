// What a comparison runs: rows (named sets of recipe keys) x bits x seeds, each cell one complete recipe.
import { nearestName } from "../core/nearest_name.ts";
import { FormatError } from "../core/errors.ts";
import {
  checkRecipe,
  checkRecipePart,
  type Recipe,
  type RecipeProblem,
} from "../distill/recipe.ts";
import { bitsName } from "../distill/report.ts";
import { PATH_KEYS } from "./run_inputs.ts";

/** A row of the table: what its students have in common. */
export interface ComparisonRow {
  readonly name: string;
  /** Keys of the recipe that differ from the common ones. */
  readonly recipe: Readonly<Record<string, unknown>>;
}

/** A column of the table. */
export type BitWidths = Pick<Recipe, "weightBits" | "activationBits">;

/** Rows, columns and seeds. */
export interface ComparisonPlan {
  /** What all cells have in common. */
  readonly base: Recipe;
  readonly rows: readonly ComparisonRow[];
  readonly bits: readonly BitWidths[];
  readonly seeds: readonly number[];
}

/** One student of the comparison. */
export interface ComparisonCell {
  /** Index of the row. */
  readonly row: number;
  /** Index of the column. */
  readonly column: number;
  /** For example `ptq W4A4 seed 0`. */
  readonly name: string;
  readonly recipe: Recipe;
}

/** Keys that a row may not set, and who does. */
const FOREIGN_KEYS: Readonly<Record<string, string>> = {
  ...Object.fromEntries(
    [...PATH_KEYS, "mean", "std", "scale"].map((key) => [key, "is common to all rows"]),
  ),
  weightBits: "is set by the columns (--bits)",
  activationBits: "is set by the columns (--bits)",
  seed: "is set by --seeds",
};

/**
 * Reads the content of a rows file: `[{"name": "...", "recipe": {...}}, ...]`.
 *
 * @param value what the file holds
 * @param path the file, for errors
 * @returns the rows
 * @throws FormatError naming the row and what is wrong with it
 */
export function parseRows(value: unknown, path: string): ComparisonRow[] {
  if (!Array.isArray(value) || value.length === 0) {
    throw new FormatError(path, "", 'expected a list of rows {"name": "...", "recipe": {...}}');
  }
  const rows = value.map((row: unknown, index) => {
    const place = `row ${index + 1}`;
    if (!isRecord(row)) throw new FormatError(path, place, "expected a JSON object");
    const other = Object.keys(row).find((key) => key !== "name" && key !== "recipe");
    if (other !== undefined) {
      const near = nearestName(other, ["name", "recipe"]);
      const hint = near === undefined ? "expected name and recipe" : `did you mean "${near}"?`;
      throw new FormatError(path, place, `${other}: unknown key, ${hint}`);
    }
    const { name, recipe = {} } = row;
    if (typeof name !== "string" || name.trim() === "") {
      throw new FormatError(path, place, "name: expected a text");
    }
    if (!isRecord(recipe)) throw new FormatError(path, place, "recipe: expected a JSON object");
    const problem = rowProblem(recipe);
    if (problem !== undefined) {
      throw new FormatError(path, `row "${name}"`, `${problem.key}: ${problem.detail}`);
    }
    return { name: name.trim(), recipe };
  });
  const twice = repeated(rows.map(({ name }) => name));
  if (twice !== undefined) throw new FormatError(path, `row "${twice}"`, "stands twice");
  return rows;
}

/**
 * Checks the keys of one row.
 *
 * @param recipe the row's keys
 * @returns the first thing wrong with them
 */
export function rowProblem(recipe: Readonly<Record<string, unknown>>): RecipeProblem | undefined {
  const problem = checkRecipePart(recipe);
  if (problem !== undefined) return problem;
  const key = Object.keys(recipe).find((name) => Object.hasOwn(FOREIGN_KEYS, name));
  return key === undefined ? undefined : { key, detail: FOREIGN_KEYS[key]! };
}

/**
 * Every cell, in the order in which they are best made: all rows and columns of a seed before the next seed, so that a
 * comparison cut short has a whole table.
 *
 * @param plan rows, columns and seeds
 * @returns the cells
 * @throws RangeError when a row's recipe does not go with the common keys or with the bits of a column
 */
export function comparisonCells({ base, rows, bits, seeds }: ComparisonPlan): ComparisonCell[] {
  return seeds.flatMap((seed) =>
    bits.flatMap((widths, column) =>
      rows.map((row, index) => {
        const augment = { ...base.augment, ...row.recipe.augment as object | undefined };
        const checked = checkRecipe({ ...base, ...row.recipe, augment, ...widths, seed });
        const name = `${row.name} ${bitsName(widths)} seed ${seed}`;
        if ("recipe" in checked) return { row: index, column, name, recipe: checked.recipe };
        const { key, detail } = checked.problem;
        throw new RangeError(`Cannot compare "${name}": ${key}: ${detail}`);
      })
    )
  );
}

/** @returns the first value that an earlier one equals */
export function repeated<T>(values: readonly T[]): T | undefined {
  return values.find((value, index) => values.indexOf(value) < index);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
