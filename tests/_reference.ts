// Float64 host references of the general kernels, written as plainly as their formulas, and finite differences of them.
import type { Activation } from "../kernels/activation.ts";
import type { SliceAndPadSpec, TransposeSpec } from "../kernels/data_movement.ts";
import type { GemmSpec } from "../kernels/gemm.ts";
import type { AveragePoolSpec, PoolSpec } from "../kernels/pooling.ts";

/** A function of one tensor. */
export type TensorFunction = (x: Float64Array) => Float64Array;

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/**
 * dL/dx of L = sum_i dy[i] f(x)[i], by central differences.
 *
 * @param f the function
 * @param x where
 * @param dy upstream gradient
 * @param step half the distance of the two points; f must be smooth that close to x
 * @returns the gradient, with an error of the order of step^2 (0 where f is linear or quadratic)
 */
export function numericGradient(
  f: TensorFunction,
  x: Float64Array,
  dy: ArrayLike<number>,
  step = 1e-5,
): Float64Array {
  const at = Float64Array.from(x);
  return x.map((value, i) => {
    at[i] = value + step;
    const above = inner(f(at), dy);
    at[i] = value - step;
    const below = inner(f(at), dy);
    at[i] = value;
    return (above - below) / (2 * step);
  });
}

/** sum_i a[i] b[i] */
export function inner(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/** y[i, j] = sum_k op(a)[i, k] op(b)[k, j] */
export function gemmReference(
  { m, n, k, transposeA, transposeB }: GemmSpec,
  a: Float64Array,
  b: Float64Array,
): Float64Array {
  return Float64Array.from({ length: m * n }, (_, at) => {
    const i = Math.floor(at / n), j = at % n;
    let sum = 0;
    for (let p = 0; p < k; p++) {
      sum += a[transposeA ? p * m + i : i * k + p]! * b[transposeB ? j * k + p : p * n + j]!;
    }
    return sum;
  });
}

/** An activation of one number. */
export function activationReference(activation: Activation, x: number): number {
  const sigmoid = 1 / (1 + Math.exp(-x));
  const clip = (value: number, min: number, max: number) => Math.min(Math.max(value, min), max);
  switch (activation.kind) {
    case "relu":
      return Math.max(x, 0);
    case "clip":
      return clip(x, activation.min, activation.max);
    case "leakyRelu":
      return x >= 0 ? x : activation.alpha * x;
    case "sigmoid":
      return sigmoid;
    case "hardSigmoid":
      return clip(activation.alpha * x + activation.beta, 0, 1);
    case "hardSwish":
      return x * clip(x / 6 + 0.5, 0, 1);
    case "silu":
      return x * sigmoid;
    case "tanh":
      return Math.tanh(x);
    case "gelu":
      return x * normalDistribution(x);
  }
}

/** Standard normal distribution function: its Taylor series, exact to float64 for |x| < 6. */
function normalDistribution(x: number): number {
  let term = x, sum = x;
  for (let n = 1; n < 200; n++) sum += term *= (x * x) / (2 * n + 1);
  return 0.5 + sum * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
}

/** Calls `visit` for every element under every window: out and in are flat indices without channels. */
function forEachWindow(
  spec: PoolSpec,
  visit: (out: number, elements: number[], row: number, column: number) => void,
): void {
  for (let n = 0; n < spec.batch; n++) {
    for (let row = 0; row < spec.outHeight; row++) {
      for (let column = 0; column < spec.outWidth; column++) {
        const elements: number[] = [];
        for (let kh = 0; kh < spec.kernelHeight; kh++) {
          for (let kw = 0; kw < spec.kernelWidth; kw++) {
            const h = row * spec.strideHeight + kh - spec.padTop;
            const w = column * spec.strideWidth + kw - spec.padLeft;
            if (h < 0 || w < 0 || h >= spec.inHeight || w >= spec.inWidth) continue;
            elements.push((n * spec.inHeight + h) * spec.inWidth + w);
          }
        }
        visit((n * spec.outHeight + row) * spec.outWidth + column, elements, row, column);
      }
    }
  }
}

/** y[p] = max over the window of p of x */
export function maxPoolReference(spec: PoolSpec, x: Float64Array): Float64Array {
  const { batch, outHeight, outWidth, channels } = spec;
  const y = new Float64Array(batch * outHeight * outWidth * channels);
  forEachWindow(spec, (out, elements) => {
    for (let c = 0; c < channels; c++) {
      y[out * channels + c] = Math.max(...elements.map((at) => x[at * channels + c]!));
    }
  });
  return y;
}

/** dx[q] = sum of dy[p] over the windows whose first maximum is q; the definition, for inputs with ties. */
export function maxPoolBackwardReference(
  spec: PoolSpec,
  x: Float64Array,
  dy: Float64Array,
): Float64Array {
  const { channels } = spec;
  const dx = new Float64Array(x.length);
  forEachWindow(spec, (out, elements) => {
    for (let c = 0; c < channels; c++) {
      const values = elements.map((at) => x[at * channels + c]!);
      const first = elements[values.indexOf(Math.max(...values))]!;
      dx[first * channels + c]! += dy[out * channels + c]!;
    }
  });
  return dx;
}

/** y[p] = sum over the window of p of x / count(p) */
export function averagePoolReference(spec: AveragePoolSpec, x: Float64Array): Float64Array {
  const { batch, outHeight, outWidth, channels } = spec;
  const y = new Float64Array(batch * outHeight * outWidth * channels);
  forEachWindow(spec, (out, elements, row, column) => {
    const top = row * spec.strideHeight - spec.padTop;
    const left = column * spec.strideWidth - spec.padLeft;
    const height = Math.min(top + spec.kernelHeight, spec.inHeight + spec.padBottom) - top;
    const width = Math.min(left + spec.kernelWidth, spec.inWidth + spec.padRight) - left;
    const count = spec.countIncludePad ? height * width : elements.length;
    for (let c = 0; c < channels; c++) {
      const sum = elements.reduce((total, at) => total + x[at * channels + c]!, 0);
      y[out * channels + c] = sum / count;
    }
  });
  return y;
}

/** Rows of a matrix, mapped one by one. */
export function mapRows(
  x: Float64Array,
  width: number,
  f: (row: Float64Array, index: number) => ArrayLike<number>,
): Float64Array {
  const rows = Array.from(
    { length: x.length / width },
    (_, r) => Array.from(f(x.subarray(r * width, (r + 1) * width), r)),
  );
  return Float64Array.from(rows.flat());
}

/** log(exp(x_i) / sum_j exp(x_j)) of each row */
export function logSoftmaxReference(x: Float64Array, classes: number): Float64Array {
  return mapRows(x, classes, (row) => {
    const largest = Math.max(...row);
    const total = row.reduce((sum, value) => sum + Math.exp(value - largest), 0);
    return row.map((value) => value - largest - Math.log(total));
  });
}

/** exp(x_i) / sum_j exp(x_j) of each row */
export function softmaxReference(x: Float64Array, classes: number): Float64Array {
  return logSoftmaxReference(x, classes).map(Math.exp);
}

/** -log softmax(x_r)[label_r] of each row */
export function crossEntropyReference(
  logits: Float64Array,
  labels: ArrayLike<number>,
  classes: number,
): Float64Array {
  return mapRows(logSoftmaxReference(logits, classes), classes, (row, r) => [-row[labels[r]!]!]);
}

/** T^2 sum_i p_i (log p_i - log q_i) of each row, p and q the softmax of teacher / T and logits / T */
export function distillationReference(
  teacher: Float64Array,
  logits: Float64Array,
  classes: number,
  temperature: number,
): Float64Array {
  const p = logSoftmaxReference(teacher.map((value) => value / temperature), classes);
  const q = logSoftmaxReference(logits.map((value) => value / temperature), classes);
  const terms = p.map((value, i) => temperature ** 2 * Math.exp(value) * (value - q[i]!));
  return mapRows(terms, classes, (row) => [row.reduce((sum, value) => sum + value, 0)]);
}

/** The element of a broadcast operand that meets each element of the result. */
export function broadcastReference(
  x: Float64Array,
  shape: readonly number[],
  result: readonly number[],
): Float64Array {
  const rank = result.length;
  return mapCoordinates(result, (at) => {
    let index = 0;
    shape.forEach((size, axis) => {
      index = index * size + (size === 1 ? 0 : at[axis + rank - shape.length]!);
    });
    return x[index]!;
  });
}

/** y[o] = x[start + o * step] inside x, value outside */
export function sliceAndPadReference(spec: SliceAndPadSpec, x: Float64Array): Float64Array {
  const { input, output, start, step, value } = spec;
  return mapCoordinates(output, (at) => {
    const from = at.map((o, axis) => start[axis]! + o * step[axis]!);
    if (from.some((i, axis) => i < 0 || i >= input[axis]!)) return value;
    return x[flatten(from, input)]!;
  });
}

/** y[i] = x[j] with j[permutation[a]] = i[a] */
export function transposeReference(
  { shape, permutation }: TransposeSpec,
  x: Float64Array,
): Float64Array {
  return mapCoordinates(permutation.map((axis) => shape[axis]!), (at) => {
    const from: number[] = [];
    permutation.forEach((axis, a) => from[axis] = at[a]!);
    return x[flatten(from, shape)]!;
  });
}

/** One number for every place of a shape, in C order. */
function mapCoordinates(
  shape: readonly number[],
  f: (at: number[]) => number,
): Float64Array {
  return Float64Array.from({ length: sizeOf(shape) }, (_, index) => {
    const at: number[] = [];
    for (let axis = shape.length - 1, rest = index; axis >= 0; axis--) {
      at[axis] = rest % shape[axis]!;
      rest = Math.floor(rest / shape[axis]!);
    }
    return f(at);
  });
}

function flatten(at: readonly number[], shape: readonly number[]): number {
  return at.reduce((index, i, axis) => index * shape[axis]! + i, 0);
}
