// Where results go: one JSON file a day and adapter, into which every run merges its figures, and a Markdown table.
import { cpus } from "node:os";
import { VERSION } from "../src/distill/report.ts";
import type { Device } from "../src/gpu/device.ts";
import type { Measurement } from "./harness.ts";

/** What the figures were measured on. */
export interface Machine {
  /** YYYY-MM-DD. */
  readonly date: string;
  /** Adapter description, e.g. `llvmpipe (LLVM 15.0.6, 256 bits)`. */
  readonly adapter: string;
  /** Family of the kernels. */
  readonly family: string;
  /** Lanes of a subgroup, 0 without subgroups. */
  readonly subgroupSize: number;
  readonly deno: string;
  readonly cpu: { readonly model: string; readonly count: number };
  /** Version of stilla. */
  readonly stilla: string;
}

/** The file. */
export interface Results extends Machine {
  readonly measurements: readonly Measurement[];
}

/**
 * Describes where the benchmark runs.
 *
 * @param device the device that is measured
 * @returns adapter, processor and versions
 */
export function describeMachine(device: Device): Machine {
  const processors = cpus();
  return {
    date: new Date().toISOString().slice(0, 10),
    adapter: device.adapterName,
    family: device.target.family,
    subgroupSize: device.target.subgroupSize,
    deno: Deno.version.deno,
    cpu: { model: processors[0]?.model.trim() ?? "unknown", count: processors.length },
    stilla: VERSION,
  };
}

/**
 * Merges figures into a file of results, which is made when it is missing.
 *
 * @param measurements new figures
 * @param machine what they were measured on
 * @param file where to; by default `results/<date>-<adapter>.json` beside this module
 * @returns the file written
 */
export function writeResults(
  measurements: readonly Measurement[],
  machine: Machine,
  file?: string,
): string | URL {
  if (file === undefined) Deno.mkdirSync(new URL("results/", import.meta.url), { recursive: true });
  const target = file ?? defaultFile(machine);
  const results: Results = {
    ...machine,
    measurements: mergeMeasurements(readResults(target)?.measurements ?? [], measurements),
  };
  Deno.writeTextFileSync(target, `${JSON.stringify(results, null, 2)}\n`);
  return target;
}

/**
 * Reads a file of results.
 *
 * @param file of {@linkcode writeResults}
 * @returns what it holds, `undefined` when there is no such file
 */
export function readResults(file: string | URL): Results | undefined {
  try {
    return JSON.parse(Deno.readTextFileSync(file)) as Results; // only writeResults() writes it
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/**
 * Puts new figures in the place of older ones of the same subject, case and metric, and adds the others at the end.
 *
 * @param older figures in their order
 * @param newer figures in their order
 * @returns both
 */
export function mergeMeasurements(
  older: readonly Measurement[],
  newer: readonly Measurement[],
): Measurement[] {
  const key = (one: Measurement) => [one.subject, one.case, one.metric].join("\n");
  const merged = new Map(older.map((one) => [key(one), one]));
  for (const one of newer) merged.set(key(one), one);
  return [...merged.values()];
}

const COLUMNS = [
  ["case", 46],
  ["metric", 16],
  ["median", 9],
  ["best", 9],
  ["unit", 9],
  ["share", 6],
  ["note", 0],
] as const;

/** The first two lines of the Markdown table. */
export function tableHeading(): string {
  const rule = COLUMNS.map(([name, width]) => {
    const dashes = "-".repeat(Math.max(width, name.length) - 1);
    return isNumeric(name) ? `${dashes}:` : `-${dashes}`;
  });
  return `${line(COLUMNS.map(([name]) => name))}\n| ${rule.join(" | ")} |`;
}

/** A line of the Markdown table; columns keep their width, so that lines can be printed as they come. */
export function tableRow(one: Omit<Measurement, "subject">): string {
  return line([
    one.case,
    one.metric,
    significant(one.median),
    significant(one.best),
    one.unit,
    one.share === undefined ? "" : `${(100 * one.share).toFixed(0)} %`,
    one.note ?? "",
  ]);
}

function line(cells: readonly string[]): string {
  const padded = COLUMNS.map(([name, width], i) => {
    const cell = cells[i] ?? "";
    const size = Math.max(width, name.length);
    return isNumeric(name) ? cell.padStart(size) : cell.padEnd(size);
  });
  return `| ${padded.join(" | ")} |`;
}

function isNumeric(column: string): boolean {
  return column === "median" || column === "best" || column === "share";
}

/** At least three significant digits, never an exponent. */
function significant(value: number): string {
  const digits = Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Number.isFinite(digits) ? Math.min(4, Math.max(0, 2 - digits)) : 0);
}

function defaultFile({ date, adapter }: Machine): URL {
  const name = adapter.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  return new URL(`results/${date}-${name}.json`, import.meta.url);
}
