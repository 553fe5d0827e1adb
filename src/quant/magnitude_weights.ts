// Weights on N2UQ's grid (kernels/magnitude_weights.ts): 2^bits levels from end to end, whose height the kernels set from the
// mean magnitude of a channel's weights. int8 holds them as odd codes; at 8 bits, where these would not fit, a layer keeps
// its scales.
import type { LayerState } from "./student.ts";

/**
 * Gives a layer the codes of the grid.
 *
 * @param layer on any grid
 * @returns the layer on N2UQ's, its scales as they were
 */
export function onMagnitudeGrid(layer: LayerState): LayerState {
  const { bits } = layer;
  // Symmetric codes would be taken for odd ones.
  if (bits === 8) return { ...layer, quantMin: layer.quantMin.map(() => -128) };
  const quantMax = 2 ** bits - 1;
  return {
    ...layer,
    quantMin: layer.quantMin.map(() => -quantMax),
    quantMax: layer.quantMax.map(() => quantMax),
    oddCodes: true,
  };
}
