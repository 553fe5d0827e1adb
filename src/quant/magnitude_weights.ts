// Weights on N2UQ's grid, on the host (kernels/magnitude_weights.ts trains them): 2^bits levels from end to end, whose
// height follows the mean magnitude of a channel's weights. int8 holds them as odd codes; at 8 bits, where these would not
// fit, a layer keeps its grid.
import { channelLayout } from "./qparams.ts";
import type { LayerState } from "./student.ts";

/**
 * Puts a layer on the grid.
 *
 * @param layer on any grid
 * @returns the layer on N2UQ's; a channel of zeros keeps its scale
 */
export function onMagnitudeGrid(layer: LayerState): LayerState {
  const { bits, latent, axis } = layer;
  // Symmetric codes would be taken for odd ones.
  if (bits === 8) return { ...layer, quantMin: layer.quantMin.map(() => -128) };
  const quantMax = 2 ** bits - 1;
  const logScale = layer.logScale.slice();
  const { outer, channels, inner } = channelLayout(latent.shape, axis, logScale.length);
  for (let c = 0; c < channels; c++) {
    let sum = 0, count = 0;
    for (let o = 0; o < outer; o++) {
      const start = (o * channels + c) * inner;
      for (const weight of latent.data.subarray(start, start + inner)) {
        sum += Math.abs(weight);
        if (weight !== 0) count++;
      }
    }
    if (count > 0) logScale[c] = Math.log(sum / count / 2 ** (bits - 1));
  }
  return {
    ...layer,
    logScale,
    quantMin: layer.quantMin.map(() => -quantMax),
    quantMax: layer.quantMax.map(() => quantMax),
    oddCodes: true,
  };
}
