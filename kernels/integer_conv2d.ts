// 2-D convolution of packed int8 codes, accumulated in int32 (with dot4I8Packed on GPUs):
//   sum[n, a, b, o] = sum over taps and c of x[n, a * stride + tap, b * stride + tap, c] * w[o, tap, c]
// x: [N, H, W, ceil(C / 4)] words of 4 channels. w: [G, KH, KW, ceil(C / G / 4), O / G] words of 4 input channels, output
// channels padded to 4. y: as x, or float32. What the zero point adds, -zeroPoint * sum(w), is part of the bias. A product
// of matrices x [M, K], w [N, K] is a 1x1 convolution of M pixels.
import {
  type Conv2dSpec,
  flattenPointwise,
  forwardConvolution,
  shapeLabel,
  type TapConvolution,
} from "./conv2d_plan.ts";
import { integerConvolutionGpu, integerGpuTiles } from "./integer_conv2d_gpu.ts";
import { softwareTiles } from "./conv2d_software_tile.ts";
import { integerConvolutionSoftware } from "./integer_conv2d_software.ts";
import type { IntegerEpilogue } from "./integer_epilogue.ts";
import { type Kernel, padded, type Target } from "./kernel.ts";

/** Shape of a convolution of codes. Groups take whole words: C / G and O / G are multiples of 4 unless G is 1. */
export interface IntegerConv2dSpec extends Conv2dSpec {
  /** Code that stands for 0 in x, as stored: what padding holds. */
  readonly zeroPoint: number;
}

/** An integer convolution, free of how it is computed. */
export interface IntegerConvolution {
  readonly taps: TapConvolution;
  /** Words of a pixel and of a tap, of one group. */
  readonly inputWords: number;
  /** Words of a pixel of y, of one group. */
  readonly outputWords: number;
  /** WGSL: the word that stands for zeros. */
  readonly zeros: string;
  readonly epilogue: IntegerEpilogue;
}

/**
 * The convolution with its epilogue.
 *
 * @param spec shape
 * @param epilogue what is fused into the store
 * @param target kind of adapter
 * @param tile index among the tiles worth having, the cost model's own first
 * @returns a kernel with bindings `x`, `w`, those of the epilogue, and `y`
 */
export function integerConv2d(
  spec: IntegerConv2dSpec,
  epilogue: IntegerEpilogue,
  target: Target,
  tile = 0,
): Kernel {
  const convolution = integerConvolution(spec, epilogue);
  return target.family === "gpu"
    ? integerConvolutionGpu(convolution, pick(integerGpuTiles(convolution), tile))
    : integerConvolutionSoftware(
      convolution,
      target,
      pick(softwareTiles(convolution.taps, target), tile),
    );
}

/** How many tiles {@linkcode integerConv2d} can take. */
export function integerConv2dTiles(spec: IntegerConv2dSpec, target: Target): number {
  const convolution = integerConvolution(spec, { output: "codes" });
  return target.family === "gpu"
    ? integerGpuTiles(convolution).length
    : softwareTiles(convolution.taps, target).length;
}

/** WGSL literal of a word with one code in all of its lanes. */
export function repeatedCode(code: number): string {
  return `0x${((code & 0xff) * 0x01010101).toString(16)}u`;
}

function integerConvolution(
  spec: IntegerConv2dSpec,
  epilogue: IntegerEpilogue,
): IntegerConvolution {
  const flat = flattenPointwise(spec);
  const taps = { ...forwardConvolution(flat, {}), label: `integer_conv2d ${shapeLabel(flat)}` };
  return {
    taps,
    inputWords: padded(taps.depth) / 4,
    outputWords: padded(taps.channels) / 4,
    zeros: repeatedCode(spec.zeroPoint),
    epilogue,
  };
}

function pick<T>(tiles: readonly T[], index: number): T {
  const tile = tiles[index];
  if (tile === undefined) throw new RangeError(`There is no tile ${index} of ${tiles.length}`);
  return tile;
}
