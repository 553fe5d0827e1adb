// Scales and grids of weights, channel by channel: the L_2.4 search that the default method starts from, or min-max.
// Codes are stored as int8 whatever the bits, so below 8 bits the grid may lie anywhere around 0: zero points are always
// 0 and an offset grid is its quantMin..quantMax, e.g. {-1, 0, 1, 2} ("flip") or {-3 .. 0} ("offset").
import type { NdArray } from "../core/nd_array.ts";
import { gridError, type PowerTable, powerTable } from "./grid_error.ts";
import { channelLayout, emptyQParams, type QParams, setChannel } from "./qparams.ts";
import { checkBits } from "./scheme.ts";

/** Channels of smaller weights are searched as if their range were this, so that no scale vanishes. */
const EXTENT_FLOOR = 1e-8;

/** Which grids a channel may choose from. */
export type WeightGrid = "symmetric" | "flip" | "offset";

/** How the weights of a layer are searched. */
export interface WeightSearchOptions {
  /** 2..8. */
  readonly bits: number;
  /**
   * "symmetric": -2^(b-1) .. 2^(b-1)-1. "flip": that or its mirror image (below 8 bits; 128 is no int8). "offset": any
   * 2^b neighbouring codes that hold 0 (up to 4 bits, otherwise as symmetric). Default "flip".
   */
  readonly grid?: WeightGrid;
  /** Least L_p error, or the smallest scale that clips nothing. Default "mse". */
  readonly observer?: "mse" | "minmax";
  /** Exponent of the error; default 2.4. */
  readonly p?: number;
  /** How much the error of each weight counts, in the order of the weights; default 1. */
  readonly importance?: Float64Array;
  /** Scales tried a grid, evenly spaced up to 1.1 times the full range; default 80. */
  readonly candidates?: number;
}

/**
 * Chooses scale and grid of each output channel.
 *
 * A channel of zeros takes the mean scale of the others (1 if there are none): any scale represents it, but it must not
 * shrink the scale of the layer's bias to nothing.
 *
 * @param weight weights
 * @param axis axis of the output channels; -1 for one scale in all
 * @param options bits, grid and search
 * @returns one set of parameters a channel; every zero point is 0
 * @throws RangeError when the options are out of range or a channel holds NaN or Infinity
 */
export function searchWeightQParams(
  weight: NdArray<"float32">,
  axis: number,
  { bits, grid = "flip", observer = "mse", p = 2.4, candidates = 80, importance }:
    WeightSearchOptions,
): QParams {
  checkBits(bits);
  if (!(Number.isInteger(candidates) && candidates >= 1)) {
    throw new RangeError(`Cannot search ${candidates} scales: candidates must be an integer >= 1`);
  }
  const { outer, channels, inner } = channelLayout(weight.shape, axis);
  const table = powerTable(p);
  const qparams = emptyQParams(channels);
  const points = new Float32Array(outer * inner);
  const weights = importance && new Float64Array(outer * inner);
  const dead: number[] = [];
  let start = candidates;
  for (let c = 0; c < channels; c++) {
    for (let o = 0; o < outer; o++) {
      const from = (o * channels + c) * inner;
      points.set(weight.data.subarray(from, from + inner), o * inner);
      if (weights) weights.set(importance.subarray(from, from + inner), o * inner);
    }
    const extent = extentOf(points, c);
    if (extent.min === 0 && extent.max === 0) dead.push(c);
    const choice = observer === "minmax"
      ? coverAll(extent, bits, grid)
      : search(points, weights, extent, bits, grid, table, candidates, start);
    start = choice.candidate;
    const { scale, offset } = choice;
    setChannel(qparams, c, {
      scale,
      zeroPoint: 0,
      quantMin: -offset,
      quantMax: 2 ** bits - 1 - offset,
    });
  }
  fillDead(qparams, dead, bits);
  return qparams;
}

interface Extent {
  readonly min: number;
  readonly max: number;
}

interface Choice {
  readonly scale: number;
  /** Number of codes below 0. */
  readonly offset: number;
  /** Which scale it was, 1 .. candidates; neighbouring channels choose alike, so the next search starts there. */
  readonly candidate: number;
}

/**
 * Tries every scale on every grid. Of equal errors (an end of the grid that no weight needs) the first wins, in the
 * order of offsetsOf and from small scales to large.
 */
function search(
  points: Float32Array,
  weights: Float64Array | undefined,
  { min, max }: Extent,
  bits: number,
  grid: WeightGrid,
  table: PowerTable,
  candidates: number,
  start: number,
): Choice {
  const levels = 2 ** bits;
  const widest = grid === "offset" && bits <= 4
    ? Math.max(Math.max(max, 0) - Math.min(min, 0), EXTENT_FLOOR) / (levels - 1)
    : Math.max(-min, max, EXTENT_FLOOR) / (levels / 2 - 0.5);
  let best: Choice = { scale: widest, offset: levels / 2, candidate: candidates };
  let bestError = Infinity;
  // The likely winner is tried ahead of its turn, so that most of the others are given up early. An equal one whose
  // turn comes before still replaces it.
  let ahead = false;
  const attempt = (offset: number, candidate: number) => {
    const scale = Math.fround(widest * (1.1 * candidate / candidates));
    const high = levels - 1 - offset;
    const error = gridError(
      points,
      weights,
      points.length,
      scale,
      -offset,
      high,
      table,
      bestError,
    );
    if (error < bestError || (ahead && error === bestError)) {
      best = { scale, offset, candidate };
      bestError = error;
      ahead = false;
    }
  };
  attempt(levels / 2, start);
  ahead = true;
  for (const offset of offsetsOf(bits, grid)) {
    for (let candidate = 1; candidate <= candidates; candidate++) {
      attempt(offset, candidate);
      if (offset === levels / 2 && candidate === start) ahead = false;
    }
  }
  return best;
}

/** Smallest scale at which no weight is clipped; on the symmetric grid max |w| / quantMax, as is usual. */
function coverAll({ min, max }: Extent, bits: number, grid: WeightGrid): Choice {
  const levels = 2 ** bits;
  let best: Choice = { scale: Infinity, offset: levels / 2, candidate: 1 };
  const offsets = offsetsOf(bits, grid);
  if (offsets.length === 1) {
    return { ...best, scale: Math.max(-min, max, EXTENT_FLOOR) / (levels / 2 - 1) };
  }
  for (const offset of offsets) {
    const high = levels - 1 - offset;
    const scale = Math.max(side(-min, offset), side(max, high), EXTENT_FLOOR / levels);
    if (scale < best.scale) best = { ...best, scale, offset };
  }
  return best;
}

/** Scale that `codes` steps need to reach `value`. */
function side(value: number, codes: number): number {
  if (value <= 0) return 0;
  return codes === 0 ? Infinity : value / codes;
}

/** Numbers of codes below 0 that a grid allows. */
function offsetsOf(bits: number, grid: WeightGrid): readonly number[] {
  const half = 2 ** (bits - 1);
  if (grid === "flip" && bits < 8) return [half, half - 1];
  if (grid === "offset" && bits <= 4) return Array.from({ length: 2 * half }, (_, i) => i);
  return [half];
}

function extentOf(points: Float32Array, channel: number): Extent {
  let min = Infinity, max = -Infinity;
  for (const value of points) {
    if (!Number.isFinite(value)) {
      throw new RangeError(`Cannot quantize weights: channel ${channel} holds ${value}`);
    }
    if (value < min) min = value;
    if (value > max) max = value;
  }
  return { min, max };
}

function fillDead(qparams: QParams, dead: readonly number[], bits: number): void {
  const live = qparams.scale.length - dead.length;
  let sum = 0;
  qparams.scale.forEach((scale, c) => sum += dead.includes(c) ? 0 : scale);
  const scale = live === 0 ? 1 : sum / live;
  const half = 2 ** (bits - 1);
  for (const c of dead) {
    setChannel(qparams, c, { scale, zeroPoint: 0, quantMin: -half, quantMax: half - 1 });
  }
}
