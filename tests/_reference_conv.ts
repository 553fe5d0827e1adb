// Convolution and its gradients on the host in float64, written straight from the definition
// y[n, a, b, o] = sum of x[n, a * stride + kh * dilation - pad, ..., c] * w[o, kh, kw, c]; logical (unpadded) arrays.
import type { Conv2dSpec } from "../kernels/conv2d.ts";

/** Calls `visit` with the flat logical indices (x, w, y) of every product of the convolution. */
function forEachProduct(
  spec: Conv2dSpec,
  visit: (x: number, w: number, y: number) => void,
): void {
  const depth = spec.inChannels / spec.group;
  const channels = spec.outChannels / spec.group;
  for (let n = 0; n < spec.batch; n++) {
    for (let a = 0; a < spec.outHeight; a++) {
      for (let b = 0; b < spec.outWidth; b++) {
        for (let kh = 0; kh < spec.kernelHeight; kh++) {
          for (let kw = 0; kw < spec.kernelWidth; kw++) {
            const i = a * spec.strideHeight + kh * spec.dilationHeight - spec.padTop;
            const j = b * spec.strideWidth + kw * spec.dilationWidth - spec.padLeft;
            if (i < 0 || j < 0 || i >= spec.inHeight || j >= spec.inWidth) continue;
            const pixel = ((n * spec.inHeight + i) * spec.inWidth + j) * spec.inChannels;
            const out = ((n * spec.outHeight + a) * spec.outWidth + b) * spec.outChannels;
            for (let o = 0; o < spec.outChannels; o++) {
              const first = Math.floor(o / channels) * depth;
              const filter = ((o * spec.kernelHeight + kh) * spec.kernelWidth + kw) * depth;
              for (let c = 0; c < depth; c++) visit(pixel + first + c, filter + c, out + o);
            }
          }
        }
      }
    }
  }
}

/** Logical shapes of the tensors of a convolution. */
export function convShapes(
  spec: Conv2dSpec,
): { x: number[]; w: number[]; y: number[] } {
  const { batch, inHeight, inWidth, inChannels, outHeight, outWidth, outChannels, group } = spec;
  return {
    x: [batch, inHeight, inWidth, inChannels],
    w: [outChannels, spec.kernelHeight, spec.kernelWidth, inChannels / group],
    y: [batch, outHeight, outWidth, outChannels],
  };
}

/** Elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** y of a convolution. */
export function referenceForward(
  spec: Conv2dSpec,
  x: Float64Array,
  w: Float64Array,
): Float64Array {
  const y = new Float64Array(sizeOf(convShapes(spec).y));
  forEachProduct(spec, (ix, iw, iy) => y[iy]! += x[ix]! * w[iw]!);
  return y;
}

/** dL/dx of a convolution, given dL/dy. */
export function referenceBackwardInput(
  spec: Conv2dSpec,
  dy: Float64Array,
  w: Float64Array,
): Float64Array {
  const dx = new Float64Array(sizeOf(convShapes(spec).x));
  forEachProduct(spec, (ix, iw, iy) => dx[ix]! += dy[iy]! * w[iw]!);
  return dx;
}

/** dL/dw of a convolution, given dL/dy. */
export function referenceBackwardWeight(
  spec: Conv2dSpec,
  x: Float64Array,
  dy: Float64Array,
): Float64Array {
  const dw = new Float64Array(sizeOf(convShapes(spec).w));
  forEachProduct(spec, (ix, iw, iy) => dw[iw]! += x[ix]! * dy[iy]!);
  return dw;
}

/** A depthwise weight [KH, KW, C] as the grouped weight [C, KH, KW, 1] of the functions above. */
export function depthwiseToGrouped(spec: Conv2dSpec, w: Float64Array): Float64Array {
  const taps = spec.kernelHeight * spec.kernelWidth;
  return w.map((_, i) => w[(i % taps) * spec.inChannels + Math.floor(i / taps)]!);
}

/** A grouped weight [C, KH, KW, 1] as a depthwise weight [KH, KW, C]. */
export function groupedToDepthwise(spec: Conv2dSpec, w: Float64Array): Float64Array {
  const taps = spec.kernelHeight * spec.kernelWidth;
  return w.map((_, i) => w[(i % spec.inChannels) * taps + Math.floor(i / spec.inChannels)]!);
}

/** What differs from a 3x3 convolution with stride, dilation and group 1. */
export interface ConvCase {
  readonly batch?: number;
  readonly size: readonly [number, number];
  readonly channels: readonly [number, number];
  readonly kernel?: readonly [number, number];
  readonly stride?: readonly [number, number];
  readonly dilation?: readonly [number, number];
  /** Top, left, bottom, right. */
  readonly pad?: readonly [number, number, number, number];
  readonly group?: number;
}

/** The spec of a case, with the output size that the padding implies. */
export function convSpec(
  {
    batch = 1,
    size,
    channels,
    kernel = [3, 3],
    stride = [1, 1],
    dilation = [1, 1],
    pad = [1, 1, 1, 1],
    group = 1,
  }: ConvCase,
): Conv2dSpec {
  const out = (axis: 0 | 1): number =>
    Math.floor(
      (size[axis] + pad[axis] + pad[axis === 0 ? 2 : 3] - (kernel[axis] - 1) * dilation[axis] - 1) /
        stride[axis],
    ) + 1;
  return {
    batch,
    inHeight: size[0],
    inWidth: size[1],
    inChannels: channels[0],
    outHeight: out(0),
    outWidth: out(1),
    outChannels: channels[1],
    kernelHeight: kernel[0],
    kernelWidth: kernel[1],
    strideHeight: stride[0],
    strideWidth: stride[1],
    padTop: pad[0],
    padLeft: pad[1],
    dilationHeight: dilation[0],
    dilationWidth: dilation[1],
    group,
  };
}
