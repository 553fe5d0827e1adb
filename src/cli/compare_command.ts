// `deno task compare`: several methods x bits x seeds on one network, in one table and a picture; it can be stopped and
// called again.
import { join, resolve } from "node:path";
import { reportJson } from "../distill/report.ts";
import { compare } from "../run/compare.ts";
import { comparisonMarkdown } from "../run/comparison_markdown.ts";
import { comparisonCells, type ComparisonRow, parseRows } from "../run/comparison_rows.ts";
import type { StudentRecord } from "../run/comparison_results.ts";
import { readJson } from "../run/input_files.ts";
import { readRunInputs, usesLabels } from "../run/run_inputs.ts";
import type { CompareFlags } from "./compare_flags.ts";
import { describeInputs, type Engine, readLayers } from "./distill_command.ts";
import { recipeOf } from "./flags.ts";
import type { Io } from "./io.ts";
import { ProgressPrinter } from "./progress.ts";

/**
 * Runs the command.
 *
 * @param flags the command line
 * @param io where to print, and what may stop it
 * @param engine the engine
 * @throws what the first failed student threw, after all others were made
 */
export async function compareCommand(
  flags: CompareFlags,
  io: Io,
  engine: Omit<Engine, "plan">,
): Promise<void> {
  const base = recipeOf(await readLayers(flags, io), flags, io.cwd);
  const plan = { base, rows: await rowsOf(flags, io), bits: flags.bits, seeds: flags.seeds };
  const cells = comparisonCells(plan);
  const printer = new ProgressPrinter(io);
  const labelled = cells.find(({ recipe }) => usesLabels(recipe));
  const inputs = await readRunInputs((labelled ?? cells[0]!).recipe);
  describeInputs(inputs.data, printer);
  const folder = resolve(io.cwd, flags.out);
  const { table, failures } = await compare(plan, inputs, {
    ...engine,
    folder,
    signal: io.signal,
    onStart: ({ name }, { done, total }) => printer.prefix = `${done + 1}/${total} ${name}: `,
    onProgress: printer.update.bind(printer),
    onEnd: (_, record) => printer.note(resultLine(record)),
  }).finally(() => {
    printer.clear();
    printer.prefix = "";
  });
  printer.note(`wrote ${join(folder, "table.md")}, table.svg, table.json`);
  io.stdout(flags.json ? reportJson(table) : comparisonMarkdown(table));
  if (failures.length === 0) return;
  printer.note(`${failures.length} of ${cells.length} students failed, the first of them:`);
  throw failures[0]!.error;
}

async function rowsOf({ rowsFile, methods }: CompareFlags, io: Io): Promise<ComparisonRow[]> {
  if (rowsFile === undefined) return [...methods];
  const path = resolve(io.cwd, rowsFile);
  return parseRows(await readJson(path), path);
}

function resultLine(record: StudentRecord): string {
  if ("error" in record) return `failed: ${record.error}`;
  const { top1Teacher, top1Student, agreement, seconds } = record.result;
  const value = top1Teacher === null || top1Student === null
    ? `agreement ${(100 * agreement).toFixed(2)} %`
    : `drop ${(100 * (top1Teacher - top1Student)).toFixed(2)}`;
  return `${value}, ${(seconds.calibrate + seconds.distill).toFixed(1)} s`;
}
