// From int32 accumulators to the codes of the next activation: in float32 as the fake-quantized simulation and ONNX QDQ
// do, or with an integer multiplier and a shift as integer-only devices do (Jacob et al. 2018, section 2.2).
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { channelLayout } from "./qparams.ts";
import { dequantizeFloat32, quantizeFloat32, type ScalarQParams } from "./rounding.ts";

/** Accumulators and what they stand for: value = scale * accumulator. */
export interface Accumulators {
  readonly accumulators: NdArray<"int32">;
  /** fround(inputScale * weightScale), the scale of the bias: [channels] or [1]. */
  readonly scale: Float32Array;
  /** Axis of the channels: 1 of a convolution, the last of a product of matrices. */
  readonly axis: number;
}

/** What follows the layer. */
export interface RequantizeOptions {
  /** Sets codes below the zero point to it, which is ReLU. Default false. */
  readonly relu?: boolean;
}

/** A real multiplier as mantissa * 2^-shift, with 2^30 <= mantissa < 2^31, or both 0. */
export interface FixedPointMultiplier {
  readonly mantissa: number;
  readonly shift: number;
}

/**
 * Codes by way of float32: dequantize, then QuantizeLinear.
 *
 * @param input accumulators and their scales
 * @param output quantizer of the next activation
 * @param options what follows the layer
 * @returns its codes, in the shape of the accumulators
 */
export function requantize(
  { accumulators, scale, axis }: Accumulators,
  output: ScalarQParams,
  { relu = false }: RequantizeOptions = {},
): NdArray<"int32"> {
  const range = relu ? aboveZero(output) : output;
  return mapChannels(accumulators, axis, scale.length, (channel) => {
    const step = { scale: scale[scale.length === 1 ? 0 : channel]!, zeroPoint: 0 };
    return (accumulator) => quantizeFloat32(dequantizeFloat32(accumulator, step), range);
  });
}

/**
 * Codes by integer arithmetic: round(accumulator * mantissa / 2^shift) + zeroPoint, saturated. The product has 62 bits
 * and is rounded once, half to even (gemmlowp rounds twice, halves away from zero, and may differ by one there).
 *
 * @param input accumulators and their scales
 * @param output quantizer of the next activation
 * @param options what follows the layer
 * @returns its codes, in the shape of the accumulators
 */
export function requantizeFixedPoint(
  { accumulators, scale, axis }: Accumulators,
  output: ScalarQParams,
  { relu = false }: RequantizeOptions = {},
): NdArray<"int32"> {
  const { quantMin, quantMax } = relu ? aboveZero(output) : output;
  return mapChannels(accumulators, axis, scale.length, (channel) => {
    const step = scale[scale.length === 1 ? 0 : channel]!;
    const multiplier = fixedPointMultiplier(step / output.scale);
    return (accumulator) => {
      const code = multiplyFixedPoint(accumulator, multiplier) + output.zeroPoint;
      return code < quantMin ? quantMin : code > quantMax ? quantMax : code;
    };
  });
}

/**
 * Splits a multiplier into a 31-bit mantissa and a shift.
 *
 * @param multiplier inputScale * weightScale / outputScale
 * @returns mantissa * 2^-shift, within 2^-31 of the multiplier
 * @throws RangeError when it is negative, not finite, or 2^31 and more
 */
export function fixedPointMultiplier(multiplier: number): FixedPointMultiplier {
  if (!(multiplier >= 0 && multiplier < 2 ** 31)) {
    throw new RangeError(
      `Cannot make a fixed-point multiplier of ${multiplier}: expected a number in [0, 2^31)`,
    );
  }
  if (multiplier === 0) return { mantissa: 0, shift: 0 };
  let shift = 30 - Math.floor(Math.log2(multiplier));
  let mantissa = Math.round(multiplier * 2 ** shift);
  // log2 may be off by one next to a power of two, and rounding may reach 2^31.
  if (mantissa >= 2 ** 31) mantissa = Math.round(multiplier * 2 ** --shift);
  if (mantissa < 2 ** 30) mantissa = Math.round(multiplier * 2 ** ++shift);
  return { mantissa, shift };
}

/**
 * Multiplies an int32 by a fixed-point multiplier, exactly, and rounds once.
 *
 * @param value int32
 * @param multiplier from {@linkcode fixedPointMultiplier}
 * @returns round(value * mantissa / 2^shift), halves to even
 */
export function multiplyFixedPoint(
  value: number,
  { mantissa, shift }: FixedPointMultiplier,
): number {
  const product = BigInt(value) * BigInt(mantissa);
  if (shift <= 0) return Number(product << BigInt(-shift));
  const bits = BigInt(shift);
  // An arithmetic shift floors; the bits shifted out are then in [0, 2^shift).
  const down = product >> bits;
  const twice = (product - (down << bits)) * 2n;
  const one = 1n << bits;
  const up = twice > one || (twice === one && (down & 1n) === 1n);
  return Number(up ? down + 1n : down);
}

/** A quantizer whose codes end at the zero point. */
function aboveZero(output: ScalarQParams): ScalarQParams {
  return { ...output, quantMin: Math.max(output.quantMin, output.zeroPoint) };
}

function mapChannels(
  accumulators: NdArray<"int32">,
  axis: number,
  scales: number,
  mapperOf: (channel: number) => (accumulator: number) => number,
): NdArray<"int32"> {
  const { outer, channels, inner } = channelLayout(accumulators.shape, axis, scales);
  const codes = new Int32Array(accumulators.data.length);
  for (let c = 0; c < channels; c++) {
    const map = mapperOf(c);
    for (let o = 0; o < outer; o++) {
      const start = (o * channels + c) * inner;
      for (let i = start; i < start + inner; i++) codes[i] = map(accumulators.data[i]!);
    }
  }
  return ndArray("int32", accumulators.shape, codes);
}
