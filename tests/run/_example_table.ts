// A table with everything in it: marks, missing and failed students, rows with and without labels, an awkward name.
import { DEFAULT_RECIPE } from "../../src/distill/recipe.ts";
import { comparisonCells } from "../../src/run/comparison_rows.ts";
import {
  type ComparisonTable,
  comparisonTable,
  type FinishedCell,
} from "../../src/run/comparison_table.ts";

const BITS = [{ weightBits: 8, activationBits: 8 }, { weightBits: 2, activationBits: 4 }];
const ROWS: Record<string, Record<string, unknown>> = {
  "min-max": { method: "ptq", weightObserver: "minmax" },
  "A|B <&>": { method: "ptq" },
  blockwise: { method: "blockwise" },
  labels: { method: "qat" },
};
/** In points by row and column, one a seed; a text is a failure, a missing one was not made yet. */
type Drops = Record<string, readonly (readonly (number | string)[])[]>;
const DROPS: Drops = {
  "min-max": [[-0.1, 0, 0.1], [80, "a | b", 82]],
  "A|B <&>": [[0.06, 0.04, 0.05], [10.4, 12.4]],
  blockwise: [[1, 1, 1], [10, 11, 12]],
  labels: [[3, 4, 5], ["lost", "lost", "lost"]],
};

/** The table of {@linkcode DROPS}. */
export function exampleTable(
  { measure = "drop", names = Object.keys(ROWS), drops = {} }: {
    readonly measure?: ComparisonTable["measure"];
    readonly names?: readonly string[];
    /** In the place of the usual ones. */
    readonly drops?: Drops;
  } = {},
): ComparisonTable {
  const rows = names.map((name) => ({ name, recipe: ROWS[name]! }));
  const plan = { base: DEFAULT_RECIPE, rows, bits: BITS, seeds: [0, 1, 2] };
  const finished = comparisonCells(plan).flatMap((cell): FinishedCell[] => {
    const { row, column, recipe } = cell;
    const found = { ...DROPS, ...drops }[names[row]!]![column]?.[recipe.seed];
    if (found === undefined) return [];
    const identity = { stilla: "1", adapter: "a", inputs: "i", recipe: {} };
    if (typeof found === "string") return [{ cell, record: { ...identity, error: found } }];
    const result = {
      evaluated: 1000,
      top1Teacher: 0.9,
      top1Student: 0.9 - found / 100,
      agreement: 1 - found / 100,
      seconds: { calibrate: 1, distill: 10 * recipe.seed, evaluate: 3 },
      peakBytes: (recipe.seed + 1) * 2 ** 20,
      weightBytes: 1024 * (row + 1),
      sizeBytes: { float32: 9, int8: 2048 },
    };
    return [{ cell, record: { ...identity, result } }];
  });
  return comparisonTable(plan, finished, { stilla: "1", adapter: "a", measure, evaluated: 1000 });
}
