// A comparison's tables as Markdown, padded so that a terminal shows them well too.
import { bitsName, decimal, printable } from "../distill/report.ts";
import type { ComparisonTable, Summary } from "./comparison_table.ts";

/**
 * The tables of a comparison.
 *
 * @param table the comparison
 * @returns Markdown: what was lost, footnotes, failures, times and memory
 */
export function comparisonMarkdown(table: ComparisonTable): string {
  return [
    heading(table),
    markdownTable(
      ["student", ...table.bits.map(bitsName)],
      table.rows.map(({ name, cells }) => [
        name,
        ...cells.map((cell) => lossText(cell, table.seeds.length)),
      ]),
    ),
    footnotes(table),
    failureList(table),
    "Times and memory. The first student of a call also compiles the kernels, and its evaluation is the fp32 " +
    "network's too. Peak: the largest resident memory of the process while the students of the line " +
    "were made; what earlier ones left allocated counts.",
    costTable(table),
  ].filter((part) => part !== "").join("\n\n") + "\n";
}

function heading({ measure, evaluated, top1Teacher, seeds, adapter, stilla }: ComparisonTable) {
  const on = `on ${evaluated.toLocaleString("en")} inputs`;
  const what = measure === "drop"
    ? `Drop of top-1 in points ${on}` +
      (top1Teacher === null ? "" : `; the fp32 network has ${decimal(top1Teacher, 2)} %`)
    : `Agreement of student and teacher in percent ${on}`;
  const over = seeds.length === 1
    ? `seed ${seeds[0]}`
    : `mean ± standard deviation over the seeds ${seeds.join(", ")}`;
  return `${what}; ${over}; seconds of making the student (calibrate and distill).\n` +
    `stilla ${stilla}, ${printable(adapter)}.`;
}

/** `**2.03 ± 0.24** †, 23 s`. */
function lossText(cell: Summary, wanted: number): string {
  const { seeds, mean, deviation, seconds, best, nearBest, failures } = cell;
  if (mean === null) return failures.length > 0 ? "failed" : "-";
  const value = decimal(mean, 2) + (deviation === null ? "" : ` ± ${decimal(deviation, 2)}`);
  const failed = failures.length > 0 ? `, ${failures.length} failed` : "";
  const count = seeds.length === wanted ? "" : ` (n = ${seeds.length}${failed})`;
  const time = seconds === null ? "" : `, ${decimal(seconds.calibrate + seconds.distill, 1)} s`;
  return `${best ? `**${value}**` : value}${nearBest ? " †" : ""}${count}${time}`;
}

function footnotes({ rows }: ComparisonTable): string {
  const all = rows.flatMap(({ cells }) => cells);
  const labelled = rows.filter((row) => row.labelled).map(({ name }) => escaped(name));
  return [
    all.some(({ best }) => best) ? "**Bold**: the best of the column." : "",
    all.some(({ nearBest }) => nearBest)
      ? "†: the best row without labels, or no further from it than its standard deviation."
      : "",
    labelled.length > 0 ? `Learned from labels: ${labelled.join("; ")}.` : "",
  ].filter((line) => line !== "").join("\n");
}

function failureList({ rows, bits }: ComparisonTable): string {
  const lines = rows.flatMap(({ name, cells }) =>
    cells.flatMap(({ failures }, column) =>
      failures.map(({ seed, error }) =>
        `- ${escaped(name)} ${bitsName(bits[column]!)} seed ${seed}: ${escaped(error)}`
      )
    )
  );
  return lines.length === 0 ? "" : ["Failed:", "", ...lines].join("\n");
}

function costTable({ rows, bits }: ComparisonTable): string {
  const scaled = (value: number | null, unit: number, digits: number) =>
    decimal(value === null ? null : value / unit, digits);
  return markdownTable(
    ["student", "calibrate s", "distill s", "evaluate s", "peak MiB", "weights KiB", "file KiB"],
    rows.flatMap(({ name, cells }) =>
      cells.map(({ seconds, peakBytes, weightBytes, fileBytes }, column) => [
        `${name} ${bitsName(bits[column]!)}`,
        decimal(seconds?.calibrate ?? null, 1),
        decimal(seconds?.distill ?? null, 1),
        decimal(seconds?.evaluate ?? null, 1),
        scaled(peakBytes, 2 ** 20, 0),
        scaled(weightBytes, 1024, 1),
        scaled(fileBytes, 1024, 1),
      ])
    ),
  );
}

function markdownTable(head: readonly string[], body: readonly (readonly string[])[]): string {
  const lines = [head, ...body].map(([name, ...cells]) => [escaped(name!), ...cells]);
  const widths = head.map((_, column) => Math.max(3, ...lines.map((line) => line[column]!.length)));
  const row = (cells: readonly string[]) =>
    `| ${
      cells.map((cell, i) => i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)).join(
        " | ",
      )
    } |`;
  const rule = widths.map((width, i) => i === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`);
  return [row(lines[0]!), row(rule), ...lines.slice(1).map(row)].join("\n");
}

/** Names of rows and errors come from outside. */
function escaped(text: string): string {
  return printable(text).replace(/[\\|*_`<[\]]/g, "\\$&");
}
