// The mean output of a convolution or linear layer from the mean of its inputs, in float64 on the host. The layer is
// linear, so nothing else is needed, padding included: tap k of the kernel sees the mean over the pixels that it visits.
import type { Conv2dSpec } from "../../kernels/conv2d.ts";
import type { NdArray } from "../core/nd_array.ts";

/** A weight, channels last: [O, KH, KW, I / group], depthwise [KH, KW, C] with axis 2, or [O, I]. */
export interface MeanWeight {
  readonly values: NdArray<"float32">;
  /** Axis of the output channels. */
  readonly axis: number;
}

/**
 * Mean of what each tap of a convolution's kernel sees, over all output pixels.
 *
 * @param spec the convolution
 * @param image [H, W, C]: mean of the inputs
 * @returns [KH * KW, C]; padding counts as 0
 */
export function tapMeans(spec: Conv2dSpec, image: Float64Array): Float64Array {
  const { inHeight, inWidth, inChannels, kernelHeight, kernelWidth, outHeight, outWidth } = spec;
  const means = new Float64Array(kernelHeight * kernelWidth * inChannels);
  for (let tap = 0; tap < kernelHeight * kernelWidth; tap++) {
    const top = Math.floor(tap / kernelWidth) * spec.dilationHeight - spec.padTop;
    const left = tap % kernelWidth * spec.dilationWidth - spec.padLeft;
    for (let y = top, a = 0; a < outHeight; a++, y += spec.strideHeight) {
      if (y < 0 || y >= inHeight) continue;
      for (let x = left, b = 0; b < outWidth; b++, x += spec.strideWidth) {
        if (x < 0 || x >= inWidth) continue;
        const pixel = (y * inWidth + x) * inChannels;
        for (let c = 0; c < inChannels; c++) means[tap * inChannels + c]! += image[pixel + c]!;
      }
    }
  }
  return means.map((sum) => sum / (outHeight * outWidth));
}

/**
 * Mean of each output channel over inputs and pixels, without the bias.
 *
 * @param spec the convolution; a linear layer is one over a single pixel
 * @param weight its weight
 * @param means from {@linkcode tapMeans}
 * @returns [O]
 */
export function meanOutputs(
  { inChannels, kernelHeight, kernelWidth, group }: Omit<Conv2dSpec, "outChannels">,
  { values: { data, shape }, axis }: MeanWeight,
  means: Float64Array,
): Float64Array {
  const taps = kernelHeight * kernelWidth, inputs = inChannels / group;
  const outputs = shape[axis]!;
  return Float64Array.from({ length: outputs }, (_, o) => {
    const first = Math.floor(o * group / outputs) * inputs;
    let sum = 0;
    for (let tap = 0; tap < taps; tap++) {
      for (let i = 0; i < inputs; i++) {
        const w = axis === 0 ? (o * taps + tap) * inputs + i : tap * outputs + o;
        sum += data[w]! * means[tap * inChannels + first + i]!;
      }
    }
    return sum;
  });
}
