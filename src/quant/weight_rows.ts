// Where the parameters of a layer lie in the flat buffers, as rows (output channels) of the weight-quantization kernels.
import { padded, paddedSize } from "../../kernels/kernel.ts";
import type { WeightRow } from "../../kernels/weight_quantization.ts";
import type { LayerState } from "./student.ts";

/** Where a layer's parameters are in the flat buffer, in floats. */
export interface LayerSlots {
  /** The layer. */
  readonly layer: LayerState;
  /** Latent weights. */
  readonly latent: number;
  /** Logarithms of the scales. */
  readonly logScale: number;
  /** gamma and beta, or the bias twice. */
  readonly gamma: number;
  readonly beta: number;
  /** Start in the flat buffers of quantized weights and their gradients. */
  readonly weight: number;
}

/** The rows of a layer. */
export function weightRows({ layer, latent, logScale, weight }: LayerSlots): WeightRow[] {
  const { quantMin, quantMax } = layer;
  const channels = layer.logScale.length;
  if (layer.axis === 0) {
    const length = paddedSize(layer.latent.shape) / channels / 4;
    return Array.from({ length: channels }, (_, c) => ({
      start: latent / 4 + c * length,
      length,
      logScale: logScale + c,
      output: weight / 4 + c * length,
      quantMin: quantMin[c]!,
      quantMax: quantMax[c]!,
    }));
  }
  // Depthwise [KH, KW, C]: four channels share each vec4.
  const stride = padded(channels) / 4;
  const length = paddedSize(layer.latent.shape) / padded(channels);
  return Array.from({ length: stride }, (_, quad) => ({
    start: latent / 4 + quad,
    length,
    logScale: logScale + 4 * quad,
    output: weight / 4 + quad,
    quantMin: Array.from(quantMin.subarray(4 * quad, 4 * quad + 4)),
    quantMax: Array.from(quantMax.subarray(4 * quad, 4 * quad + 4)),
    stride,
  }));
}
