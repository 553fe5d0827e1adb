// Thresholds of activations that are quantized as in N2UQ (Liu et al. 2022): a value has the code quantMin plus the number
// of thresholds it reaches. They lie halfway between knots, at which the ramp that stands for the steps in training bends
// (kernels/threshold_quantize.ts).
import { GRID_SIZE, KNOTS, MOST_THRESHOLDS, THRESHOLDS } from "../../kernels/threshold_quantize.ts";
import type { ActivationQParams } from "../graph/quantized_graph.ts";
import type { ScalarQParams } from "./rounding.ts";

/** Bits of the widest grid whose thresholds can be learned. */
export const MOST_THRESHOLD_BITS = Math.log2(MOST_THRESHOLDS + 1);

/**
 * Knots of a uniform grid: its values.
 *
 * @param qparams the grid
 * @returns [quantMax - quantMin + 1]
 */
export function uniformKnots(
  { scale, zeroPoint, quantMin, quantMax }: ScalarQParams,
): Float32Array<ArrayBuffer> {
  return Float32Array.from(
    { length: quantMax - quantMin + 1 },
    (_, i) => (quantMin + i - zeroPoint) * scale,
  );
}

/**
 * Thresholds halfway between knots, as the GPU makes them.
 *
 * @param knots rising
 * @returns one fewer
 */
export function thresholdsBetween(knots: Float32Array): Float32Array<ArrayBuffer> {
  return Float32Array.from(
    { length: knots.length - 1 },
    (_, i) => 0.5 * Math.fround(knots[i]! + knots[i + 1]!),
  );
}

/**
 * Nearest grid value by thresholds, in float32 arithmetic.
 *
 * @param value what is quantized
 * @param qparams grid with its thresholds
 * @returns scale * (code - zeroPoint)
 */
export function quantizeByThresholds(
  value: number,
  { scale, zeroPoint, quantMin }: Pick<ScalarQParams, "scale" | "zeroPoint" | "quantMin">,
  thresholds: Float32Array,
): number {
  const reached = thresholds.reduce((count, threshold) => count + (value >= threshold ? 1 : 0), 0);
  return Math.fround(Math.fround(scale) * (quantMin + reached - zeroPoint));
}

/**
 * What the kernels bind as `grid`.
 *
 * @param qparams grid with its thresholds
 * @param knots where training needs them
 * @returns [GRID_SIZE]
 */
export function thresholdGrid(
  { scale, zeroPoint, quantMin, quantMax, thresholds = new Float32Array() }: ActivationQParams,
  knots: Float32Array = new Float32Array(),
): Float32Array<ArrayBuffer> {
  const grid = new Float32Array(GRID_SIZE);
  grid.set([scale, zeroPoint, quantMin, quantMax]);
  grid.set(knots, KNOTS);
  grid.set(thresholds, THRESHOLDS);
  return grid;
}
