// The L_p error of a uniform grid on a set of points, sum |x - Q(x)|^p: what the scale searches minimise (p = 2.4 after
// BRECQ, Li et al. 2021). It is their whole cost, so |u|^p is read from a table, and a sum that has passed the best
// error so far is given up.
import { ROUNDING_MAGIC } from "./rounding.ts";

/** Entries a unit. Interpolation is then off by 3e-7 of a mean error at most, alike for every candidate. */
const STEPS = 4096;
/** Where the table ends, in steps of the grid; larger (clipping) errors are rare in candidates worth finishing. */
const TABLE_END = 4;

/** |u|^p on 0 <= u <= 4, for linear interpolation. */
export interface PowerTable {
  readonly p: number;
  readonly values: Float64Array<ArrayBuffer>;
}

/**
 * Tabulates u^p.
 *
 * @param p exponent, > 0
 * @returns the table
 * @throws RangeError when p is not positive
 */
export function powerTable(p: number): PowerTable {
  if (!(p > 0 && Number.isFinite(p))) {
    throw new RangeError(`Cannot search scales by the L_${p} error: p must be > 0`);
  }
  // One entry more than the end, since interpolation reads the next one.
  const values = Float64Array.from(
    { length: TABLE_END * STEPS + 2 },
    (_, i) => (i / STEPS) ** p,
  );
  return { p, values };
}

/**
 * L_p error of the grid scale * {quantMin .. quantMax} (zero point 0).
 *
 * @param points the values
 * @param weights how often each counts; none: once
 * @param count how many of the points to take
 * @param scale step of the grid
 * @param quantMin lowest code
 * @param quantMax highest code
 * @param table from {@linkcode powerTable}
 * @param best the sum is given up once it is larger
 * @returns the error, or Infinity when it was given up
 */
export function gridError(
  points: Float32Array | Float64Array,
  weights: Float64Array | undefined,
  count: number,
  scale: number,
  quantMin: number,
  quantMax: number,
  { p, values }: PowerTable,
  best: number,
): number {
  // Sums are in units of scale^p. The division may round down, and an equal error must not be given up.
  const unit = scale ** p;
  const limit = best / unit * (1 + 1e-12);
  const low = quantMin - 0.5, high = quantMax + 0.5;
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const v = points[i]! / scale;
    let distance: number;
    if (v > high) distance = v - quantMax;
    else if (v < low) distance = quantMin - v;
    else distance = Math.abs(v - (v + ROUNDING_MAGIC - ROUNDING_MAGIC));
    let power: number;
    if (distance <= TABLE_END) {
      const position = distance * STEPS;
      const index = position | 0;
      const below = values[index]!;
      power = below + (position - index) * (values[index + 1]! - below);
    } else power = distance ** p;
    sum += weights === undefined ? power : power * weights[i]!;
    if (sum > limit) return Infinity;
  }
  return sum * unit;
}
