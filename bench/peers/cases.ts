// The work that every peer does: sizes, inputs and names, the same for all of them. Peers with packages of their own read
// this file too, so it imports nothing.

/** Images of a mini-batch. */
export const BATCH = 64;
/** Test images that recipes are judged on. */
export const TEST_IMAGES = 1000;

/** Square matrices to multiply. */
export const MATMUL_SIZES: readonly number[] = [512, 1024];

/** A 3x3 convolution that keeps its size. */
export interface ConvolutionCase {
  /** In and out. */
  readonly channels: number;
  /** Rows and columns. */
  readonly size: number;
}

/** The convolutions of the three stages of ResNet-20. */
export const CONVOLUTIONS: readonly ConvolutionCase[] = [
  { channels: 16, size: 32 },
  { channels: 32, size: 16 },
  { channels: 64, size: 8 },
];

/** An LSTM over a batch of sequences. */
export interface LstmCase {
  readonly inputs: number;
  readonly hidden: number;
  readonly steps: number;
  /** The samples whose results have gradients. */
  readonly checked: readonly number[];
}

/** The LSTM that peers run. */
export const LSTM: LstmCase = { inputs: 128, hidden: 128, steps: 64, checked: [0, 41] };

/**
 * A network that every peer can train: 3x3 convolutions with ReLU, the mean over the pixels, a linear layer,
 * cross-entropy, plain SGD. It has no biases.
 */
export const SMALL_CNN = {
  size: 32,
  classes: 10,
  layers: [
    { inChannels: 3, outChannels: 16, stride: 1 },
    { inChannels: 16, outChannels: 32, stride: 2 },
    { inChannels: 32, outChannels: 64, stride: 2 },
  ],
  learningRate: 1,
  /** Steps whose losses are compared before anything is timed. */
  checkedSteps: 3,
} as const;

/** Floating-point operations of a product of two square matrices. */
export function matmulOperations(size: number): number {
  return 2 * size ** 3;
}

/** Floating-point operations of a forward pass; backward has two such passes. */
export function convolutionOperations({ channels, size }: ConvolutionCase): number {
  return 2 * 9 * channels ** 2 * size ** 2 * BATCH;
}

/** Floating-point operations of a forward pass; backward has two such passes. */
export function lstmOperations({ inputs, hidden, steps }: LstmCase): number {
  return 2 * 4 * hidden * (inputs + hidden) * steps * BATCH;
}

/** The inputs of the LSTM. */
export function lstmInputs({ inputs: features, hidden, steps, checked }: LstmCase): {
  /** [64, T, I] */
  x: Float32Array<ArrayBuffer>;
  /** [4 H, I + H], rows of the gates i, o, f, g. */
  w: Float32Array<ArrayBuffer>;
  /** [4 H] */
  b: Float32Array<ArrayBuffer>;
  /** [64, T, H]: 0 but for the checked samples. */
  dy: Float32Array<ArrayBuffer>;
} {
  const size = steps * hidden;
  const dy = inputs(BATCH * size, 18).map((value, i) =>
    checked.includes(Math.floor(i / size)) ? value : 0
  );
  return {
    x: inputs(BATCH * steps * features, 15),
    w: inputs(4 * hidden * (features + hidden), 16, 0.15),
    b: inputs(4 * hidden, 17),
    dy,
  };
}

/**
 * Numbers that look random and are the same in every language: a hash of the index (the finalizer of MurmurHash3).
 *
 * @param length how many
 * @param seed which of many sequences
 * @param scale largest absolute value
 * @returns numbers in [-scale, scale)
 */
export function inputs(length: number, seed: number, scale = 1): Float32Array<ArrayBuffer> {
  const offset = Math.imul(seed, 0x9e3779b9);
  return Float32Array.from({ length }, (_, index) => {
    let hash = (index + offset) | 0;
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    hash ^= hash >>> 16;
    return scale * (hash / 2 ** 31);
  });
}

/** The inputs of a convolution, channels first. */
export function convolutionInputs({ channels, size }: ConvolutionCase): {
  /** [64, C, H, W] */
  x: Float32Array<ArrayBuffer>;
  /** [C, C, 3, 3] */
  w: Float32Array<ArrayBuffer>;
  /** [64, C, H, W] */
  dy: Float32Array<ArrayBuffer>;
} {
  const pixels = BATCH * channels * size ** 2;
  return {
    x: inputs(pixels, 1),
    w: inputs(9 * channels ** 2, 2),
    dy: inputs(pixels, 3),
  };
}

/** Weights and data of the small CNN before its first step, channels first. */
export interface SmallCnn {
  /** [64, 3, H, W] */
  readonly images: Float32Array<ArrayBuffer>;
  /** [64]: class numbers. */
  readonly labels: readonly number[];
  /** [out, in, 3, 3] each. */
  readonly filters: readonly Float32Array<ArrayBuffer>[];
  /** [classes, features] */
  readonly linear: Float32Array<ArrayBuffer>;
}

/** The small CNN before its first step (weights as He et al. 2015, but uniform). */
export function smallCnn(): SmallCnn {
  const { size, classes, layers } = SMALL_CNN;
  const features = layers[2].outChannels;
  return {
    images: inputs(BATCH * 3 * size ** 2, 10),
    labels: Array.from({ length: BATCH }, (_, image) => image % classes),
    filters: layers.map(({ inChannels, outChannels }, i) =>
      inputs(9 * inChannels * outChannels, 11 + i, Math.sqrt(6 / (9 * inChannels)))
    ),
    linear: inputs(classes * features, 14, Math.sqrt(6 / features)),
  };
}

/**
 * Reorders axes.
 *
 * @param data elements in C order
 * @param shape their shape
 * @param order which axis of `shape` each axis of the result is
 * @returns the elements in C order of the new shape
 */
export function transpose(
  data: Float32Array,
  shape: readonly number[],
  order: readonly number[],
): Float32Array<ArrayBuffer> {
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((size, n) => size * n, 1));
  const result = new Float32Array(data.length);
  const index = order.map(() => 0);
  for (let to = 0; to < data.length; to++) {
    let from = 0;
    for (let axis = 0; axis < order.length; axis++) from += index[axis]! * strides[order[axis]!]!;
    result[to] = data[from]!;
    for (let axis = order.length - 1; ++index[axis]! === shape[order[axis]!]!; axis--) {
      if (axis === 0) break;
      index[axis] = 0;
    }
  }
  return result;
}

/** Orders for {@linkcode transpose}: channels first to channels last, and back. */
export const NCHW_TO_NHWC: readonly number[] = [0, 2, 3, 1];
/** See {@linkcode NCHW_TO_NHWC}. */
export const NHWC_TO_NCHW: readonly number[] = [0, 3, 1, 2];
