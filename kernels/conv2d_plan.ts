// What a convolution computes, free of how: the spec, and the "tap convolution" that both the forward pass and the
// gradient of the input are (every logical output pixel reads the input at its position times a step plus one
// offset per tap). The gradient of a strided convolution is one tap convolution per phase of the input pixel
// modulo the stride (the transposed convolution of Dumoulin and Visin 2016, without the inserted zeros).
import type { Epilogue } from "./epilogue.ts";
import { padded } from "./kernel.ts";
import type { TileStorage } from "./tile_storage.ts";

/** Shape of a 2-D convolution; x [N, H, W, C], w [O, KH, KW, C / group], y [N, OH, OW, O]. */
export interface Conv2dSpec {
  readonly batch: number;
  readonly inHeight: number;
  readonly inWidth: number;
  readonly inChannels: number;
  readonly outHeight: number;
  readonly outWidth: number;
  readonly outChannels: number;
  readonly kernelHeight: number;
  readonly kernelWidth: number;
  readonly strideHeight: number;
  readonly strideWidth: number;
  /** Rows of zeros above; those below follow from `outHeight`. */
  readonly padTop: number;
  /** Columns of zeros at the left; those at the right follow from `outWidth`. */
  readonly padLeft: number;
  readonly dilationHeight: number;
  readonly dilationWidth: number;
  readonly group: number;
  /** Of the forward pass's tiles in family "gpu", the only one that has them; default float32. */
  readonly tileStorage?: TileStorage | undefined;
}

/** Taps of one axis: tap i is kernel position `kernelStart + i * kernelStep`, read at `offsetStart + i * offsetStep`. */
export interface Taps {
  readonly count: number;
  readonly kernelStart: number;
  readonly kernelStep: number;
  readonly offsetStart: number;
  readonly offsetStep: number;
}

/** One axis of a tap convolution: output `position * outputStep + outputStart` reads input `position * inputStep + offset`. */
export interface TapAxis {
  readonly taps: Taps;
  /** Logical output positions. */
  readonly positions: number;
  readonly inputStep: number;
  readonly inputSize: number;
  readonly outputStep: number;
  readonly outputStart: number;
  readonly outputSize: number;
}

/** output[n, position, m] = sum over taps and depth of input[n, position * step + offset, depth] * w. */
export interface TapConvolution {
  readonly label: string;
  readonly batch: number;
  readonly group: number;
  readonly inputName: string;
  readonly outputName: string;
  readonly rows: TapAxis;
  readonly columns: TapAxis;
  /** Channels summed over, of one group. */
  readonly depth: number;
  /** Output channels of one group. */
  readonly channels: number;
  /** vec4s of a kernel position in w, padded(I / group) / 4. */
  readonly weightVectors: number;
  readonly kernelHeight: number;
  readonly kernelWidth: number;
  /** True when w is summed over its first axis (the gradient of the input). */
  readonly transposed: boolean;
  readonly tileStorage: TileStorage;
  readonly epilogue: Epilogue;
}

/** The forward pass as a tap convolution. */
export function forwardConvolution(spec: Conv2dSpec, epilogue: Epilogue): TapConvolution {
  const taps = (count: number, pad: number, dilation: number): Taps => ({
    count,
    kernelStart: 0,
    kernelStep: 1,
    offsetStart: -pad,
    offsetStep: dilation,
  });
  return {
    label: `conv2d_forward ${shapeLabel(spec)}`,
    batch: spec.batch,
    group: spec.group,
    inputName: "x",
    outputName: "y",
    rows: {
      taps: taps(spec.kernelHeight, spec.padTop, spec.dilationHeight),
      positions: spec.outHeight,
      inputStep: spec.strideHeight,
      inputSize: spec.inHeight,
      outputStep: 1,
      outputStart: 0,
      outputSize: spec.outHeight,
    },
    columns: {
      taps: taps(spec.kernelWidth, spec.padLeft, spec.dilationWidth),
      positions: spec.outWidth,
      inputStep: spec.strideWidth,
      inputSize: spec.inWidth,
      outputStep: 1,
      outputStart: 0,
      outputSize: spec.outWidth,
    },
    depth: spec.inChannels / spec.group,
    channels: spec.outChannels / spec.group,
    weightVectors: padded(spec.inChannels / spec.group) / 4,
    kernelHeight: spec.kernelHeight,
    kernelWidth: spec.kernelWidth,
    transposed: false,
    tileStorage: spec.tileStorage ?? "float32",
    epilogue,
  };
}

/** The gradient of the input, one tap convolution per phase; phases that no output reads have no taps. */
export function backwardInputConvolutions(spec: Conv2dSpec): TapConvolution[] {
  const rows = phases(
    spec.kernelHeight,
    spec.strideHeight,
    spec.dilationHeight,
    spec.padTop,
    spec.inHeight,
    spec.outHeight,
  );
  const columns = phases(
    spec.kernelWidth,
    spec.strideWidth,
    spec.dilationWidth,
    spec.padLeft,
    spec.inWidth,
    spec.outWidth,
  );
  return rows.flatMap((row) =>
    columns.map((column) => ({
      label: `conv2d_backward_input ${shapeLabel(spec)} phase ${row.outputStart},` +
        column.outputStart,
      batch: spec.batch,
      group: spec.group,
      inputName: "dy",
      outputName: "dx",
      rows: row,
      columns: column,
      depth: spec.outChannels / spec.group,
      channels: spec.inChannels / spec.group,
      weightVectors: padded(spec.inChannels / spec.group) / 4,
      kernelHeight: spec.kernelHeight,
      kernelWidth: spec.kernelWidth,
      transposed: true,
      tileStorage: "float32" as const, // gradients may be too small for float16
      epilogue: {},
    }))
  );
}

/** A pointwise convolution without stride or padding as one long row of pixels; any other spec unchanged. */
export function flattenPointwise(spec: Conv2dSpec): Conv2dSpec {
  const pointwise = spec.kernelHeight === 1 && spec.kernelWidth === 1 &&
    spec.strideHeight === 1 && spec.strideWidth === 1 && spec.padTop === 0 && spec.padLeft === 0 &&
    spec.outHeight === spec.inHeight && spec.outWidth === spec.inWidth;
  if (!pointwise) return spec;
  const pixels = spec.batch * spec.inHeight * spec.inWidth;
  return { ...spec, batch: 1, inHeight: 1, inWidth: pixels, outHeight: 1, outWidth: pixels };
}

/** Shape of a convolution for labels: input, kernel, stride, output. */
export function shapeLabel(spec: Conv2dSpec): string {
  return `${spec.batch}x${spec.inHeight}x${spec.inWidth}x${spec.inChannels}` +
    ` k${spec.kernelHeight}x${spec.kernelWidth} s${spec.strideHeight}x${spec.strideWidth}` +
    ` g${spec.group} -> ${spec.outHeight}x${spec.outWidth}x${spec.outChannels}`;
}

/** Logical shapes of a tap convolution's bindings, without those of its epilogue. */
export function tapConvolutionShapes(
  convolution: TapConvolution,
): Record<string, readonly number[]> {
  const { batch, group, rows, columns, depth, channels, kernelHeight, kernelWidth } = convolution;
  const [outer, inner] = convolution.transposed ? [depth, channels] : [channels, depth];
  return {
    [convolution.inputName]: [batch, rows.inputSize, columns.inputSize, depth * group],
    w: [outer * group, kernelHeight, kernelWidth, inner],
    [convolution.outputName]: [batch, rows.outputSize, columns.outputSize, channels * group],
  };
}

/** True when some tap of some position falls outside the input. */
export function leavesInput(axis: TapAxis): boolean {
  const { taps, positions, inputStep, inputSize } = axis;
  const last = taps.offsetStart + (taps.count - 1) * taps.offsetStep;
  const low = Math.min(taps.offsetStart, last);
  const high = Math.max(taps.offsetStart, last) + (positions - 1) * inputStep;
  return low < 0 || high >= inputSize;
}

/**
 * Input pixel i = stride * a + phase meets kernel position k of output o = a + (phase + pad - k * dilation) / stride
 * where that division is exact; such k form an arithmetic progression.
 */
function phases(
  kernel: number,
  stride: number,
  dilation: number,
  pad: number,
  inputSize: number,
  outputSize: number,
): TapAxis[] {
  const axes: TapAxis[] = [];
  for (let phase = 0; phase < Math.min(stride, inputSize); phase++) {
    const hits: number[] = [];
    for (let k = 0; k < kernel; k++) if ((phase + pad - k * dilation) % stride === 0) hits.push(k);
    const start = hits[0] ?? 0;
    const step = (hits[1] ?? start) - start;
    axes.push({
      taps: {
        count: hits.length,
        kernelStart: start,
        kernelStep: step,
        offsetStart: (phase + pad - start * dilation) / stride,
        offsetStep: -step * dilation / stride,
      },
      positions: Math.ceil((inputSize - phase) / stride),
      inputStep: 1,
      inputSize: outputSize,
      outputStep: stride,
      outputStart: phase,
      outputSize: inputSize,
    });
  }
  return axes;
}
