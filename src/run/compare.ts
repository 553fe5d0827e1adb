// Several methods x bits x seeds on one network: one student after another on one device, each kept as soon as it is
// there, so that the same call goes on where an earlier one stopped.
import type { distill, DistillOptions, Progress, RecognisedData } from "../distill/distill.ts";
import { GpuError } from "../core/errors.ts";
import type { Recipe } from "../distill/recipe.ts";
import { printable, reportJson, VERSION } from "../distill/report.ts";
import { exportOnnx } from "../formats/onnx_export.ts";
import type { Device } from "../gpu/device.ts";
import type { Graph } from "../graph/graph.ts";
import { comparisonMarkdown } from "./comparison_markdown.ts";
import { comparisonPicture } from "./comparison_picture.ts";
import {
  ComparisonResults,
  recipeIdentity,
  type StudentIdentity,
  type StudentRecord,
  type StudentResult,
} from "./comparison_results.ts";
import { type ComparisonCell, comparisonCells, type ComparisonPlan } from "./comparison_rows.ts";
import { type ComparisonTable, comparisonTable, type FinishedCell } from "./comparison_table.ts";
import { contentDigest, dataDigest } from "./content_digest.ts";
import { type RunInputs, usesLabels } from "./run_inputs.ts";

/** Where a comparison takes place and who watches. */
export interface CompareOptions {
  /** Folder of results.json and the tables. */
  readonly folder: string;
  /** Opens the device: once, and anew after it has failed. */
  readonly open: () => Promise<Device>;
  /** Makes one student. */
  readonly distill: (
    model: Graph,
    data: RecognisedData,
    recipe: Recipe,
    options: DistillOptions,
  ) => ReturnType<typeof distill>;
  /** Called before each student is made, with how many are there already. */
  readonly onStart?: (cell: ComparisonCell, place: { done: number; total: number }) => void;
  /** Called now and then while one is made. */
  readonly onProgress?: (progress: Progress) => void;
  /** Called when one is there or has failed. */
  readonly onEnd?: (cell: ComparisonCell, record: StudentRecord) => void;
  /** Stops the comparison between two steps. */
  readonly signal?: AbortSignal;
  /** Resident memory of the process in bytes. */
  readonly memory?: () => number;
}

/** How a comparison ended. */
export interface ComparisonOutcome {
  readonly table: ComparisonTable;
  /** What went wrong, by student; the others are there. */
  readonly failures: readonly { readonly cell: ComparisonCell; readonly error: unknown }[];
}

/**
 * Makes the students of a comparison that are not there yet, and writes results.json, table.json, table.md and
 * table.svg after each of them. A student that failed in an earlier call is tried again.
 *
 * @param plan rows, columns and seeds
 * @param inputs the network and its data; labels of the calibration inputs go to rows that learn from them only
 * @param options folder, device and watchers
 * @returns the table of all students, and what failed
 * @throws RangeError when there is nothing to evaluate on or a recipe is impossible
 * @throws FormatError when the folder is not a comparison's or cannot be written
 */
export async function compare(
  plan: ComparisonPlan,
  inputs: RunInputs,
  options: CompareOptions,
): Promise<ComparisonOutcome> {
  const { evaluation, evaluationLabels } = inputs.data;
  if (evaluation === undefined) {
    throw new RangeError("Cannot compare students without inputs to evaluate them on (--evaluate)");
  }
  const { signal, onStart, onEnd } = options;
  const cells = comparisonCells(plan);
  const results = await ComparisonResults.open(options.folder);
  const place: Place = {
    inputs,
    options,
    device: await options.open(),
    teacherClasses: new WeakMap(),
  };
  try {
    const { adapterName: adapter } = place.device;
    const identities = identitiesOf(cells, inputs, adapter);
    const measure = evaluationLabels === undefined ? "agreement" : "drop";
    const finished: FinishedCell[] = [];
    const missing: ComparisonCell[] = [];
    for (const cell of cells) {
      const record = results.find(identities.get(cell)!);
      if (record !== undefined && "result" in record) finished.push({ cell, record });
      else missing.push(cell);
    }
    const about = { stilla: VERSION, adapter, measure, evaluated: evaluation.count } as const;
    const table = () => comparisonTable(plan, finished, about);
    const failures: { cell: ComparisonCell; error: unknown }[] = [];
    const made = new Set<StudentRecord>();
    await writeTables(results, table());
    for (const cell of missing) {
      signal?.throwIfAborted();
      const twin = results.find(identities.get(cell)!); // made for another row of the same recipe
      if (twin !== undefined && made.has(twin)) {
        finished.push({ cell, record: twin });
        continue;
      }
      onStart?.(cell, { done: finished.length, total: cells.length });
      const outcome = await makeStudent(cell, place);
      if ("error" in outcome) failures.push({ cell, error: outcome.error });
      const record = {
        ...identities.get(cell)!,
        ...("error" in outcome ? { error: lineOf(outcome.error) } : outcome),
      };
      await results.add(record);
      made.add(record);
      finished.push({ cell, record });
      await writeTables(results, table());
      onEnd?.(cell, record);
      if ("error" in outcome && outcome.error instanceof GpuError) {
        place.device[Symbol.dispose](); // it may be lost, and its memory with it
        place.device = await options.open();
      } else {
        place.device.trim();
      }
    }
    await writeTables(results, table());
    return { table: table(), failures };
  } finally {
    place.device[Symbol.dispose]();
  }
}

/** What all students of a comparison share while they are made. */
interface Place {
  readonly inputs: RunInputs;
  readonly options: CompareOptions;
  device: Device;
  /** The teacher is evaluated once for all. */
  readonly teacherClasses: NonNullable<DistillOptions["teacherClasses"]>;
}

async function makeStudent(
  { recipe }: ComparisonCell,
  { inputs, options, device, teacherClasses }: Place,
): Promise<{ result: StudentResult } | { error: unknown }> {
  const { onProgress, signal, memory = () => Deno.memoryUsage().rss } = options;
  let peakBytes = memory();
  const sample = () => peakBytes = Math.max(peakBytes, memory());
  try {
    const { student, report } = await options.distill(
      inputs.model,
      dataFor(recipe, inputs.data),
      recipe,
      {
        device,
        teacherClasses,
        onProgress: (progress) => {
          sample();
          onProgress?.(progress);
        },
        ...(signal && { signal }),
      },
    );
    const { evaluated, top1Teacher, top1Student, agreement, weightBytes } = report.network;
    const { calibrate, distill, evaluate } = report.seconds;
    const int8 = exportOnnx(student, { producerVersion: VERSION }).length;
    sample();
    return {
      result: {
        evaluated: evaluated ?? 0,
        top1Teacher,
        top1Student,
        agreement: agreement ?? 0,
        seconds: { calibrate, distill, evaluate },
        peakBytes,
        weightBytes,
        sizeBytes: { float32: inputs.modelBytes, int8 },
      },
    };
  } catch (error) {
    signal?.throwIfAborted();
    return { error };
  }
}

function dataFor(recipe: Recipe, data: RecognisedData): RecognisedData {
  if (usesLabels(recipe)) return data;
  const { calibrationLabels: _, ...unlabelled } = data;
  return unlabelled;
}

/** The data are hashed once with labels and once without. */
function identitiesOf(
  cells: readonly ComparisonCell[],
  { modelDigest, data }: RunInputs,
  adapter: string,
): Map<ComparisonCell, StudentIdentity> {
  const digests = new Map<boolean, string>();
  return new Map(cells.map((cell) => {
    const { recipe } = cell;
    const labelled = usesLabels(recipe);
    const inputs = digests.get(labelled) ??
      contentDigest([modelDigest, dataDigest(dataFor(recipe, data))]);
    digests.set(labelled, inputs);
    return [cell, { stilla: VERSION, adapter, inputs, recipe: recipeIdentity(recipe) }];
  }));
}

async function writeTables(results: ComparisonResults, table: ComparisonTable): Promise<void> {
  await results.writeFile("table.json", reportJson(table));
  await results.writeFile("table.md", comparisonMarkdown(table));
  await results.writeFile("table.svg", comparisonPicture(table));
}

function lineOf(error: unknown): string {
  return printable((error instanceof Error ? error.message : String(error)).trim());
}
