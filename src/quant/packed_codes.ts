// Integers of a frozen layer as the integer kernels read them: four int8 codes a word, the input's zero point folded into
// the bias: sum (x - zeroPoint) * w + bias = sum x * w + (bias - zeroPoint * sum w).
import { padded } from "../../kernels/kernel.ts";
import type { NdArray } from "../core/nd_array.ts";

/** Weights as words, and what they imply. */
export interface PackedWeight {
  readonly words: Uint32Array<ArrayBuffer>;
  /** [O]: sum of the codes of each output channel. */
  readonly sums: Float64Array<ArrayBuffer>;
  /** Groups that the words have: neighbouring ones are merged until they fill whole words. */
  readonly group: number;
}

/**
 * Packs the weights of a convolution for kernels/integer_conv2d.ts.
 *
 * @param codes [O, KH, KW, I / group], or [O, I] of a linear layer
 * @param group groups of the convolution
 * @returns [group, KH, KW, ceil(I / group / 4), O / group] words; codes are 0 where merged groups do not meet
 */
export function packConvWeight(codes: NdArray<"int8">, group: number): PackedWeight {
  const [outputs = 0, ...rest] = codes.shape;
  const inputs = rest.pop() ?? 0, taps = rest.reduce((product, size) => product * size, 1);
  const merged = mergedGroups(group, inputs, outputs / group);
  const groupOutputs = outputs / merged, perGroup = outputs / group;
  const depth = padded(inputs * group / merged), channels = padded(groupOutputs);
  const bytes = new Int8Array(merged * taps * depth * channels);
  const sums = new Float64Array(outputs);
  for (let o = 0; o < outputs; o++) {
    const g = Math.floor(o / groupOutputs), m = o % groupOutputs;
    const first = Math.floor(m / perGroup) * inputs; // of its own group, within the merged one
    for (let tap = 0; tap < taps; tap++) {
      for (let i = 0; i < inputs; i++) {
        const code = codes.data[(o * taps + tap) * inputs + i]!;
        const k = first + i;
        const word = ((g * taps + tap) * depth / 4 + (k >> 2)) * channels + m;
        bytes[word * 4 + k % 4] = code;
        sums[o]! += code;
      }
    }
  }
  return { words: new Uint32Array(bytes.buffer), sums, group: merged };
}

/**
 * Packs the weights of a depthwise convolution for kernels/integer_depthwise_conv2d.ts.
 *
 * @param codes [KH, KW, C]
 * @returns [KH, KW, ceil(C / 4)] words
 */
export function packDepthwiseWeight(codes: NdArray<"int8">): PackedWeight {
  const channels = codes.shape.at(-1) ?? 0;
  const bytes = new Int8Array(codes.data.length / channels * padded(channels));
  const sums = new Float64Array(channels);
  codes.data.forEach((code, i) => {
    const c = i % channels;
    bytes[(i - c) / channels * padded(channels) + c] = code;
    sums[c]! += code;
  });
  return { words: new Uint32Array(bytes.buffer), sums, group: channels };
}

/**
 * Biases with the input's zero point folded in. Sums wrap around 2^32, in kernels as here, so only the result has to
 * fit int32.
 *
 * @param sums of the weights, from the packing functions
 * @param zeroPoint of the input, as stored
 * @param bias int32 codes; none: 0
 * @returns [C] padded to 4, as words
 */
export function packBias(
  sums: Float64Array,
  zeroPoint: number,
  bias?: ArrayLike<number>,
): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(padded(sums.length));
  sums.forEach((sum, c) => words[c] = (bias?.[c] ?? 0) - zeroPoint * sum);
  return words;
}

/** As many groups as there can be when each takes whole words of inputs and outputs; 1 always does. */
function mergedGroups(group: number, inputs: number, outputs: number): number {
  for (let merge = 1; merge < group; merge++) {
    const whole = group % merge === 0 && merge * inputs % 4 === 0 && merge * outputs % 4 === 0;
    if (whole) return group / merge;
  }
  return 1;
}
