// Weights on DoReFa-Net's grid, on the host (kernels/tanh_weights.ts trains them). Such a layer has latent weights whose
// largest of each channel is quantMax * scale. What trains is u with latent = quantMax * scale * tanh(u) / max |tanh(u)|.
// Below 8 bits codes are the odd ones of -quantMax .. quantMax = 2^bits - 1: 2^bits levels from end to end, none at 0,
// which int8 holds at half the distance of the levels. At 8 bits the levels are -127 .. 127.
import { ndArray } from "../core/nd_array.ts";
import { channelLayout } from "./qparams.ts";
import { roundToOdd } from "./rounding.ts";
import type { LayerState } from "./student.ts";

/** Largest parameter at the start: tanh is steep enough below. */
const LARGEST = 1;

/**
 * Puts a layer on the grid: its largest weight becomes the last level, at the height with the least squared error.
 *
 * @param layer on any grid
 * @returns the layer on DoReFa's; itself if it is there already
 */
export function onTanhGrid(layer: LayerState): LayerState {
  const { bits } = layer;
  if (layer.oddCodes) return layer;
  const odd = bits < 8;
  const quantMax = odd ? 2 ** bits - 1 : 127;
  const latent = layer.latent.data.slice();
  const logScale = layer.logScale.slice();
  forEachChannel(layer, (indices, c) => {
    const largest = largestOf(indices, (i) => latent[i]!);
    if (largest === 0) return;
    let dot = 0, square = 0;
    for (const i of indices) {
      const v = latent[i]! / largest * quantMax;
      const code = odd ? roundToOdd(v) : v;
      dot += v * code;
      square += code * code;
    }
    const height = dot / square;
    logScale[c] = Math.log(largest * height / quantMax);
    for (const i of indices) latent[i]! *= height;
  });
  return {
    ...layer,
    latent: ndArray("float32", layer.latent.shape, latent),
    logScale,
    quantMin: layer.quantMin.map(() => odd ? -quantMax : -128),
    quantMax: layer.quantMax.map(() => quantMax),
    ...(odd && { oddCodes: true }),
  };
}

/**
 * The parameters of a layer's weights.
 *
 * @param layer on the grid
 * @returns u of each weight, 0 where the weight is
 */
export function tanhParameters(layer: LayerState): Float32Array<ArrayBuffer> {
  const { data } = layer.latent;
  const result = new Float32Array(data.length);
  forEachChannel(layer, (indices, c) => {
    const height = heightOf(layer, c);
    const steepest = Math.tanh(Math.min(height, LARGEST));
    for (const i of indices) {
      const part = Math.min(1, Math.max(-1, data[i]! / height));
      result[i] = Math.atanh(part * steepest);
    }
  });
  return result;
}

/**
 * The weights that parameters stand for.
 *
 * @param layer the layer they belong to
 * @param parameters u of each weight
 * @returns latent weights
 */
export function tanhWeights(
  layer: LayerState,
  parameters: Float32Array,
): Float32Array<ArrayBuffer> {
  const result = new Float32Array(parameters.length);
  forEachChannel(layer, (indices, c) => {
    const largest = largestOf(indices, (i) => Math.tanh(parameters[i]!));
    if (largest === 0) return;
    const factor = heightOf(layer, c) / largest;
    for (const i of indices) result[i] = factor * Math.tanh(parameters[i]!);
  });
  return result;
}

/** Value of the last level. */
function heightOf({ logScale, quantMax }: LayerState, channel: number): number {
  return Math.exp(logScale[channel]!) * quantMax[channel]!;
}

function largestOf(indices: readonly number[], value: (index: number) => number): number {
  return indices.reduce((largest, i) => Math.max(largest, Math.abs(value(i))), 0);
}

function forEachChannel(
  { latent, axis, logScale }: LayerState,
  visit: (indices: readonly number[], channel: number) => void,
): void {
  const { outer, channels, inner } = channelLayout(latent.shape, axis, logScale.length);
  for (let c = 0; c < channels; c++) {
    const indices: number[] = [];
    for (let o = 0; o < outer; o++) {
      const start = (o * channels + c) * inner;
      for (let i = start; i < start + inner; i++) indices.push(i);
    }
    visit(indices, c);
  }
}
