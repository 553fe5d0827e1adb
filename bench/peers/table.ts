// The table of ratios: under each case stilla and its peers, and how much longer each took than stilla.
import type { Row } from "../harness.ts";

/** What one peer found out, in the order of its cases. */
export interface PeerResult {
  /** Name and version. */
  readonly peer: string;
  readonly rows: readonly Row[];
  /** Cases without figures, with the reason. */
  readonly missing: ReadonlyMap<string, string>;
}

const HEADING = ["case", "peer", "time", "rate", "time / stilla's"];
/** Columns of words; the others are numbers, aligned to the right. */
const WORDS = 2;

/**
 * Makes the table.
 *
 * @param results of stilla, then of its peers
 * @returns Markdown; a ratio above 1 says that stilla is faster
 */
export function peerTable([own, ...others]: readonly [PeerResult, ...PeerResult[]]): string {
  const rows: string[][] = [];
  for (const name of new Set(own.rows.map((row) => row.case))) {
    const time = figure(own, name, "time");
    rows.push([name, own.peer, shown(time), besidesTime(own, name), ""]);
    for (const result of others) {
      const theirs = figure(result, name, "time");
      if (theirs === undefined && !result.missing.has(name)) continue;
      const ratio = time && theirs ? `${significant(theirs.median / time.median)} x` : "";
      rows.push(["", result.peer, shown(theirs), besidesTime(result, name), ratio]);
    }
  }
  const widths = HEADING.map((heading, column) =>
    Math.max(heading.length, ...rows.map((row) => row[column]!.length))
  );
  const line = (cells: readonly string[]) =>
    `| ${
      cells.map((cell, column) => {
        const width = widths[column]!;
        return column < WORDS ? cell.padEnd(width) : cell.padStart(width);
      }).join(" | ")
    } |`;
  const rule = widths.map((width, column) =>
    column < WORDS ? "-".repeat(width) : `${"-".repeat(width - 1)}:`
  );
  return [line(HEADING), line(rule), ...rows.map(line)].join("\n");
}

/** Reasons for the gaps in the table, one a line. */
export function missingLines(results: readonly PeerResult[]): string[] {
  return results.flatMap(({ peer, missing }) =>
    Array.from(missing, ([name, reason]) => `${peer}: ${name}: ${reason}`)
  );
}

function figure({ rows }: PeerResult, name: string, metric: string): Row | undefined {
  return rows.find((row) => row.case === name && row.metric === metric);
}

function shown(row: Row | undefined): string {
  return row === undefined ? "none" : `${significant(row.median)} ${row.unit}`;
}

/** What else is known of a case: how fast, or how good the result. */
function besidesTime(result: PeerResult, name: string): string {
  const row = figure(result, name, "rate") ?? figure(result, name, "top-1");
  return row === undefined ? "" : shown(row);
}

/** Three significant digits, never an exponent. */
function significant(value: number): string {
  const digits = Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Number.isFinite(digits) ? Math.min(4, Math.max(0, 2 - digits)) : 0);
}
