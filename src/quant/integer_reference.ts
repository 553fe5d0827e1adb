// The layers of a frozen student in exact integer arithmetic: what an int8 device computes, and what every other
// executor is compared with. accumulator = sum (x - zeroPoint) * w + bias, as ONNX ConvInteger and MatMulInteger
// define it; requantize.ts turns accumulators into the next codes.
import { type NdArray, ndArray, sizeOf } from "../core/nd_array.ts";
import type { QTensor } from "../graph/quantized_graph.ts";

/** Codes of an activation. */
export interface IntegerInput {
  readonly codes: NdArray<"uint8"> | NdArray<"int8"> | NdArray<"int32">;
  readonly zeroPoint: number;
}

/** A convolution on codes. x: [N, C, H, W], w: [O, C / group, KH, KW], bias: [O]. */
export interface IntegerConv2dOptions {
  readonly x: IntegerInput;
  readonly weight: QTensor;
  /** Codes at the scale of the accumulators. */
  readonly bias?: QTensor;
  /** [height, width]; default [1, 1]. */
  readonly strides?: readonly [number, number];
  /** [top, left, bottom, right], as in ONNX; default 0. Padding stands for the value 0. */
  readonly pads?: readonly [number, number, number, number];
  /** [height, width]; default [1, 1]. */
  readonly dilations?: readonly [number, number];
  readonly group?: number;
}

/** A product of matrices on codes. x: [M, K], w: [K, N], or [N, K] when transposed; bias: [N]. */
export interface IntegerGemmOptions {
  readonly x: IntegerInput;
  readonly weight: QTensor;
  readonly bias?: QTensor;
  /** w is [N, K] (ONNX transB = 1); default true. */
  readonly transposed?: boolean;
}

/**
 * Accumulators of a convolution.
 *
 * @param options input, weights and geometry
 * @returns [N, O, OH, OW]
 * @throws RangeError when shapes do not fit or an accumulator does not fit int32
 */
export function integerConv2d(
  {
    x,
    weight,
    bias,
    strides: [strideY, strideX] = [1, 1],
    pads: [top, left, bottom, right] = [0, 0, 0, 0],
    dilations: [dilationY, dilationX] = [1, 1],
    group = 1,
  }: IntegerConv2dOptions,
): NdArray<"int32"> {
  const [batch, channels, height, width] = sizes4(x.codes.shape, "input");
  const [outChannels, groupChannels, kernelHeight, kernelWidth] = sizes4(
    weight.values.shape,
    "weight",
  );
  if (groupChannels * group !== channels || outChannels % group !== 0) {
    throw new RangeError(
      `Cannot convolve ${channels} channels with weight [${
        weight.values.shape.join(", ")
      }] in ${group} groups`,
    );
  }
  checkBias(bias, outChannels);
  const outHeight = outputSize(height, top + bottom, kernelHeight, strideY, dilationY);
  const outWidth = outputSize(width, left + right, kernelWidth, strideX, dilationX);
  const values = centred(x), w = weight.values.data;
  const sums = new Float64Array(batch * outChannels * outHeight * outWidth);
  const groupOut = outChannels / group;
  let to = 0;
  for (let n = 0; n < batch; n++) {
    for (let o = 0; o < outChannels; o++) {
      const plane = sums.subarray(to, to += outHeight * outWidth).fill(bias?.values.data[o] ?? 0);
      for (let c = 0; c < groupChannels; c++) {
        const source = (n * channels + Math.floor(o / groupOut) * groupChannels + c) * height;
        for (let ky = 0; ky < kernelHeight; ky++) {
          for (let kx = 0; kx < kernelWidth; kx++) {
            const code = w[((o * groupChannels + c) * kernelHeight + ky) * kernelWidth + kx]!;
            if (code === 0) continue;
            const shiftY = ky * dilationY - top, shiftX = kx * dilationX - left;
            for (let oy = 0; oy < outHeight; oy++) {
              const iy = oy * strideY + shiftY;
              if (iy < 0 || iy >= height) continue;
              const row = (source + iy) * width;
              for (let ox = 0; ox < outWidth; ox++) {
                const ix = ox * strideX + shiftX;
                if (ix >= 0 && ix < width) plane[oy * outWidth + ox]! += code * values[row + ix]!;
              }
            }
          }
        }
      }
    }
  }
  return toInt32([batch, outChannels, outHeight, outWidth], sums);
}

/**
 * Accumulators of a product of matrices.
 *
 * @param options input and weights
 * @returns [M, N]
 * @throws RangeError when shapes do not fit or an accumulator does not fit int32
 */
export function integerGemm(
  { x, weight, bias, transposed = true }: IntegerGemmOptions,
): NdArray<"int32"> {
  const [rows, inner] = x.codes.shape;
  const [first, second] = weight.values.shape;
  const [columns, depth] = transposed ? [first, second] : [second, first];
  if (
    x.codes.shape.length !== 2 || weight.values.shape.length !== 2 ||
    rows === undefined || columns === undefined || inner === undefined || inner !== depth
  ) {
    throw new RangeError(
      `Cannot multiply [${x.codes.shape.join(", ")}] by [${
        weight.values.shape.join(", ")
      }], transposed: ${transposed}`,
    );
  }
  checkBias(bias, columns);
  const values = centred(x), w = weight.values.data;
  const [stepColumn, stepInner] = transposed ? [inner, 1] : [1, columns];
  const sums = new Float64Array(rows * columns);
  for (let m = 0; m < rows; m++) {
    for (let n = 0; n < columns; n++) {
      let sum = bias?.values.data[n] ?? 0;
      for (let k = 0; k < inner; k++) {
        sum += values[m * inner + k]! * w[n * stepColumn + k * stepInner]!;
      }
      sums[m * columns + n] = sum;
    }
  }
  return toInt32([rows, columns], sums);
}

/** Codes minus the zero point. */
function centred({ codes, zeroPoint }: IntegerInput): Int32Array {
  return Int32Array.from(codes.data, (code) => code - zeroPoint);
}

function outputSize(
  size: number,
  pads: number,
  kernel: number,
  stride: number,
  dilation: number,
): number {
  const extent = dilation * (kernel - 1) + 1;
  if (size + pads < extent) {
    throw new RangeError(
      `Cannot convolve size ${size} padded by ${pads} with a kernel of ${extent}`,
    );
  }
  return Math.floor((size + pads - extent) / stride) + 1;
}

function sizes4(shape: readonly number[], what: string): [number, number, number, number] {
  if (shape.length !== 4) {
    throw new RangeError(`Cannot convolve ${what} [${shape.join(", ")}]: expected 4 axes`);
  }
  // Four axes, as just checked.
  return [shape[0]!, shape[1]!, shape[2]!, shape[3]!];
}

function checkBias(bias: QTensor | undefined, channels: number): void {
  if (bias !== undefined && bias.values.data.length !== channels) {
    throw new RangeError(
      `Cannot add a bias of ${bias.values.data.length} to ${channels} channels`,
    );
  }
}

/** float64 sums of int8 products are exact up to 2^53; int32 is what a device has. */
function toInt32(shape: readonly number[], sums: Float64Array): NdArray<"int32"> {
  const result = ndArray("int32", shape, Int32Array.from(sums));
  for (let i = 0; i < sums.length; i++) {
    if (result.data[i] !== sums[i]) {
      const inner = sizeOf(shape.slice(2));
      const channel = Math.floor(i / inner) % shape[1]!; // Both results have their channels on axis 1.
      throw new RangeError(
        `Cannot accumulate channel ${channel} in int32: its sum is ${sums[i]}`,
      );
    }
  }
  return result;
}
