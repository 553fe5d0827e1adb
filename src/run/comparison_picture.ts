// A comparison as a picture (SVG): a panel with its own scale for each column, a line for each row, dots with whiskers.
// Greys and two hues that are legible on light and on dark ground alike.
import { decimal, printable } from "../distill/report.ts";
import { bitsName } from "../distill/report.ts";
import { type ComparisonTable, lossOf, type Summary } from "./comparison_table.ts";

const LINE = 22;
const TOP = 34;
const BOTTOM = 92;
const PANEL = 170;
const GAP = 22;
/** Average width of a letter at 12 px, generously. */
const LETTER = 7;
const MARGIN = 10;
/** What is drawn up to here is drawn linearly, in points, even where the best student loses less. */
const LEAST_KNEE = 0.1;
const POSITIVE_TICKS = [0.01, 0.1, 1, 10].flatMap((unit) => [unit, 2 * unit, 5 * unit]);
const TICKS = [0, ...POSITIVE_TICKS, 100, ...POSITIVE_TICKS.map((tick) => -tick)];
/** Labels of the scale keep this distance. */
const LABEL_GAP = 24;
const COLORS = { unlabelled: "#2f81f7", labelled: "#d4731c", failed: "#e5484d", text: "#808080" };

/**
 * Draws a comparison.
 *
 * @param table the comparison
 * @returns an SVG document
 */
export function comparisonPicture(table: ComparisonTable): string {
  const { rows, bits, measure } = table;
  const title = measure === "drop"
    ? "drop of top-1 in points"
    : "inputs with another class than the teacher's, in percent";
  const legend = [
    `${title}: mean over the seeds ± one standard deviation`,
    "each column has its own scale: linear near 0, logarithmic above its best student",
    "ring: best of the column; blue: without labels" +
    (rows.some(({ labelled }) => labelled) ? ", orange: with labels" : ""),
  ];
  const names = widthOf(rows.map(({ name }) => name)) + 2 * MARGIN;
  const left = (column: number) => names + column * (PANEL + GAP);
  const width = Math.max(left(bits.length), widthOf(legend) + 2 * MARGIN);
  const bottom = TOP + rows.length * LINE;
  const scales = bits.map((_, column) => scaleOf(rows.map(({ cells }) => cells[column]!), measure));
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${bottom + BOTTOM}" ` +
    `width="${width}" height="${bottom + BOTTOM}" font-family="system-ui, sans-serif" ` +
    `font-size="12" fill="${COLORS.text}">`,
    `<title>${escaped(title)}</title>`,
    ...rows.map(({ name }, row) => text(names - MARGIN, lineOf(row) + 4, name, "end")),
    ...bits.flatMap((widths, column) =>
      panel(bitsName(widths), left(column), bottom, scales[column]!)
    ),
    ...rows.flatMap((row, index) =>
      row.cells.map((cell, column) =>
        mark(cell, {
          label: `${row.name} ${bitsName(bits[column]!)}`,
          color: row.labelled ? COLORS.labelled : COLORS.unlabelled,
          measure,
          x: (value) => left(column) + scales[column]!.at(value),
          y: lineOf(index),
        })
      )
    ),
    ...legend.map((line, index) => text(MARGIN, bottom + 44 + 18 * index, line, "start")),
    "</svg>",
    "",
  ].join("\n");
}

/** From points to pixels of a panel. */
interface Scale {
  readonly at: (value: number) => number;
  readonly ticks: readonly number[];
}

/** asinh: linear around zero, where drops may be negative, logarithmic above the best student. */
function scaleOf(cells: readonly Summary[], measure: ComparisonTable["measure"]): Scale {
  const shown = cells.filter(({ mean }) => mean !== null);
  const losses = shown.map((cell) => lossOf(cell, measure));
  const knee = Math.max(LEAST_KNEE, Math.min(...losses, 100));
  const bend = (value: number) => Math.asinh(value / knee);
  const ends = shown.flatMap(({ deviation }, index) =>
    [-1, 1].map((side) => bend(losses[index]! + side * (deviation ?? 0)))
  );
  const low = Math.min(0, ...ends);
  const high = Math.max(bend(knee), ...ends);
  const margin = (high - low) * 0.05;
  const [from, span] = [low - margin, high - low + 2 * margin];
  const at = (value: number) => (bend(value) - from) / span * PANEL;
  const ticks: number[] = [];
  for (const tick of TICKS) {
    const x = at(tick);
    if (x < 0 || x > PANEL) continue;
    if (ticks.every((other) => Math.abs(at(other) - x) >= LABEL_GAP)) ticks.push(tick);
  }
  return { at, ticks };
}

function panel(name: string, left: number, bottom: number, { at, ticks }: Scale): string[] {
  const grid = (x: number, opacity: number) =>
    `<path d="M${pixel(x)} ${TOP}V${bottom}" stroke="${COLORS.text}" opacity="${opacity}"/>`;
  return [
    `<rect x="${left}" y="${TOP}" width="${PANEL}" height="${bottom - TOP}" ` +
    `fill="${COLORS.text}" opacity="0.08"/>`,
    text(left + PANEL / 2, TOP - 10, name, "middle", ' font-weight="bold"'),
    ...ticks.flatMap((tick) => [
      grid(left + at(tick), tick === 0 ? 0.7 : 0.25),
      text(left + at(tick), bottom + 16, String(tick), "middle", ' font-size="10"'),
    ]),
  ];
}

function mark(
  cell: Summary,
  { label, color, measure, x, y }: {
    readonly label: string;
    readonly color: string;
    readonly measure: ComparisonTable["measure"];
    readonly x: (value: number) => number;
    readonly y: number;
  },
): string {
  const loss = lossOf(cell, measure);
  const { mean, deviation, failures, best } = cell;
  if (mean === null) {
    if (failures.length === 0) return "";
    const title = `<title>${escaped(`${label}: ${failures[0]!.error}`)}</title>`;
    const failed = text(x(0) + 4, y + 4, "failed", "start", ` fill="${COLORS.failed}"`);
    return `<g>${title}${failed}</g>`;
  }
  const spread = deviation === null ? "" : ` ± ${decimal(deviation, 2)}`;
  const [from, to] = [loss - (deviation ?? 0), loss + (deviation ?? 0)].map((end) => pixel(x(end)));
  const ends = [from, to].map((end) => `M${end} ${y - 4}V${y + 4}`).join("");
  return [
    `<g stroke="${color}"><title>${escaped(`${label}: ${decimal(mean, 2)}${spread}`)}</title>`,
    deviation === null ? "" : `<path d="M${from} ${y}H${to}${ends}"/>`,
    `<circle cx="${pixel(x(loss))}" cy="${y}" r="3" fill="${color}"/>`,
    best ? `<circle cx="${pixel(x(loss))}" cy="${y}" r="6" fill="none"/>` : "",
    "</g>",
  ].join("");
}

function widthOf(lines: readonly string[]): number {
  return Math.max(...lines.map((line) => printable(line).length)) * LETTER;
}

function lineOf(row: number): number {
  return TOP + row * LINE + LINE / 2;
}

function pixel(value: number): number {
  return Math.round(value * 100) / 100;
}

function text(x: number, y: number, words: string, anchor: string, more = ""): string {
  return `<text x="${pixel(x)}" y="${y}" text-anchor="${anchor}"${more}>${escaped(words)}</text>`;
}

function escaped(words: string): string {
  return printable(words).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
}
