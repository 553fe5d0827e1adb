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
import { decideTile, type TiledWork } from "./tile_choice.ts";

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

/** The epilogue that tiles are measured with. */
export const PLAIN_EPILOGUE: IntegerEpilogue = { output: "float32" };

/**
 * The convolution with its epilogue.
 *
 * @param spec shape
 * @param epilogue what is fused into the store
 * @param target kind of adapter
 * @returns a kernel with bindings `x`, `w`, those of the epilogue, and `y`
 */
export function integerConv2d(
  spec: IntegerConv2dSpec,
  epilogue: IntegerEpilogue,
  target: Target,
): Kernel {
  const convolution = integerConvolution(spec, epilogue);
  return target.family === "gpu"
    ? tiled(convolution, target, integerGpuTiles(convolution), integerConvolutionGpu)
    : tiled(
      convolution,
      target,
      softwareTiles(convolution.taps, target),
      (part, tile) => integerConvolutionSoftware(part, target, tile),
    );
}

/**
 * What the tuner binds to a convolution of codes with {@linkcode PLAIN_EPILOGUE}.
 *
 * @param taps the convolution
 * @param words of a pixel of x and of w as a whole
 * @returns bindings of a choice
 */
export function integerBindings(
  { batch, group, channels, rows, columns }: TapConvolution,
  words: { readonly pixel: number; readonly weight: number },
): Required<Pick<TiledWork<never>, "shapes" | "integers">> {
  const outChannels = channels * group;
  return {
    shapes: {
      x: [batch * rows.inputSize * columns.inputSize * words.pixel],
      w: [words.weight],
      bias: [padded(outChannels)],
      scale: [outChannels],
      y: [batch, rows.outputSize, columns.outputSize, outChannels],
    },
    integers: { x: "codes", w: "codes", bias: "int32" },
  };
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

function tiled<T extends object>(
  convolution: IntegerConvolution,
  target: Target,
  tiles: readonly T[],
  kernel: (convolution: IntegerConvolution, tile: T) => Kernel,
): Kernel {
  const { taps, inputWords, outputWords } = convolution;
  const plain = { ...convolution, epilogue: PLAIN_EPILOGUE };
  const { tile, choice } = decideTile({
    key: taps.label,
    ...integerBindings(taps, {
      pixel: taps.group * inputWords,
      weight: taps.group * taps.kernelHeight * taps.kernelWidth * inputWords * outputWords * 4,
    }),
    tiles,
    build: (tile: T) => ({ kernels: [kernel(plain, tile)], temporaries: {} }),
  }, target);
  return { ...kernel(convolution, tile), choice };
}
