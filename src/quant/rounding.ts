// Quantize, dequantize and fake-quantize on the host, as ONNX QuantizeLinear and the WGSL kernels define them: divide by
// the scale, round half to even, add the zero point, saturate. Each in float64 (the reference) and in float32, where
// every operation is rounded to float32 so that codes equal those of the GPU and of ONNX Runtime bit for bit.
/** Scale, zero point and range of one channel; an ActivationQParams is one. */
export interface ScalarQParams {
  readonly scale: number;
  readonly zeroPoint: number;
  readonly quantMin: number;
  readonly quantMax: number;
}

/** 1.5 * 2^52: a float64 of this size has no bits below 1, so adding it rounds to an integer, ties to even. */
export const ROUNDING_MAGIC = 6755399441055744;

/**
 * Rounds to the nearest integer, halves to the even one.
 *
 * @param x any number
 * @returns the integer; x itself when it is infinite, NaN or beyond 2^51. Never -0.
 */
export function roundHalfEven(x: number): number {
  // Beyond 2^51 the sum would leave the binade in which the steps are 1.
  return Math.abs(x) < 2251799813685248 ? x + ROUNDING_MAGIC - ROUNDING_MAGIC : roundLarge(x);
}

/**
 * Nearest odd integer, ties to the one whose half is even.
 *
 * @param x any number
 * @returns 2 round((x - 1) / 2) + 1
 */
export function roundToOdd(x: number): number {
  return 2 * roundHalfEven((x - 1) / 2) + 1;
}

/**
 * Code of a value, float64.
 *
 * @param x value
 * @param qparams scale, zero point and range
 * @returns clip(round(x / scale) + zeroPoint, quantMin, quantMax)
 */
export function quantizeValue(x: number, qparams: ScalarQParams): number {
  return saturate(roundHalfEven(x / qparams.scale) + qparams.zeroPoint, qparams);
}

/**
 * Value of a code, float64.
 *
 * @param code integer
 * @param qparams scale and zero point
 * @returns scale * (code - zeroPoint)
 */
export function dequantizeValue(
  code: number,
  { scale, zeroPoint }: Pick<ScalarQParams, "scale" | "zeroPoint">,
): number {
  return scale * (code - zeroPoint);
}

/**
 * Nearest value of the grid, float64.
 *
 * @param x value
 * @param qparams scale, zero point and range
 * @returns the value of the code of x
 */
export function fakeQuantizeValue(x: number, qparams: ScalarQParams): number {
  return dequantizeValue(quantizeValue(x, qparams), qparams);
}

/**
 * Code of a value in float32 arithmetic.
 *
 * @param x value, taken as float32
 * @param qparams scale (taken as float32), zero point and range
 * @returns the code that ONNX QuantizeLinear gives
 */
export function quantizeFloat32(x: number, qparams: ScalarQParams): number {
  // A quotient of two float32 numbers is the same rounded once or by way of float64 (53 >= 2 * 24 + 2).
  const quotient = Math.fround(Math.fround(x) / Math.fround(qparams.scale));
  return saturate(roundHalfEven(quotient) + qparams.zeroPoint, qparams);
}

/**
 * Value of a code in float32 arithmetic.
 *
 * @param code integer; beyond 2^24 it is itself rounded to float32 first, as ONNX Runtime does
 * @param qparams scale and zero point
 * @returns the value that ONNX DequantizeLinear gives
 */
export function dequantizeFloat32(
  code: number,
  { scale, zeroPoint }: Pick<ScalarQParams, "scale" | "zeroPoint">,
): number {
  return Math.fround(Math.fround(code - zeroPoint) * Math.fround(scale));
}

/**
 * Nearest value of the grid in float32 arithmetic.
 *
 * @param x value
 * @param qparams scale, zero point and range
 * @returns what QuantizeLinear followed by DequantizeLinear gives
 */
export function fakeQuantizeFloat32(x: number, qparams: ScalarQParams): number {
  return dequantizeFloat32(quantizeFloat32(x, qparams), qparams);
}

function saturate(code: number, { quantMin, quantMax }: ScalarQParams): number {
  return code < quantMin ? quantMin : code > quantMax ? quantMax : code;
}

/** float64 numbers from 2^51 on are multiples of 1/2; from 2^52 on they are integers. */
function roundLarge(x: number): number {
  const down = Math.floor(x);
  if (!(x - down === 0.5)) return x;
  return down % 2 === 0 ? down : down + 1;
}
