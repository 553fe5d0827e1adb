// Single elements of a convolution and of its gradients in float64, straight from the definition
//   y[n, a, b, o] = sum over taps and c of x[n, a * stride + tap - pad, b * stride + tap - pad, c] * w[o, tap, c],
// so that a few can be checked where computing all of them would take longer than the benchmark.

/** A square convolution, padded so that stride 1 keeps the size. */
export interface SquareConvolution {
  readonly batch: number;
  readonly inChannels: number;
  readonly outChannels: number;
  /** Height and width of the input. */
  readonly size: number;
  readonly kernel: number;
  readonly stride: number;
  /** Whether every channel has a filter of its own; w is [tap, c] then. */
  readonly depthwise: boolean;
}

/** Height and width of the output. */
export function outSizeOf({ size, stride }: SquareConvolution): number {
  return Math.ceil(size / stride);
}

/** y at a flat index. */
export function outputAt(
  shape: SquareConvolution,
  x: Float32Array,
  w: Float32Array,
  index: number,
): number {
  const { outChannels, stride, kernel } = shape;
  const pad = (kernel - 1) / 2;
  const [n, a, b, o] = split(index, outSizeOf(shape), outChannels);
  let sum = 0;
  for (let tap = 0; tap < kernel * kernel; tap++) {
    const row = a * stride + Math.floor(tap / kernel) - pad;
    const column = b * stride + tap % kernel - pad;
    for (const c of inputsOf(shape, o)) {
      sum += inputAt(shape, x, n, row, column, c) * w[weightIndex(shape, o, tap, c)]!;
    }
  }
  return sum;
}

/** dx at a flat index. */
export function inputGradientAt(
  shape: SquareConvolution,
  w: Float32Array,
  dy: Float32Array,
  index: number,
): number {
  const { inChannels, outChannels, size, stride, kernel, depthwise } = shape;
  const pad = (kernel - 1) / 2, out = outSizeOf(shape);
  const [n, i, j, c] = split(index, size, inChannels);
  let sum = 0;
  for (let tap = 0; tap < kernel * kernel; tap++) {
    const a = (i + pad - Math.floor(tap / kernel)) / stride;
    const b = (j + pad - tap % kernel) / stride;
    if (!Number.isInteger(a) || !Number.isInteger(b)) continue;
    if (a < 0 || b < 0 || a >= out || b >= out) continue;
    const pixel = ((n * out + a) * out + b) * outChannels;
    for (const o of depthwise ? [c] : Array(outChannels).keys()) {
      sum += dy[pixel + o]! * w[weightIndex(shape, o, tap, c)]!;
    }
  }
  return sum;
}

/** dw at a flat index. */
export function weightGradientAt(
  shape: SquareConvolution,
  x: Float32Array,
  dy: Float32Array,
  index: number,
): number {
  const { batch, inChannels, outChannels, stride, kernel, depthwise } = shape;
  const pad = (kernel - 1) / 2, out = outSizeOf(shape);
  const c = index % inChannels;
  const tap = Math.floor(index / inChannels) % (kernel * kernel);
  const o = depthwise ? c : Math.floor(index / inChannels / kernel / kernel);
  let sum = 0;
  for (let pixel = 0; pixel < batch * out * out; pixel++) {
    const [n, a, b] = split(pixel, out, 1);
    const row = a * stride + Math.floor(tap / kernel) - pad;
    const column = b * stride + tap % kernel - pad;
    sum += inputAt(shape, x, n, row, column, c) * dy[pixel * outChannels + o]!;
  }
  return sum;
}

/** x, zero outside the image. */
function inputAt(
  { size, inChannels }: SquareConvolution,
  x: Float32Array,
  n: number,
  row: number,
  column: number,
  c: number,
): number {
  if (row < 0 || column < 0 || row >= size || column >= size) return 0;
  return x[((n * size + row) * size + column) * inChannels + c]!;
}

/** Channels that an output channel sums over. */
function inputsOf({ depthwise, inChannels }: SquareConvolution, o: number): Iterable<number> {
  return depthwise ? [o] : Array(inChannels).keys();
}

function weightIndex(
  { depthwise, inChannels, kernel }: SquareConvolution,
  o: number,
  tap: number,
  c: number,
): number {
  return depthwise ? tap * inChannels + c : (o * kernel * kernel + tap) * inChannels + c;
}

/** A flat index of [N, size, size, channels] as its four indices. */
function split(
  index: number,
  size: number,
  channels: number,
): [n: number, row: number, column: number, channel: number] {
  const pixel = Math.floor(index / channels);
  return [
    Math.floor(pixel / size / size),
    Math.floor(pixel / size) % size,
    pixel % size,
    index % channels,
  ];
}
