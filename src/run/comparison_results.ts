// `results.json`: every student that a comparison made, found again by its recipe and the content of its inputs. The file
// is written whole after each student, so that a comparison can be stopped at any moment.
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import { FormatError } from "../core/errors.ts";
import { checkRecipe, type Recipe } from "../distill/recipe.ts";
import { reportJson } from "../distill/report.ts";
import { readJson } from "./input_files.ts";
import { unwritable } from "./run_folder.ts";
import { PATH_KEYS } from "./run_inputs.ts";
import { writeWholeFile } from "./whole_file.ts";

/** What a student is made from; equal identities give equal students. */
export interface StudentIdentity {
  /** Version of stilla. */
  readonly stilla: string;
  readonly adapter: string;
  /** Content of the model file, the inputs and the labels. */
  readonly inputs: string;
  /** Complete but for its paths. */
  readonly recipe: Readonly<Record<string, unknown>>;
}

/** What was measured on a student. */
export interface StudentResult {
  /** Inputs that teacher and student were evaluated on. */
  readonly evaluated: number;
  /** 0 to 1, `null` without labels. */
  readonly top1Teacher: number | null;
  readonly top1Student: number | null;
  /** Fraction of inputs on which teacher and student give the same class. */
  readonly agreement: number;
  readonly seconds: {
    readonly calibrate: number;
    readonly distill: number;
    readonly evaluate: number;
  };
  /** Largest resident memory of the process while the student was made. */
  readonly peakBytes: number;
  /** Weights and biases at their bit width, packed. */
  readonly weightBytes: number;
  /** Sizes of the model files. */
  readonly sizeBytes: { readonly float32: number; readonly int8: number };
}

/** A student, or why there is none. */
export type StudentRecord =
  & StudentIdentity
  & ({ readonly result: StudentResult } | { readonly error: string });

const FRACTION = z.number().min(0).max(1);
const AMOUNT = z.number().nonnegative();
const IDENTITY = {
  stilla: z.string(),
  adapter: z.string(),
  inputs: z.string(),
  recipe: z.record(z.string(), z.unknown()),
};
const RESULT: z.ZodType<StudentResult> = z.strictObject({
  evaluated: z.int(),
  top1Teacher: FRACTION.nullable(),
  top1Student: FRACTION.nullable(),
  agreement: FRACTION,
  seconds: z.strictObject({ calibrate: AMOUNT, distill: AMOUNT, evaluate: AMOUNT }),
  peakBytes: AMOUNT,
  weightBytes: AMOUNT,
  sizeBytes: z.strictObject({ float32: AMOUNT, int8: AMOUNT }),
});
const SCHEMA = z.strictObject({
  students: z.array(z.union([
    z.strictObject({ ...IDENTITY, result: RESULT }),
    z.strictObject({ ...IDENTITY, error: z.string() }),
  ])),
});

/** Names of the files in the folder of a comparison. */
export const COMPARISON_FILES = ["results.json", "table.json", "table.md", "table.svg"] as const;

/** The students of a comparison's folder. */
export class ComparisonResults {
  readonly #folder: string;
  readonly #records: StudentRecord[];

  private constructor(folder: string, records: StudentRecord[]) {
    this.#folder = folder;
    this.#records = records;
  }

  /**
   * Reads what an earlier comparison left, and makes sure that the folder can be written.
   *
   * @param folder the folder; it is made where there is none
   * @returns the students that are there
   * @throws FormatError when a file in the way is none of a comparison's, or the folder cannot be written
   */
  static async open(folder: string): Promise<ComparisonResults> {
    const [path, ...tables] = COMPARISON_FILES.map((name) => join(folder, name)) as [string];
    const present = new Set<string>();
    for (const file of [path, ...tables]) if (await exists(file)) present.add(file);
    let records: StudentRecord[] = [];
    if (present.has(path)) {
      const { data, error } = SCHEMA.safeParse(await readJson(path));
      if (error !== undefined) {
        const place = error.issues[0]?.path.join(".") ?? "";
        throw new FormatError(path, place, "expected the results of an earlier comparison");
      }
      records = data.students;
    } else if (present.size > 0) {
      throw new FormatError([...present][0]!, "", "is in the way, and no comparison's");
    }
    const results = new ComparisonResults(folder, records);
    await results.#write();
    return results;
  }

  /**
   * Looks for a student.
   *
   * @param identity what it is made from
   * @returns the student, or undefined
   */
  find(identity: StudentIdentity): StudentRecord | undefined {
    return this.#records.find((record) => isSame(record, identity));
  }

  /**
   * Keeps a student, in the place of an earlier one made from the same.
   *
   * @param record the student, or why there is none
   */
  async add(record: StudentRecord): Promise<void> {
    const at = this.#records.findIndex((other) => isSame(other, record));
    this.#records.splice(at < 0 ? this.#records.length : at, at < 0 ? 0 : 1, record);
    await this.#write();
  }

  /**
   * Writes another file of the folder.
   *
   * @param name its name
   * @param text its content
   */
  async writeFile(name: (typeof COMPARISON_FILES)[number], text: string): Promise<void> {
    try {
      await writeWholeFile(join(this.#folder, name), text);
    } catch (error) {
      throw unwritable(this.#folder, error);
    }
  }

  #write(): Promise<void> {
    return this.writeFile("results.json", reportJson({ students: this.#records }));
  }
}

/**
 * The part of a recipe that decides the student: paths do not, the content behind them does.
 *
 * @param recipe a complete recipe
 * @returns all of it but the paths
 */
export function recipeIdentity(recipe: Recipe): StudentIdentity["recipe"] {
  return Object.fromEntries(Object.entries(recipe).filter(([key]) => !PATH_KEYS.includes(key)));
}

function isSame(record: StudentIdentity, { stilla, adapter, inputs, recipe }: StudentIdentity) {
  return record.stilla === stilla && record.adapter === adapter && record.inputs === inputs &&
    isSameRecipe(record.recipe, recipe);
}

/** A key that is younger than the record stood at its default then. */
function isSameRecipe(recorded: StudentIdentity["recipe"], asked: StudentIdentity["recipe"]) {
  if (isDeepStrictEqual(recorded, asked)) return true;
  const checked = checkRecipe(recorded);
  return "recipe" in checked && isDeepStrictEqual(recipeIdentity(checked.recipe), asked);
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.lstat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw unwritable(path, error);
  }
}
