// MSE calibration: the scale (and, for two-sided data on an affine grid, the zero point) with the least L_p error on the
// histogram, p = 2.4 (BRECQ, QDrop). Scales: max * k / 100, k = 1..100.
import { gridError, type PowerTable, powerTable } from "../grid_error.ts";
import { histogramPoints, type WeightedPoints } from "../histogram.ts";
import { type QScheme, quantRange } from "../scheme.ts";
import type { TensorStatistics } from "../statistics.ts";
import type { Observer, ValueRange } from "./observer.ts";

/** Range = that of the grid with the least L_p error. */
export const mseObserver: Observer = {
  name: "mse",
  needsHistogram: true,
  chooseRange(statistics, scheme, { p = 2.4, candidates = 100 } = {}) {
    const { min, max } = statistics;
    if (min === 0 && max === 0) return { min, max };
    if (!(Number.isInteger(candidates) && candidates >= 1)) {
      throw new RangeError(
        `Cannot search ${candidates} scales: candidates must be an integer >= 1`,
      );
    }
    const search = { ...histogramPoints(statistics.histogram), table: powerTable(p), candidates };
    if (scheme.symmetric) return symmetricRange(statistics, scheme, search);
    const steps = 2 ** scheme.bits - 1 - (scheme.narrowRange ? 1 : 0);
    if (min >= 0) return rangeOf(oneScale(max / steps, 0, steps, search), 0, steps);
    if (max <= 0) return rangeOf(oneScale(-min / steps, steps, 0, search), steps, 0);
    return affineRange(statistics, steps, search);
  },
};

interface Search extends WeightedPoints {
  readonly table: PowerTable;
  readonly candidates: number;
}

function symmetricRange(
  { min, max }: TensorStatistics,
  scheme: QScheme,
  search: Search,
): ValueRange {
  const { quantMin, quantMax } = quantRange({ ...scheme, signed: scheme.signed || min < 0 });
  const scale = oneScale(Math.max(-min, max) / quantMax, -quantMin, quantMax, search);
  // chooseQParams takes the larger end; a one-sided tensor stays one-sided, so that it knows.
  return { min: min >= 0 ? 0 : -scale * quantMax, max: scale * quantMax };
}

/** Best of widest * k / candidates, for a grid of `below` codes below 0 and `above` codes above. */
function oneScale(widest: number, below: number, above: number, search: Search): number {
  let best = widest, bestError = Infinity;
  for (let k = 1; k <= search.candidates; k++) {
    const scale = widest * k / search.candidates;
    const error = errorOf(scale, below, above, search, bestError);
    if (error < bestError) [best, bestError] = [scale, error];
  }
  return best;
}

/**
 * Scale and zero point together. Zero points are tried on a grid of 16 a scale between "only the top is clipped" and
 * "only the bottom is clipped", then one by one around the best: the error is smooth in them.
 */
function affineRange({ min, max }: TensorStatistics, steps: number, search: Search): ValueRange {
  const widest = (max - min) / steps;
  let scale = widest, below = Math.round(-min / widest), bestError = Infinity;
  const attempt = (candidate: number, codesBelow: number) => {
    const error = errorOf(candidate, codesBelow, steps - codesBelow, search, bestError);
    if (error < bestError) [scale, below, bestError] = [candidate, codesBelow, error];
  };
  const stride = Math.max(1, (steps + 1) >> 4);
  for (let k = search.candidates; k >= 1; k--) {
    const candidate = widest * k / search.candidates;
    const most = Math.min(steps, Math.round(-min / candidate));
    const least = Math.max(0, steps - Math.round(max / candidate));
    for (let codesBelow = least; codesBelow < most; codesBelow += stride) {
      attempt(candidate, codesBelow);
    }
    attempt(candidate, most);
  }
  const centre = below;
  for (let shift = 1 - stride; shift < stride; shift++) {
    const codesBelow = centre + shift;
    if (codesBelow >= 0 && codesBelow <= steps) attempt(scale, codesBelow);
  }
  return rangeOf(scale, below, steps - below);
}

function errorOf(
  scale: number,
  below: number,
  above: number,
  { points, weights, table }: Search,
  best: number,
): number {
  return gridError(points, weights, points.length, scale, -below, above, table, best);
}

function rangeOf(scale: number, below: number, above: number): ValueRange {
  return { min: below === 0 ? 0 : -scale * below, max: scale * above };
}
