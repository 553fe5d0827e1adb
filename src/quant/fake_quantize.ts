// Codes and grid values of whole host arrays, per tensor or per channel, in float32 arithmetic: the reference of the
// fake-quantize kernels and of ONNX QuantizeLinear / DequantizeLinear.
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { channelLayout, channelQParams, type QParams } from "./qparams.ts";
import { fakeQuantizeFloat32, quantizeFloat32, type ScalarQParams } from "./rounding.ts";

/**
 * Codes of an array in float32 arithmetic.
 *
 * @param x values
 * @param qparams one set, or one for each index of `axis`
 * @param axis axis that qparams run along; -1 for one set
 * @returns codes in the shape of x
 */
export function quantizeArray(
  x: NdArray<"float32">,
  qparams: QParams,
  axis = -1,
): NdArray<"int32"> {
  const codes = new Int32Array(x.data.length);
  forEachChannel(x, qparams, axis, (i, channel) => codes[i] = quantizeFloat32(x.data[i]!, channel));
  return ndArray("int32", x.shape, codes);
}

/**
 * Nearest grid values of an array in float32 arithmetic.
 *
 * @param x values
 * @param qparams one set, or one for each index of `axis`
 * @param axis axis that qparams run along; -1 for one set
 * @returns values in the shape of x
 */
export function fakeQuantizeArray(
  x: NdArray<"float32">,
  qparams: QParams,
  axis = -1,
): NdArray<"float32"> {
  const values = new Float32Array(x.data.length);
  forEachChannel(
    x,
    qparams,
    axis,
    (i, channel) => values[i] = fakeQuantizeFloat32(x.data[i]!, channel),
  );
  return ndArray("float32", x.shape, values);
}

/** Calls `visit` with every index of x and the parameters of its channel. */
function forEachChannel(
  x: NdArray<"float32">,
  qparams: QParams,
  axis: number,
  visit: (index: number, channel: ScalarQParams) => void,
): void {
  const { outer, channels, inner } = channelLayout(x.shape, axis, qparams.scale.length);
  for (let c = 0; c < channels; c++) {
    const channel = channelQParams(qparams, c);
    for (let o = 0; o < outer; o++) {
      const start = (o * channels + c) * inner;
      for (let i = start; i < start + inner; i++) visit(i, channel);
    }
  }
}
