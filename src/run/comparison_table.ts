// A comparison's students summed up: mean and standard deviation over the seeds, and which are the best of a column.
import type { BitWidths, ComparisonCell, ComparisonPlan } from "./comparison_rows.ts";
import type { StudentRecord, StudentResult } from "./comparison_results.ts";
import { usesLabels } from "./run_inputs.ts";

/** Everything the tables and the picture show. */
export interface ComparisonTable {
  /** Version of stilla. */
  readonly stilla: string;
  readonly adapter: string;
  /** Drop of top-1 in points (less is better), or without labels agreement with the teacher in percent (more is). */
  readonly measure: "drop" | "agreement";
  /** Inputs evaluated on. */
  readonly evaluated: number;
  /** Top-1 of the teacher in percent, `null` without labels or students. */
  readonly top1Teacher: number | null;
  readonly seeds: readonly number[];
  readonly bits: readonly BitWidths[];
  readonly rows: readonly SummaryRow[];
}

/** A row of the table. */
export interface SummaryRow {
  readonly name: string;
  /** What differs from the common recipe. */
  readonly recipe: Readonly<Record<string, unknown>>;
  /** Whether its students learned from labels. */
  readonly labelled: boolean;
  /** One a column. */
  readonly cells: readonly Summary[];
}

/** The students of a row and a column. */
export interface Summary {
  /** Seeds of the students that are there. */
  readonly seeds: readonly number[];
  /** Of the measure, one a seed. */
  readonly values: readonly number[];
  readonly mean: number | null;
  /** Sample standard deviation; `null` below two seeds. */
  readonly deviation: number | null;
  /** Means. */
  readonly seconds: StudentResult["seconds"] | null;
  /** Largest. */
  readonly peakBytes: number | null;
  /** Means. */
  readonly weightBytes: number | null;
  readonly fileBytes: number | null;
  /** No row of the column has a better mean. */
  readonly best: boolean;
  /** Without labels, and the best such row of the column or within that row's deviation of it. */
  readonly nearBest: boolean;
  readonly failures: readonly { readonly seed: number; readonly error: string }[];
}

/** A student of the comparison that is there, or that failed. */
export interface FinishedCell {
  readonly cell: ComparisonCell;
  readonly record: StudentRecord;
}

/** Means that differ by no more are the same: sums in another order. */
const ROUNDING = 1e-9;

/**
 * Sums a comparison up.
 *
 * @param plan rows, columns and seeds
 * @param finished the students that are there and those that failed
 * @param about what the table is of
 * @returns the table
 */
export function comparisonTable(
  { base, rows, bits, seeds }: ComparisonPlan,
  finished: readonly FinishedCell[],
  about: Pick<ComparisonTable, "stilla" | "adapter" | "measure" | "evaluated">,
): ComparisonTable {
  const { measure } = about;
  const summaries = rows.map(({ name, recipe }, row) => ({
    name,
    recipe,
    labelled: usesLabels({ ...base, ...recipe }),
    cells: bits.map((_, column) =>
      summarize(
        finished.filter(({ cell }) => cell.row === row && cell.column === column),
        measure,
      )
    ),
  }));
  const lost = bits.map((_, column) => {
    const cells = summaries.map(({ cells }) => cells[column]!);
    const unlabelled = cells.filter((_, row) => !summaries[row]!.labelled);
    const free = least(unlabelled, measure);
    return {
      best: lossOf(least(cells, measure), measure),
      nearBest: lossOf(free, measure) + (free?.deviation ?? 0),
    };
  });
  const marked = summaries.map((row) => ({
    ...row,
    cells: row.cells.map((cell, column) => ({
      ...cell,
      best: cell.mean !== null && lossOf(cell, measure) <= lost[column]!.best + ROUNDING,
      nearBest: cell.mean !== null && !row.labelled &&
        lossOf(cell, measure) <= lost[column]!.nearBest + ROUNDING,
    })),
  }));
  const results = finished.flatMap(({ record }) => "result" in record ? [record.result] : []);
  const top1 = results[0]?.top1Teacher ?? null;
  return { ...about, top1Teacher: top1 === null ? null : 100 * top1, seeds, bits, rows: marked };
}

/**
 * What a student lost, in points: less is better whatever the measure.
 *
 * @param cell mean of the measure
 * @param measure the measure
 * @returns the drop, or the inputs that get another class than the teacher's, in percent; infinite without students
 */
export function lossOf(
  cell: Pick<Summary, "mean"> | undefined,
  measure: ComparisonTable["measure"],
): number {
  const mean = cell?.mean ?? null;
  if (mean === null) return Infinity;
  return measure === "drop" ? mean : 100 - mean;
}

function least<T extends Pick<Summary, "mean">>(
  cells: readonly T[],
  measure: ComparisonTable["measure"],
): T | undefined {
  return cells.toSorted((a, b) => lossOf(a, measure) < lossOf(b, measure) ? -1 : 1)[0];
}

function summarize(
  finished: readonly FinishedCell[],
  measure: ComparisonTable["measure"],
): Omit<Summary, "best" | "nearBest"> {
  const students = finished.toSorted((a, b) => a.cell.recipe.seed - b.cell.recipe.seed).flatMap((
    { cell, record },
  ) => "result" in record ? [{ seed: cell.recipe.seed, result: record.result }] : []);
  const values = students.map(({ result }) => valueOf(result, measure));
  const mean = meanOf(values);
  const meanBy = (value: (result: StudentResult) => number) =>
    meanOf(students.map(({ result }) => value(result)));
  return {
    seeds: students.map(({ seed }) => seed),
    values,
    mean,
    deviation: mean === null ? null : deviationOf(values, mean),
    seconds: students.length === 0 ? null : {
      calibrate: meanBy((result) => result.seconds.calibrate)!,
      distill: meanBy((result) => result.seconds.distill)!,
      evaluate: meanBy((result) => result.seconds.evaluate)!,
    },
    peakBytes: students.length === 0
      ? null
      : Math.max(...students.map(({ result }) => result.peakBytes)),
    weightBytes: meanBy((result) => result.weightBytes),
    fileBytes: meanBy((result) => result.sizeBytes.int8),
    failures: finished.flatMap(({ cell, record }) =>
      "error" in record ? [{ seed: cell.recipe.seed, error: record.error }] : []
    ),
  };
}

function valueOf(
  { top1Teacher, top1Student, agreement }: StudentResult,
  measure: ComparisonTable["measure"],
): number {
  if (measure === "agreement") return 100 * agreement;
  return 100 * ((top1Teacher ?? NaN) - (top1Student ?? NaN));
}

function meanOf(values: readonly number[]): number | null {
  return values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
}

function deviationOf(values: readonly number[], mean: number): number | null {
  if (values.length < 2) return null;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1));
}
