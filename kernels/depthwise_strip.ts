// Strips: how a depthwise kernel for CPU adapters walks over an image. An invocation owns 4 channels of `width`
// neighbouring columns and goes down over `height` rows, so that it loads every input row once and every weight once
// (loads are the dear part there). This file says which input rows and columns a strip meets, and where they may lie
// outside the image; the texts are in depthwise_conv2d_software and depthwise_conv2d_weight_software.
import type { Conv2dSpec } from "./conv2d_plan.ts";
import { range, type Target } from "./kernel.ts";

/** Part of the output that an invocation owns, in logical positions. */
export interface Strip {
  /** Neighbouring columns. */
  readonly width: number;
  /** Rows, one after another. */
  readonly height: number;
}

/** Filters with more taps do not fit into registers. */
const LARGEST_FILTER = 25;

/** Workgroup size when the device has no subgroups. */
const LANES_WITHOUT_SUBGROUPS = 8;

/** Workgroups that keep the processors evenly busy. */
const WORKGROUPS = 32;

/** Cycles on lavapipe, roughly: of a load and a store of 8 vec4, a product, and a value carried round a loop. */
export const CYCLES = { load: 65, store: 100, product: 4, carry: 2 } as const;

/** One axis of what a strip reads: output position p reads the input at p * step + each of the offsets. */
export interface StripAxis {
  readonly offsets: readonly number[];
  readonly step: number;
  /** Output positions. */
  readonly positions: number;
  readonly inputSize: number;
}

/** Input offset and the positions, counted from the strip's or row's first, that read it with one of their own. */
export interface Use {
  /** Relative to the first position's input. */
  readonly offset: number;
  /** Position, and which of its offsets that is. */
  readonly by: readonly { readonly position: number; readonly offset: number }[];
}

/** Whether a filter is small enough for strips. */
export function fitsStrips({ kernelHeight, kernelWidth }: Conv2dSpec): boolean {
  return kernelHeight * kernelWidth <= LARGEST_FILTER;
}

/** Workgroup size of strips: one SIMD group, so that few strips still keep all processors busy. */
export function lanesOf(target: Target): number {
  return target.subgroupSize || LANES_WITHOUT_SUBGROUPS;
}

/** Workgroups that take as long as these, when the processors are evenly busy. */
export function balanced(workgroups: number): number {
  return Math.max(workgroups, WORKGROUPS / 2) * (workgroups < WORKGROUPS ? 1.3 : 1);
}

/** Input columns of `width` neighbouring positions, from left to right. */
export function columnUses({ offsets, step }: StripAxis, width: number): Use[] {
  const uses = new Map<number, { position: number; offset: number }[]>();
  for (const position of range(width)) {
    for (const offset of offsets) {
      const at = position * step + offset;
      uses.set(at, [...uses.get(at) ?? [], { position, offset }]);
    }
  }
  return [...uses].sort(([a], [b]) => a - b).map(([offset, by]) => ({ offset, by }));
}

/**
 * Input rows of a strip, from top to bottom. Those `before` are read before the first position, those `new` with every
 * position; they serve the position itself and later ones, so `by` counts positions from that one on.
 */
export function rowUses({ offsets, step }: StripAxis): { before: Use[]; new: Use[] } {
  const low = Math.min(...offsets), high = Math.max(...offsets);
  const uses = range(offsets.length === 0 ? 0 : high - low + 1).map((i): Use => {
    const by = offsets.filter((offset) => offset <= low + i && (low + i - offset) % step === 0)
      .map((offset) => ({ position: (low + i - offset) / step, offset }));
    return { offset: low + i, by };
  }).filter(({ by }) => by.length > 0);
  return {
    before: uses.filter(({ offset }) => offset <= high - step),
    new: uses.filter(({ offset }) => offset > high - step),
  };
}

/** Where input `start * step + offset` lies, over the starts 0, size, 2 * size, ... of strips (or rows, size 1). */
export function whereabouts(
  { step, positions, inputSize }: StripAxis,
  size: number,
  offset: number,
): "inside" | "outside" | "either" {
  const last = (Math.ceil(positions / size) - 1) * size * step + offset;
  if (offset >= 0 && last < inputSize) return "inside";
  return last < 0 || offset >= inputSize ? "outside" : "either";
}

/**
 * Sizes of strips worth comparing.
 *
 * @param rows positions along a column
 * @param columns positions along a row
 * @param widest limit on the width
 * @returns strips of all widths and of equal heights
 */
export function stripSizes(rows: number, columns: number, widest: number): Strip[] {
  const heights = new Set(range(Math.min(rows, 32)).map((i) => Math.ceil(rows / (i + 1))));
  // Among equals the widest wins: its addresses are cheaper.
  return range(Math.max(1, Math.min(widest, columns))).reverse().flatMap((i) =>
    [...heights].map((height) => ({ width: i + 1, height }))
  );
}

/** A row of an array [batch, height, width, vectors] of vec4f, of image n and 4 channels. */
export interface RowSource {
  readonly array: string;
  readonly height: number;
  readonly width: number;
  readonly vectors: number;
  /** Name of the row: prefix of what is loaded. */
  readonly name: string;
  /** WGSL i32 expression: which row. */
  readonly row: string;
  /** Whether it may lie outside; what is loaded is then zero. */
  readonly checked: boolean;
  /** Whether what is loaded changes later on. */
  readonly mutable?: boolean;
}

/** WGSL statements that must come before those of {@linkcode loadColumn}. */
export function openRow({ name, row, checked, height, width }: RowSource): string[] {
  const line = (at: string) => `let ${name}_line = (n * ${height} + ${at}) * ${width};`;
  if (!checked) return [line(`(${row})`)];
  return [
    `let ${name}_row = ${row};`,
    `let ${name}_inside = u32(${name}_row) < ${height}u;`,
    line(`select(0, ${name}_row, ${name}_inside)`),
  ];
}

/**
 * WGSL that loads one column of a row.
 *
 * @param source The row.
 * @param i Number of the column: the vec4f is named `<name of the row>_<i>`.
 * @param column WGSL i32 expression: which column.
 * @param checked Whether it may lie outside.
 * @returns A statement.
 */
export function loadColumn(source: RowSource, i: number, column: string, checked: boolean): string {
  const { array, name, width, vectors } = source;
  const inside = `u32(${column}) < ${width}u`;
  const at = checked ? `select(0, ${column}, ${inside})` : column;
  const load = `${array}[u32(${name}_line + ${at}) * ${vectors}u + channel]`;
  const mask = [source.checked ? `${name}_inside` : "", checked ? inside : ""].filter(Boolean);
  const value = mask.length > 0 ? `select(vec4f(), ${load}, ${mask.join(" && ")})` : load;
  return `${source.mutable ? "var" : "let"} ${name}_${i} = ${value};`;
}
