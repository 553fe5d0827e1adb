// Scales and zero points: from a range and a scheme to the numbers a quantizer computes with.
// Formulas: Jacob et al. 2018; the affine range is widened to hold 0, so that zero padding and ReLU zeros are exact.
import { sizeOf } from "../core/nd_array.ts";
import type { ActivationQParams } from "../graph/quantized_graph.ts";
import { roundHalfEven, type ScalarQParams } from "./rounding.ts";
import { type QScheme, quantRange } from "./scheme.ts";

/**
 * Quantizer parameters of a tensor: value = scale * (code - zeroPoint), quantMin <= code <= quantMax. Every array has
 * one element, or one a channel.
 */
export interface QParams {
  readonly scale: Float32Array<ArrayBuffer>;
  readonly zeroPoint: Int32Array<ArrayBuffer>;
  readonly quantMin: Int32Array<ArrayBuffer>;
  readonly quantMax: Int32Array<ArrayBuffer>;
}

/** Smallest and largest value to represent: one element, or one a channel. */
export interface RangeArrays {
  readonly min: ArrayLike<number>;
  readonly max: ArrayLike<number>;
}

/**
 * Smallest scale {@linkcode chooseQParams} gives: float32's epsilon, as in PyTorch. The bias of a layer behind an
 * all-zero activation still fits int32 at this scale.
 */
export const SCALE_FLOOR = 2 ** -23;

/**
 * Scales and zero points that cover a range.
 *
 * Affine: scale = (max - min) / (quantMax - quantMin) with min <= 0 <= max forced, zeroPoint = quantMin -
 * round(min / scale). Symmetric: scale = max(|min|, |max|) / quantMax, zeroPoint = 0; a symmetric unsigned scheme gives
 * a channel with min < 0 signed codes.
 *
 * @param range one element per tensor, or one a channel
 * @param scheme the grid
 * @returns as many parameters as the range has elements
 * @throws RangeError when a range is not finite or max < min
 */
export function chooseQParams(range: RangeArrays, scheme: QScheme): QParams {
  const qparams = emptyQParams(range.min.length);
  for (let c = 0; c < range.min.length; c++) {
    const min = range.min[c]!, max = range.max[c] ?? NaN;
    if (!(Number.isFinite(min) && Number.isFinite(max) && min <= max)) {
      throw new RangeError(
        `Cannot choose a scale for the range [${min}, ${max}] of channel ${c}: it must be finite and ordered`,
      );
    }
    setChannel(
      qparams,
      c,
      scheme.symmetric ? symmetric(min, max, scheme) : affine(min, max, scheme),
    );
  }
  return qparams;
}

/**
 * Parameters of zeros, to be filled with {@linkcode setChannel}.
 *
 * @param channels 1 per tensor, or the number of channels
 * @returns new arrays
 */
export function emptyQParams(channels: number): QParams {
  return {
    scale: new Float32Array(channels),
    zeroPoint: new Int32Array(channels),
    quantMin: new Int32Array(channels),
    quantMax: new Int32Array(channels),
  };
}

/**
 * Writes the parameters of one channel.
 *
 * @param qparams the arrays to write to
 * @param channel index
 * @param values what to write
 */
export function setChannel(qparams: QParams, channel: number, values: ScalarQParams): void {
  qparams.scale[channel] = values.scale;
  qparams.zeroPoint[channel] = values.zeroPoint;
  qparams.quantMin[channel] = values.quantMin;
  qparams.quantMax[channel] = values.quantMax;
}

/**
 * Parameters of one channel.
 *
 * @param qparams of the tensor
 * @param channel index; any when qparams are per tensor
 * @returns its scale, zero point and range
 */
export function channelQParams(qparams: QParams, channel: number): ScalarQParams {
  const c = qparams.scale.length === 1 ? 0 : channel;
  // The caller's channel is below the length of the arrays, see channelLayout.
  return {
    scale: qparams.scale[c]!,
    zeroPoint: qparams.zeroPoint[c]!,
    quantMin: qparams.quantMin[c]!,
    quantMax: qparams.quantMax[c]!,
  };
}

/**
 * Per-tensor parameters as the quantizer of an activation.
 *
 * @param qparams parameters of length 1
 * @param bits bits of the scheme they come from
 * @returns the record that a frozen student holds
 * @throws RangeError when qparams are per channel
 */
export function activationQParams(qparams: QParams, bits: number): ActivationQParams {
  if (qparams.scale.length !== 1) {
    throw new RangeError(
      `Cannot quantize an activation with ${qparams.scale.length} scales: expected 1, for the tensor`,
    );
  }
  return { ...channelQParams(qparams, 0), bits };
}

/** A shape seen as [outer, channels, inner] around one axis. */
export interface ChannelLayout {
  readonly outer: number;
  readonly channels: number;
  readonly inner: number;
}

/**
 * Splits a shape around its channel axis.
 *
 * @param shape sizes
 * @param axis the axis of the channels; -1 takes the whole tensor as one channel
 * @param parameters how many parameters there are, if they have to fit: 1 or the channel count
 * @returns channel c holds the elements [(o * channels + c) * inner, + inner) for each o < outer
 * @throws RangeError when the shape has no such axis or the parameters do not fit it
 */
export function channelLayout(
  shape: readonly number[],
  axis: number,
  parameters = 1,
): ChannelLayout {
  if (!(Number.isInteger(axis) && axis >= -1 && axis < shape.length)) {
    throw new RangeError(
      `Cannot quantize shape [${shape.join(", ")}] along axis ${axis}: expected -1..${
        shape.length - 1
      }`,
    );
  }
  const channels = axis === -1 ? 1 : shape[axis]!;
  if (parameters !== 1 && parameters !== channels) {
    throw new RangeError(
      `Cannot quantize shape [${
        shape.join(", ")
      }] along axis ${axis} with ${parameters} scales: expected 1 or ${channels}`,
    );
  }
  if (axis === -1) return { outer: 1, channels, inner: sizeOf(shape) };
  return { outer: sizeOf(shape.slice(0, axis)), channels, inner: sizeOf(shape.slice(axis + 1)) };
}

function affine(min: number, max: number, scheme: QScheme): ScalarQParams {
  const { quantMin, quantMax } = quantRange(scheme);
  const low = Math.min(min, 0);
  const scale = flooredScale((Math.max(max, 0) - low) / (quantMax - quantMin));
  const zeroPoint = quantMin - roundHalfEven(low / scale);
  return { scale, zeroPoint, quantMin, quantMax };
}

function symmetric(min: number, max: number, scheme: QScheme): ScalarQParams {
  const signed = scheme.signed || min < 0;
  const { quantMin, quantMax } = quantRange({ ...scheme, signed });
  const scale = flooredScale(Math.max(Math.abs(min), Math.abs(max)) / quantMax);
  return { scale, zeroPoint: 0, quantMin, quantMax };
}

/** The zero point is computed from the scale that is stored, so the floor and the rounding to float32 come first. */
function flooredScale(scale: number): number {
  return Math.fround(Math.max(scale, SCALE_FLOOR));
}
