// Rounding with error compensation (GPTQ, Frantar et al. 2023; OBQ, Frantar and Alistarh 2022): the weights of an output
// channel are rounded one after another, and those still to come move so that the layer's output changes least,
// min over q of (q - w) H (q - w)^T with H = X^T X of the layer's inputs. With the Cholesky factor H = L L^T and weights
// rounded from the last to the first that is back substitution with rounding in between: the sum of squares is
// sum over j of (sum over i >= j of L_ij (q_i - w_i))^2, and weight j takes the value that makes its own term zero.
// GPTQ computes the same numbers from the Cholesky factor of the inverse.
import { ndArray } from "../core/nd_array.ts";
import { channelLayout, channelQParams, type QParams } from "./qparams.ts";
import { quantizeFloat32 } from "./rounding.ts";
import type { LayerState } from "./student.ts";

/** How rounding errors are compensated. */
export interface CompensationOptions {
  /** Part of the mean diagonal of H that is added to it; default 0.01. */
  readonly damping?: number;
  /** "diagonal": weights whose inputs are largest are rounded first, while many others can answer. Default. */
  readonly order?: "diagonal" | "natural";
}

/** A damped H, factored in the order of rounding. */
export interface Factor {
  /** Which weight each row stands for; the last row is rounded first. */
  readonly order: Uint32Array<ArrayBuffer>;
  /** [K, K], row-major: L with L L^T = H in that order. */
  readonly lower: Float64Array<ArrayBuffer>;
}

/**
 * Moves the latent weights of a layer to what each was when its turn came to be rounded: frozen, they give GPTQ's codes.
 *
 * @param layer the layer; its scales and grids stay
 * @param hessians [groups, K, K]: X^T X for each group of output channels, up to a factor; K in the order of the weight
 * @param options damping and order
 * @returns the layer with other latent weights
 */
export function compensateLayer(
  layer: LayerState,
  hessians: Float64Array,
  options: CompensationOptions = {},
): LayerState {
  const { latent, axis, logScale, quantMin, quantMax, groups } = layer;
  const { outer, channels, inner } = channelLayout(latent.shape, axis);
  const size = outer * inner;
  const channelsPerGroup = channels * size ** 2 / hessians.length;
  const zeroPoint = new Int32Array(logScale.length);
  const qparams: QParams = { scale: logScale.map(Math.exp), zeroPoint, quantMin, quantMax };
  const data = new Float32Array(latent.data.length);
  const row = new Float64Array(size);
  let factor: Factor | undefined;
  for (let c = 0; c < channels; c++) {
    if (c % channelsPerGroup === 0) {
      const first = c / channelsPerGroup * size ** 2;
      factor = factorHessian(hessians.subarray(first, first + size ** 2), options);
    }
    const at = (k: number) => (Math.floor(k / inner) * channels + c) * inner + k % inner;
    for (let k = 0; k < size; k++) row[k] = latent.data[at(k)]!;
    const channel = channelQParams(qparams, c);
    // As freezeLayer will round the float32 that is kept.
    const round = (value: number, k: number) => {
      const grid = groups ? channelQParams(qparams, groups.index[at(k)]!) : channel;
      return quantizeFloat32(Math.fround(value), grid) * grid.scale;
    };
    compensateRow(row, round, factor!).forEach((value, k) => data[at(k)] = value);
  }
  return { ...layer, latent: ndArray("float32", latent.shape, data) };
}

/**
 * Rounds one output channel.
 *
 * @param row [K] weights
 * @param round what becomes of a value, the k-th of the row
 * @param factor of the channel's H
 * @returns [K]: the value of each weight right before it was rounded
 */
export function compensateRow(
  row: Float64Array,
  round: (value: number, k: number) => number,
  { order, lower }: Factor,
): Float64Array<ArrayBuffer> {
  const size = order.length;
  const values = new Float64Array(size);
  /** [j]: sum over the i already rounded of L_ij (q_i - w_i). */
  const debts = new Float64Array(size);
  for (let i = size - 1; i >= 0; i--) {
    const at = i * size, k = order[i]!;
    const value = row[k]! - debts[i]! / lower[at + i]!;
    const error = round(value, k) - row[k]!;
    values[k] = value;
    for (let j = 0; j < i; j++) debts[j]! += lower[at + j]! * error;
  }
  return values;
}

/**
 * Damps and factors an H; where float32 sums have left it indefinite, more damping is tried.
 *
 * @param hessian [K, K]
 * @param options damping and order
 * @returns the factor
 * @throws RangeError when H is not finite
 */
export function factorHessian(
  hessian: Float64Array,
  { damping = 0.01, order = "diagonal" }: CompensationOptions = {},
): Factor {
  const size = Math.sqrt(hessian.length);
  const diagonal = Float64Array.from({ length: size }, (_, k) => hessian[k * size + k]!);
  const mean = diagonal.reduce((sum, value) => sum + value, 0) / size;
  if (!Number.isFinite(mean)) {
    throw new RangeError(`Cannot compensate rounding: the mean square of the inputs is ${mean}`);
  }
  // Backwards, as the last is rounded first.
  const rows = Uint32Array.from(diagonal.keys()).reverse();
  if (order === "diagonal") rows.sort((a, b) => diagonal[a]! - diagonal[b]! || b - a);
  const lower = new Float64Array(size * size);
  // A layer that only ever sees zeros has no H; any multiple of the identity rounds to nearest.
  for (let added = mean > 0 ? damping * mean : 1;; added = Math.max(10 * added, 1e-8 * mean)) {
    for (let i = 0; i < size; i++) {
      for (let j = 0; j <= i; j++) lower[i * size + j] = hessian[rows[i]! * size + rows[j]!]!;
      lower[i * size + i]! += added;
    }
    if (choleskyInPlace(lower, size)) return { order: rows, lower };
  }
}

/** Rows that are factored together, so that those above are read once for all of them. */
const BLOCK = 32;

/** Replaces the lower half of a symmetric matrix by its Cholesky factor; false where it is not positive definite. */
function choleskyInPlace(lower: Float64Array, size: number): boolean {
  for (let first = 0; first < size; first += BLOCK) {
    const end = Math.min(first + BLOCK, size);
    for (let j = 0; j < end; j++) {
      for (let i = Math.max(first, j); i < end; i++) {
        const rest = lower[i * size + j]! - dot(lower, i * size, j * size, j);
        if (i > j) lower[i * size + j] = rest / lower[j * size + j]!;
        else if (rest > 0) lower[i * size + j] = Math.sqrt(rest);
        else return false;
      }
    }
  }
  return true;
}

/** Product of two rows; four sums, since each addition waits for the one before. */
function dot(matrix: Float64Array, a: number, b: number, length: number): number {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0, k = 0;
  for (; k + 3 < length; k += 4) {
    s0 += matrix[a + k]! * matrix[b + k]!;
    s1 += matrix[a + k + 1]! * matrix[b + k + 1]!;
    s2 += matrix[a + k + 2]! * matrix[b + k + 2]!;
    s3 += matrix[a + k + 3]! * matrix[b + k + 3]!;
  }
  for (; k < length; k++) s0 += matrix[a + k]! * matrix[b + k]!;
  return (s0 + s1) + (s2 + s3);
}
