// From trained float parameters to the integers that are exported: weights as int8 codes with the batch-norm multiplier
// folded into their scales, biases as int32 codes at scale input * weight (Jacob et al. 2018).
import { type NdArray, ndArray } from "../core/nd_array.ts";
import type { QTensor } from "../graph/quantized_graph.ts";
import { channelLayout, channelQParams, type QParams } from "./qparams.ts";
import {
  dequantizeFloat32,
  quantizeFloat32,
  roundHalfEven,
  roundToOdd,
  type ScalarQParams,
} from "./rounding.ts";
import { checkBits } from "./scheme.ts";

const INT32_MAX = 2147483647;
/** Scale of a channel without any other channel to copy from; codes are 0, and a bias is cut to 1/256 of an input step. */
const LONELY_SCALE = 2 ** -8;

/** A weight to be frozen. */
export interface FreezeWeightOptions {
  /** Trained float weights, in the unit of `qparams.scale`. */
  readonly latent: NdArray<"float32">;
  /** Zero points must be 0, as those of searchWeightQParams are. */
  readonly qparams: QParams;
  /** Axis of the output channels. */
  readonly axis: number;
  /** 2..8. */
  readonly bits: number;
  /** Whether weights other than 0 take odd codes only (tanh_weights.ts); default false. */
  readonly oddCodes?: boolean;
  /** [channels]: what a folded batch norm multiplies the channel by; may be negative or 0. None: 1. */
  readonly multiplier?: Float64Array;
  /**
   * [channels]: no scale becomes smaller than this (see {@linkcode smallestWeightScale}); a channel that would is
   * rounded again on the coarser grid. None: 0.
   */
  readonly smallestScale?: Float64Array;
}

/**
 * Rounds trained weights to int8 codes.
 *
 * The multiplier goes into the scale, so folding changes no code; where it is negative the codes are mirrored instead,
 * since scales are positive (-128 becomes 127). A channel whose multiplier is 0 gets codes 0.
 *
 * @param options the weights, their grid and the multiplier
 * @returns codes, scales > 0, zero points 0
 * @throws RangeError when the grid does not fit int8, a zero point is not 0, or a number is not finite
 */
export function freezeWeight(
  { latent, qparams, axis, bits, oddCodes = false, multiplier, smallestScale }: FreezeWeightOptions,
): QTensor {
  checkBits(bits);
  const { outer, channels, inner } = channelLayout(latent.shape, axis, qparams.scale.length);
  checkLength("multiplier", multiplier, channels);
  checkLength("smallestScale", smallestScale, channels);
  const codes = new Int8Array(latent.data.length);
  const perTensor = qparams.scale.length === 1 && !multiplier && !smallestScale;
  const scale = new Float32Array(perTensor ? 1 : channels);
  for (let c = 0; c < channels; c++) {
    const grid = channelQParams(qparams, c);
    checkGrid(grid, c);
    const factor = multiplier?.[c] ?? 1;
    const size = Math.abs(factor);
    const floor = smallestScale?.[c] ?? 0;
    if (!Number.isFinite(factor) || !Number.isFinite(floor)) {
      throw new RangeError(
        `Cannot freeze weights: channel ${c} has multiplier ${factor} and smallest scale ${floor}`,
      );
    }
    const folded = Math.fround(grid.scale * size);
    if (folded === 0) continue; // Codes stay 0; the scale is chosen below, when the others are known.
    scale[perTensor ? 0 : c] = Math.max(folded, floor);
    const step = folded >= floor ? grid : { ...grid, scale: floor / size };
    const sign = factor < 0 ? -1 : 1;
    for (let o = 0; o < outer; o++) {
      const start = (o * channels + c) * inner;
      for (let i = start; i < start + inner; i++) {
        const value = latent.data[i]!;
        if (!Number.isFinite(value)) {
          throw new RangeError(`Cannot freeze weights: channel ${c} holds ${value}`);
        }
        const code = oddCodes ? oddCode(value, step) : quantizeFloat32(value, step);
        codes[i] = Math.min(127, sign * code);
      }
    }
  }
  fillEmptyScales(scale, smallestScale);
  return {
    values: ndArray("int8", latent.shape, codes),
    scale,
    zeroPoint: new Int32Array(scale.length),
    axis: perTensor ? -1 : axis,
    bits,
  };
}

/**
 * Smallest weight scale of each channel at which its bias takes half of the int32 range at most. Channels that a
 * pruned or dead batch norm has left with tiny weights need it.
 *
 * @param bias [channels], batch norm folded
 * @param inputScale scale of the layer's input
 * @returns [channels]
 */
export function smallestWeightScale(
  bias: Float64Array | Float32Array,
  inputScale: number,
): Float64Array<ArrayBuffer> {
  return Float64Array.from(bias, (value) => Math.abs(value) / (inputScale * 2 ** 30));
}

/**
 * Rounds a bias to int32 codes at scale fround(inputScale * weightScale).
 *
 * @param bias [channels]
 * @param inputScale scale of the layer's input
 * @param weightScale [channels] or [1]
 * @returns codes, half to even; zero points 0
 * @throws RangeError when a code does not fit int32 or a bias is not finite
 */
export function freezeBias(
  bias: Float64Array | Float32Array,
  inputScale: number,
  weightScale: Float32Array,
): QTensor {
  const channels = bias.length;
  if (weightScale.length !== 1 && weightScale.length !== channels) {
    throw new RangeError(
      `Cannot freeze a bias of ${channels} channels: expected 1 or ${channels} weight scales, got ${weightScale.length}`,
    );
  }
  const scale = Float32Array.from(weightScale, (value) => inputScale * value);
  const codes = new Int32Array(channels);
  for (let c = 0; c < channels; c++) {
    const step = scale[scale.length === 1 ? 0 : c]!;
    const code = roundHalfEven(bias[c]! / step);
    // NaN fails the comparison, too.
    if (!(Math.abs(code) <= INT32_MAX)) {
      throw new RangeError(
        `Cannot freeze a bias: channel ${c} is ${
          bias[c]
        } at scale ${step}, code ${code} does not fit int32; ` +
          "raise the scale of its weights (smallestWeightScale)",
      );
    }
    codes[c] = code;
  }
  return {
    values: ndArray("int32", [channels], codes),
    scale,
    zeroPoint: new Int32Array(scale.length),
    axis: scale.length === 1 ? -1 : 0,
    bits: 32,
  };
}

/** Codes that the input of a layer can take. */
export interface CodeRange {
  readonly zeroPoint: number;
  readonly quantMin: number;
  readonly quantMax: number;
}

/**
 * Largest magnitude that the int32 accumulator of each channel can reach, also on the way: over all inputs,
 * max(sum(w+) * high + sum(w-) * low + bias, -(sum(w+) * low + sum(w-) * high + bias)).
 *
 * @param weights int8 codes
 * @param input codes of the input
 * @param bias int32 codes at the accumulators' scale; none: 0
 * @param axis axis of the output channels; default that of the scales, or 0 when there is one scale
 * @returns [channels]
 * @throws RangeError naming the channel when one passes 2^31 - 1
 */
export function accumulatorBound(
  weights: QTensor,
  { zeroPoint, quantMin, quantMax }: CodeRange,
  bias?: QTensor,
  axis: number = Math.max(0, weights.axis),
): Float64Array<ArrayBuffer> {
  const { outer, channels, inner } = channelLayout(weights.values.shape, axis);
  // Padding adds 0, and products are added one by one, so 0 always is among the inputs.
  const low = Math.min(0, quantMin - zeroPoint), high = Math.max(0, quantMax - zeroPoint);
  const bounds = new Float64Array(channels);
  for (let c = 0; c < channels; c++) {
    let positive = 0, negative = 0;
    for (let o = 0; o < outer; o++) {
      const start = (o * channels + c) * inner;
      for (let i = start; i < start + inner; i++) {
        const code = weights.values.data[i]!;
        if (code > 0) positive += code;
        else negative += code;
      }
    }
    const offset = bias?.values.data[c] ?? 0;
    const largest = positive * high + negative * low, smallest = positive * low + negative * high;
    // The bias may come first or last; either way the sum lies between these.
    bounds[c] = Math.max(largest + Math.max(0, offset), -(smallest + Math.min(0, offset)));
    if (bounds[c]! > INT32_MAX) {
      throw new RangeError(
        `Cannot accumulate channel ${c} in int32: it can reach ${
          bounds[c]
        }, more than ${INT32_MAX}`,
      );
    }
  }
  return bounds;
}

/**
 * Values of an integer tensor, as ONNX DequantizeLinear computes them.
 *
 * @param tensor codes, scales and zero points
 * @returns fround(scale * (code - zeroPoint)), in the codes' shape
 */
export function dequantize(tensor: QTensor): NdArray<"float32"> {
  const { values, scale, zeroPoint, axis } = tensor;
  const { outer, channels, inner } = channelLayout(values.shape, axis, scale.length);
  const data = new Float32Array(values.data.length);
  for (let c = 0; c < channels; c++) {
    const k = scale.length === 1 ? 0 : c;
    const channel = { scale: scale[k]!, zeroPoint: zeroPoint[k]! };
    for (let o = 0; o < outer; o++) {
      const start = (o * channels + c) * inner;
      for (let i = start; i < start + inner; i++) {
        data[i] = dequantizeFloat32(values.data[i]!, channel);
      }
    }
  }
  return ndArray("float32", values.shape, data);
}

/** As the kernels of kernels/tanh_weights.ts round; 0 stays 0. */
function oddCode(value: number, { scale, quantMin, quantMax }: ScalarQParams): number {
  if (value === 0) return 0;
  const code = roundToOdd(Math.fround(Math.fround(value) / Math.fround(scale)));
  return Math.min(quantMax, Math.max(quantMin, code));
}

function checkGrid(
  { scale, zeroPoint, quantMin, quantMax }: CodeRange & { readonly scale: number },
  channel: number,
): void {
  if (quantMin < -128 || quantMax > 127 || zeroPoint !== 0) {
    throw new RangeError(
      `Cannot freeze weights: channel ${channel} has codes ${quantMin}..${quantMax} and zero point ${zeroPoint}, ` +
        "expected codes in -128..127 and zero point 0",
    );
  }
  if (!(scale > 0 && Number.isFinite(scale))) {
    throw new RangeError(`Cannot freeze weights: channel ${channel} has scale ${scale}`);
  }
}

function checkLength(name: string, values: Float64Array | undefined, channels: number): void {
  if (values !== undefined && values.length !== channels) {
    throw new RangeError(
      `Cannot freeze weights of ${channels} channels with a ${name} of ${values.length}`,
    );
  }
}

/** A channel of zeros has any scale; the largest of the others leaves its bias precise and inside int32. */
function fillEmptyScales(scale: Float32Array, smallestScale: Float64Array | undefined): void {
  const largest = scale.reduce((a, b) => Math.max(a, b), 0);
  const filler = largest > 0 ? largest : LONELY_SCALE;
  scale.forEach((value, c) => {
    if (value === 0) scale[c] = Math.max(filler, smallestScale?.[c] ?? 0);
  });
}
