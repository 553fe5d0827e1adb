// What the answers must be, in float64 on the host and straight from the definitions. Convolutions are checked at some of
// their elements, the small CNN by its losses.
import {
  BATCH,
  type ConvolutionCase,
  convolutionInputs,
  inputs,
  type LstmCase,
  lstmInputs,
  SMALL_CNN,
  type SmallCnn,
} from "./cases.ts";

/** Elements of a result by flat index. */
export type Elements = readonly (readonly [index: number, value: number])[];

/** How many elements of a result are checked. */
const CHECKED = 64;

/** float32 sums of up to 65,536 products below 1 in any order. */
export const TOLERANCE = 2e-2;

/** Rounding of float32 in three training steps; a wrong gradient of one filter changes the loss by more. */
export const LOSS_TOLERANCE = 1e-5;

/** The matrices of a product, each [size, size]. */
export function matrices(size: number): { a: Float32Array<ArrayBuffer>; b: typeof a } {
  const a = inputs(size ** 2, 4);
  return { a, b: inputs(size ** 2, 5) };
}

/** Elements of the product of {@linkcode matrices}. */
export function matmulElements(size: number): Elements {
  const { a, b } = matrices(size);
  return spread(size ** 2).map((index) => {
    const row = Math.floor(index / size), column = index % size;
    let sum = 0;
    for (let k = 0; k < size; k++) sum += a[row * size + k]! * b[k * size + column]!;
    return [index, sum] as const;
  });
}

/** Elements of a convolution's result and gradients, by channels-first index. */
export function convolutionElements(
  convolution: ConvolutionCase,
): { readonly y: Elements; readonly dx: Elements; readonly dw: Elements } {
  const { channels, size } = convolution;
  const { x, w, dy } = convolutionInputs(convolution);
  const pixel = (image: number, channel: number, row: number, column: number) =>
    row < 0 || column < 0 || row >= size || column >= size
      ? undefined
      : ((image * channels + channel) * size + row) * size + column;
  const at = (values: Float32Array, index: number | undefined) =>
    index === undefined ? 0 : values[index]!;
  /** Sum over channels and taps around a pixel; `sign` 1 reads what a tap reads, -1 what it was read by. */
  const around = (index: number, from: Float32Array, sign: 1 | -1) => {
    const column = index % size, row = Math.floor(index / size) % size;
    const own = Math.floor(index / size ** 2) % channels;
    const image = Math.floor(index / size ** 2 / channels);
    let sum = 0;
    for (let other = 0; other < channels; other++) {
      for (let tap = 0; tap < 9; tap++) {
        const there = pixel(
          image,
          other,
          row + sign * (Math.floor(tap / 3) - 1),
          column + sign * (tap % 3 - 1),
        );
        const filter = sign === 1 ? own * channels + other : other * channels + own;
        sum += at(from, there) * w[filter * 9 + tap]!;
      }
    }
    return sum;
  };
  const weightGradient = (index: number) => {
    const tap = index % 9, inChannel = Math.floor(index / 9) % channels;
    const outChannel = Math.floor(index / 9 / channels);
    let sum = 0;
    for (let image = 0; image < BATCH; image++) {
      for (let row = 0; row < size; row++) {
        for (let column = 0; column < size; column++) {
          const read = pixel(
            image,
            inChannel,
            row + Math.floor(tap / 3) - 1,
            column + tap % 3 - 1,
          );
          sum += at(x, read) * dy[pixel(image, outChannel, row, column)!]!;
        }
      }
    }
    return sum;
  };
  return {
    y: spread(x.length).map((index) => [index, around(index, x, 1)] as const),
    dx: spread(x.length).map((index) => [index, around(index, dy, -1)] as const),
    dw: spread(w.length).map((index) => [index, weightGradient(index)] as const),
  };
}

/** Elements of an LSTM's results and gradients; of y and dx those of the checked samples. */
export function lstmElements(
  lstm: LstmCase,
): Readonly<Record<"y" | "dx" | "dw" | "db", Elements>> {
  const { inputs: features, hidden, steps, checked } = lstm;
  const { x, w, b, dy } = lstmInputs(lstm);
  const columns = features + hidden, rows = 4 * hidden;
  const sigmoid = (value: number) => 1 / (1 + Math.exp(-value));
  const dw = new Float64Array(rows * columns), db = new Float64Array(rows);
  const y: [number, number][] = [], dx: [number, number][] = [];
  for (const n of checked) {
    // What each step read, its gates and its cell.
    const read: Float64Array[] = [], gates: Float64Array[] = [], cells: Float64Array[] = [];
    let h = new Float64Array(hidden), c = new Float64Array(hidden);
    for (let t = 0; t < steps; t++) {
      const z = Float64Array.from(b);
      const from = (n * steps + t) * features;
      const seen = Float64Array.from([...x.subarray(from, from + features), ...h]);
      for (let row = 0; row < rows; row++) {
        for (let k = 0; k < columns; k++) z[row]! += w[row * columns + k]! * seen[k]!;
        z[row] = row < 3 * hidden ? sigmoid(z[row]!) : Math.tanh(z[row]!);
      }
      c = c.map((last, j) => z[2 * hidden + j]! * last + z[j]! * z[3 * hidden + j]!);
      h = c.map((cell, j) => z[hidden + j]! * Math.tanh(cell));
      read.push(seen);
      gates.push(z);
      cells.push(c);
      h.forEach((value, j) => y.push([(n * steps + t) * hidden + j, value]));
    }
    const dc = new Float64Array(hidden);
    let dh = new Float64Array(hidden);
    for (let t = steps - 1; t >= 0; t--) {
      const z = gates[t]!;
      const dz = new Float64Array(rows);
      for (let j = 0; j < hidden; j++) {
        const [i, o, f, g] = [0, 1, 2, 3].map((gate) => z[gate * hidden + j]!) as [
          number,
          number,
          number,
          number,
        ];
        const slope = dh[j]! + dy[(n * steps + t) * hidden + j]!;
        const value = Math.tanh(cells[t]![j]!);
        const own = dc[j]! + slope * o * (1 - value ** 2);
        dz[j] = own * g * i * (1 - i);
        dz[hidden + j] = slope * value * o * (1 - o);
        dz[2 * hidden + j] = own * (cells[t - 1]?.[j] ?? 0) * f * (1 - f);
        dz[3 * hidden + j] = own * i * (1 - g ** 2);
        dc[j] = own * f;
      }
      const back = new Float64Array(columns);
      for (let row = 0; row < rows; row++) {
        db[row]! += dz[row]!;
        for (let k = 0; k < columns; k++) {
          dw[row * columns + k]! += dz[row]! * read[t]![k]!;
          back[k]! += dz[row]! * w[row * columns + k]!;
        }
      }
      for (let k = 0; k < features; k++) dx.push([(n * steps + t) * features + k, back[k]!]);
      dh = back.slice(features);
    }
  }
  return { y, dx, dw: [...dw.entries()], db: [...db.entries()] };
}

/**
 * Trains the small CNN.
 *
 * @param cnn before its first step
 * @returns the loss of each of the checked steps, before the step was taken
 */
export function smallCnnLosses(cnn: SmallCnn): number[] {
  const { layers, classes, learningRate, checkedSteps } = SMALL_CNN;
  const filters = cnn.filters.map((filter) => Float64Array.from(filter));
  const linear = Float64Array.from(cnn.linear);
  const losses: number[] = [];
  for (let step = 0; step < checkedSteps; step++) {
    const passes: Pass[] = [];
    let x: Planes = { data: Float64Array.from(cnn.images), channels: 3, size: SMALL_CNN.size };
    layers.forEach((layer, i) => {
      const pass = { x, filter: filters[i]!, ...layer };
      passes.push(pass);
      x = relu(convolve(pass));
    });
    const { loss, dx, dlinear } = classify(x, linear, cnn.labels, classes);
    losses.push(loss);
    descend(linear, dlinear, learningRate);
    let dy = dx, y = x;
    for (const pass of passes.toReversed()) {
      // ReLU: no gradient where its result is 0.
      dy.forEach((_, i) => y.data[i] === 0 && (dy[i] = 0));
      const gradients = convolveBackward(pass, dy);
      descend(pass.filter, gradients.dw, learningRate);
      dy = gradients.dx;
      y = pass.x;
    }
  }
  return losses;
}

/** [64, channels, size, size] */
interface Planes {
  readonly data: Float64Array;
  readonly channels: number;
  readonly size: number;
}

/** A 3x3 convolution and what it reads. */
interface Pass {
  readonly x: Planes;
  /** [out, in, 3, 3] */
  readonly filter: Float64Array;
  readonly inChannels: number;
  readonly outChannels: number;
  readonly stride: number;
}

function convolve(pass: Pass): Planes {
  const { x, filter, outChannels } = pass;
  const size = x.size / pass.stride;
  const data = new Float64Array(BATCH * outChannels * size ** 2);
  forEachRow(pass, ({ from, to, count, stride, w }) => {
    for (let i = 0; i < count; i++) data[to + i]! += x.data[from + i * stride]! * filter[w]!;
  });
  return { data, channels: outChannels, size };
}

function convolveBackward(
  pass: Pass,
  dy: Float64Array,
): { dx: Float64Array; dw: Float64Array } {
  const { x, filter } = pass;
  const dx = new Float64Array(x.data.length), dw = new Float64Array(filter.length);
  forEachRow(pass, ({ from, to, count, stride, w }) => {
    let sum = 0;
    for (let i = 0; i < count; i++) {
      dx[from + i * stride]! += dy[to + i]! * filter[w]!;
      sum += dy[to + i]! * x.data[from + i * stride]!;
    }
    dw[w]! += sum;
  });
  return { dx, dw };
}

/** What a tap does along a row of pixels: x[from + i * stride] times filter[w] goes to y[to + i], for i < count. */
interface RowOfProducts {
  readonly from: number;
  readonly to: number;
  readonly count: number;
  readonly stride: number;
  readonly w: number;
}

function forEachRow(
  { x: { size }, inChannels, outChannels, stride }: Pass,
  visit: (products: RowOfProducts) => void,
): void {
  const out = size / stride;
  for (let image = 0; image < BATCH; image++) {
    for (let w = 0; w < outChannels * inChannels * 9; w++) {
      const channel = Math.floor(w / 9) % inChannels, outChannel = Math.floor(w / 9 / inChannels);
      const tapRow = Math.floor(w / 3) % 3 - 1, tapColumn = w % 3 - 1;
      // Columns whose tap lies inside the image; to the right only stride 1 reaches the border.
      const first = tapColumn < 0 ? 1 : 0;
      const last = (out - 1) * stride + tapColumn < size ? out - 1 : out - 2;
      for (let row = 0; row < out; row++) {
        const fromRow = row * stride + tapRow;
        if (fromRow < 0 || fromRow >= size) continue;
        visit({
          from: ((image * inChannels + channel) * size + fromRow) * size + first * stride +
            tapColumn,
          to: ((image * outChannels + outChannel) * out + row) * out + first,
          count: last - first + 1,
          stride,
          w,
        });
      }
    }
  }
}

function relu({ data, ...planes }: Planes): Planes {
  return { ...planes, data: data.map((value) => Math.max(value, 0)) };
}

/** Mean over the pixels, linear layer, mean cross-entropy, and the gradients of all that. */
function classify(
  { data, channels, size }: Planes,
  linear: Float64Array,
  labels: readonly number[],
  classes: number,
): { loss: number; dx: Float64Array; dlinear: Float64Array } {
  const pixels = size ** 2;
  const dx = new Float64Array(data.length), dlinear = new Float64Array(linear.length);
  let loss = 0;
  labels.forEach((label, image) => {
    const features = Array.from({ length: channels }, (_, channel) => {
      const from = (image * channels + channel) * pixels;
      return data.subarray(from, from + pixels).reduce((sum, value) => sum + value, 0) / pixels;
    });
    const exponentials = Array.from(
      { length: classes },
      (_, c) => Math.exp(features.reduce((sum, f, i) => sum + f * linear[c * channels + i]!, 0)),
    );
    const total = exponentials.reduce((sum, value) => sum + value, 0);
    loss -= Math.log(exponentials[label]! / total) / labels.length;
    exponentials.forEach((value, c) => {
      const gradient = (value / total - (c === label ? 1 : 0)) / labels.length;
      for (let i = 0; i < channels; i++) {
        dlinear[c * channels + i]! += gradient * features[i]!;
        const share = gradient * linear[c * channels + i]! / pixels;
        const from = (image * channels + i) * pixels;
        for (let p = from; p < from + pixels; p++) dx[p]! += share;
      }
    });
  });
  return { loss, dx, dlinear };
}

function descend(values: Float64Array, gradients: Float64Array, rate: number): void {
  gradients.forEach((gradient, i) => values[i]! -= rate * gradient);
}

/** Indices all over an array, in no regular pattern. */
function spread(length: number): number[] {
  return Array.from({ length: CHECKED }, (_, i) => Math.floor(length * ((i * 0.6180339887) % 1)));
}
