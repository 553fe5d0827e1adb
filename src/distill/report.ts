// What a run found out, as plain JSON, and the tables that show it. Nothing here prints.
import config from "../../deno.json" with { type: "json" };

/** Version of stilla, for reports and files. */
export const VERSION: string = config.version;

/** One quantized layer, measured on the held-out inputs against the teacher's output of the same layer or unit. */
export interface LayerReport {
  /** Name of the layer's node in the model file. */
  readonly name: string;
  /** ONNX operator of that node. */
  readonly opType: string;
  /** `null` where the layer has no weights or they stay float. */
  readonly weightBits: number | null;
  /** Of the layer's output as later layers read it; `null` where it stays float. */
  readonly activationBits: number | null;
  /** Mean squared error of the PTQ start. */
  readonly mseBefore: number;
  /** Mean squared error of the finished student. */
  readonly mseAfter: number;
  /** Signal to quantization noise of the finished student: 10 log10(mean(target^2) / mseAfter). */
  readonly sqnrDb: number;
  /** Cosine between the finished student's output and the teacher's. */
  readonly cosine: number;
  /** True when distillation was worse on held-out inputs, so that the PTQ start was kept. */
  readonly rolledBack: boolean;
}

/** The whole network; what was not measured is `null`. */
export interface NetworkReport {
  /** Inputs that teacher and student were evaluated on. */
  readonly evaluated: number | null;
  /** Fraction of right answers, 0 to 1; needs labels. */
  readonly top1Teacher: number | null;
  /** The same of the student. */
  readonly top1Student: number | null;
  /** Fraction of inputs on which teacher and student give the same class. */
  readonly agreement: number | null;
  /** Sizes of the model files. */
  readonly sizeBytes: { readonly float32: number; readonly int8: number } | null;
  /** Weights and biases at their bit width, packed, without the file around them. */
  readonly weightBytes: number;
}

/** Where the time went. */
export interface SecondsReport {
  /** Ranges of the activations, and the PTQ start. */
  readonly calibrate: number;
  /** Training. */
  readonly distill: number;
  /** Teacher and student on the evaluation inputs. */
  readonly evaluate: number;
  /** All of it. */
  readonly total: number;
}

/** A whole run: the same recipe, seed and device give the same report but for the seconds. */
export interface Report {
  /** {@linkcode VERSION}. */
  readonly stilla: string;
  /** Name of the GPU or software adapter. */
  readonly adapter: string;
  /** Kernels whose tiles were measured on this machine: sums are in the order of these tiles. */
  readonly tunedTiles: number;
  /** Method of the recipe. */
  readonly method: string;
  /** Bits of the weights, first and last layer aside. */
  readonly weightBits: number;
  /** Bits of the activations, first and last layer aside; `null` where they stay float. */
  readonly activationBits: number | null;
  /** Whether the activations' ranges were calibrated, or are taken at run time from what each layer reads. */
  readonly activationRanges: "static" | "dynamic";
  /**
   * Exponent p of the L_p error that chose the calibrated ranges: the recipe's, the method's, or the one with the least
   * error of the network's output; `null` where another observer chose them, or none.
   */
  readonly activationExponent: number | null;
  /** Seed of every random choice. */
  readonly seed: number;
  /** Whether the activations of all samples were kept in host memory, because they need more than memoryBudget. */
  readonly streamed: boolean;
  /** Why equalization left the outputs of a layer as they were, by layer; empty when nothing was to be equalized. */
  readonly notEqualized: Readonly<Record<string, string>>;
  /** Calibration inputs trained on, and held out. */
  readonly samples: { readonly train: number; readonly heldOut: number };
  /** Every layer with weights, in execution order. */
  readonly layers: readonly LayerReport[];
  /** The network as a whole. */
  readonly network: NetworkReport;
  /** Where the time went; the only part that differs between two equal runs. */
  readonly seconds: SecondsReport;
}

/** A line of the network table. */
export interface NetworkRow {
  /** For example `blockwise W4A4`. */
  readonly name: string;
  /** 0 to 1, `null` without labels. */
  readonly top1: number | null;
  /** top1 of the fp32 network, `null` without labels. */
  readonly top1Teacher: number | null;
  readonly sizeBytes: number | null;
  readonly seconds: number | null;
}

/**
 * The fp32 network's and the student's line of a run.
 *
 * @param report the run
 * @returns two lines for {@linkcode networkTable}
 */
export function networkRows(report: Report): [teacher: NetworkRow, student: NetworkRow] {
  const { network, seconds } = report;
  const { top1Teacher } = network;
  return [
    {
      name: "fp32",
      top1: top1Teacher,
      top1Teacher,
      sizeBytes: network.sizeBytes?.float32 ?? null,
      seconds: null,
    },
    {
      name: `${report.method} ${bitsName(report)}`,
      top1: network.top1Student,
      top1Teacher,
      sizeBytes: network.sizeBytes?.int8 ?? null,
      seconds: seconds.total,
    },
  ];
}

/**
 * The bits of a student in a few letters.
 *
 * @param bits those of a recipe, a report or a plan
 * @returns for example `W4A8`, `W4A32` where activations stay float32, `W8A8-dynamic` with ranges at run time
 */
export function bitsName(
  { weightBits, activationBits, activationRanges }:
    & Pick<Report, "weightBits" | "activationBits">
    & Partial<Pick<Report, "activationRanges">>,
): string {
  const bits = `W${weightBits}A${activationBits ?? 32}`;
  return activationRanges === "dynamic" ? `${bits}-dynamic` : bits;
}

/**
 * The table of networks.
 *
 * @param rows one line each
 * @returns aligned text with a heading, no newline at the end
 */
export function networkTable(rows: readonly NetworkRow[]): string {
  return alignedTable(
    ["network", "top-1 %", "drop", "size KiB", "seconds"],
    rows.map((row) => {
      const drop = row.top1 === null || row.top1Teacher === null
        ? null
        : (row.top1Teacher - row.top1) * 100;
      return [
        row.name,
        decimal(row.top1 === null ? null : row.top1 * 100, 2),
        decimal(drop, 2),
        decimal(row.sizeBytes === null ? null : row.sizeBytes / 1024, 1),
        decimal(row.seconds, 1),
      ];
    }),
  );
}

/**
 * The layers that lost most, worst first.
 *
 * @param report the run
 * @param options.count how many to show
 * @returns aligned text with a heading, no newline at the end
 */
export function layerTable(
  report: Report,
  { count = 8 }: { readonly count?: number } = {},
): string {
  // A layer without noise has infinite SQNR; NaN (a dead layer) is worst of all.
  const rank = (layer: LayerReport) => Number.isNaN(layer.sqnrDb) ? -Infinity : layer.sqnrDb;
  const worst = [...report.layers].sort((a, b) => rank(a) - rank(b)).slice(0, count);
  return alignedTable(
    ["layer", "bits", "MSE before", "MSE after", "SQNR dB", "cosine", ""],
    worst.map((layer) => [
      layer.name,
      `W${layer.weightBits ?? "-"}A${layer.activationBits ?? "-"}`,
      layer.mseBefore.toExponential(2),
      layer.mseAfter.toExponential(2),
      decimal(layer.sqnrDb, 1),
      decimal(layer.cosine, 5),
      layer.rolledBack ? "rolled back" : "",
    ]),
  );
}

/**
 * The report as the text of `report.json`. JSON has no NaN or infinity: they become `null`.
 *
 * @param report a report, or several
 * @returns indented JSON with a newline at the end
 */
export function reportJson(report: unknown): string {
  const finite = (_key: string, value: unknown) =>
    typeof value === "number" && !Number.isFinite(value) ? null : value;
  return `${JSON.stringify(report, finite, 2)}\n`;
}

/**
 * A number for a table.
 *
 * @param value the number
 * @param digits behind the point
 * @returns for example `0.64`; `-` where there is none
 */
export function decimal(value: number | null, digits: number): string {
  if (value === null) return "-";
  // No "-0.00".
  return (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits);
}

/**
 * A table for people: first column to the left, the others to the right, a column without heading to the left.
 *
 * @param heading one cell a column
 * @param rows cells, made safe for a terminal
 * @returns lines with two blanks between columns, no newline at the end
 */
export function alignedTable(
  heading: readonly string[],
  rows: readonly (readonly string[])[],
): string {
  const lines = [heading, ...rows].map((line) => line.map(printable));
  const widths = heading.map((_, column) =>
    Math.max(...lines.map((line) => [...line[column] ?? ""].length))
  );
  return lines.map((line) =>
    line.map((cell, column) => {
      const blanks = " ".repeat(Math.max(0, widths[column]! - [...cell].length));
      return column === 0 || heading[column] === "" ? cell + blanks : blanks + cell;
    }).join("  ").trimEnd()
  ).join("\n");
}

/**
 * Text from a file made safe for a terminal: control characters, line ends and direction marks are written as escapes.
 *
 * @param text any text
 * @returns one line without control characters
 */
export function printable(text: string): string {
  return text.replace(
    // deno-lint-ignore no-control-regex
    /[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
    (character) => `\\u{${character.charCodeAt(0).toString(16)}}`,
  );
}
