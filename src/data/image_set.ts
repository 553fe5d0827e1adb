// What the user's arrays mean: which axis is the channel, and how a stored pixel becomes a number of the network.
import { FormatError } from "../core/errors.ts";
import { type NdArray, sizeOf, type TypedArrays } from "../core/nd_array.ts";
import { findNonFinite } from "../formats/elements.ts";
import type { Graph } from "../graph/graph.ts";

/** Element types an input array may have. */
export type PixelType = "uint8" | "int8" | "float32";

/** Inputs of a network as the user stored them; nothing is converted before {@linkcode normalize}. */
export interface ImageSet {
  /** Whether the rows are steps of a sequence. */
  readonly isSequence?: boolean;
  /** Number of inputs. */
  readonly count: number;
  /** Rows of one input. */
  readonly height: number;
  /** Columns of one input. */
  readonly width: number;
  /** Channels of one input. */
  readonly channels: number;
  /** Order of the axes of `data`. */
  readonly layout: "NCHW" | "NHWC";
  /** Element type of `data`. */
  readonly dtype: PixelType;
  /** The elements as stored, C order. */
  readonly data: TypedArrays[PixelType];
}

/** Size of one input of a network; `null` where the network leaves it open. */
export interface InputSize {
  /** Whether it is a sequence of `height` steps, which are no pixels: stored as [N, steps, features]. */
  readonly isSequence?: boolean;
  readonly channels: number | null;
  readonly height: number | null;
  readonly width: number | null;
}

/** How a stored value becomes a number of the network: (value * scale - mean) / std. */
export interface Normalization {
  /** One number, or one a channel. */
  readonly mean: readonly number[];
  /** One number, or one a channel. */
  readonly std: readonly number[];
  /** `null` = 1/255 for uint8, 1 for the others. */
  readonly scale: number | null;
}

/**
 * The size of one input, read from the network's only input.
 *
 * @param graph the network; its input is [N, C, H, W], [N, steps, features] or [N, features]
 * @param path file the network came from, for the error
 * @returns channels, height and width; features count as channels of a 1 x 1 image, steps as its height
 * @throws FormatError when the network has more than one input or one of another rank
 */
export function inputSizeOf(graph: Graph, path: string): InputSize {
  const [input, second] = graph.inputs;
  if (input === undefined || second !== undefined) {
    const found = graph.inputs.length;
    throw new FormatError(path, "inputs", `found ${found} network inputs, expected 1`);
  }
  const sizes = input.shape.map((size) => typeof size === "number" && size > 0 ? size : null);
  if (sizes.length === 2) return { channels: sizes[1] ?? null, height: 1, width: 1 };
  if (sizes.length === 3) {
    return { channels: sizes[2] ?? null, height: sizes[1] ?? null, width: 1, isSequence: true };
  }
  if (sizes.length === 4) {
    return { channels: sizes[1] ?? null, height: sizes[2] ?? null, width: sizes[3] ?? null };
  }
  throw new FormatError(
    path,
    `input "${input.name}"`,
    `found shape [${
      input.shape.join(", ")
    }], expected [N, C, H, W], [N, steps, features] or [N, features]`,
  );
}

/**
 * Recognises what an array of inputs holds: channels first or last, by the size the network wants. Where both fit,
 * channels first, as in ONNX.
 *
 * @param array [N, C, H, W], [N, H, W, C], [N, H, W] for one channel, [N, steps, features] or [N, features]
 * @param expected size of one input
 * @param path file the array came from, for the error
 * @returns the same data with its meaning
 * @throws FormatError when dtype, rank or size do not fit, the array is empty, or it holds NaN or infinity
 */
export function recogniseImages(array: NdArray, expected: InputSize, path: string): ImageSet {
  const { dtype, shape, data } = array;
  if (dtype !== "uint8" && dtype !== "int8" && dtype !== "float32") {
    throw new FormatError(path, "dtype", `found ${dtype}, expected uint8, int8 or float32`);
  }
  const [count = 0, ...sizes] = shape;
  const axes = threeAxes(sizes, expected);
  const layout = expected.isSequence ? sequenceLayout(sizes, expected) : layoutOf(sizes, expected);
  if (layout === undefined) {
    throw new FormatError(
      path,
      "shape",
      `found [${shape.join(", ")}], expected ${expectedShapes(expected)}`,
    );
  }
  if (sizeOf(shape) === 0) {
    throw new FormatError(path, "shape", `found [${shape.join(", ")}], expected at least 1 input`);
  }
  if (dtype === "float32") checkFinite(data as TypedArrays["float32"], data.length / count, path);
  const [a, b, c] = axes;
  const [channels, height, width] = layout === "NCHW" ? [a, b, c] : [c, a, b];
  // The dtype was checked above, so `data` is one of the three.
  const { isSequence } = expected;
  return {
    ...(isSequence && { isSequence }),
    count,
    height,
    width,
    channels,
    layout,
    dtype,
    data: data as ImageSet["data"],
  };
}

/**
 * What was recognised, for the user to see.
 *
 * @param set the inputs
 * @returns for example `10000 inputs of 3 x 32 x 32, uint8, channels first (NCHW)`, or
 * `1000 sequences of 64 steps of 108 features, float32`
 */
export function describeImages(set: ImageSet): string {
  const { count, channels, height, width, dtype, layout } = set;
  if (set.isSequence) {
    return `${count} sequences of ${height} steps of ${channels} features, ${dtype}`;
  }
  const order = layout === "NCHW" ? "channels first" : "channels last";
  return `${count} inputs of ${channels} x ${height} x ${width}, ${dtype}, ${order} (${layout})`;
}

/**
 * The chosen inputs as numbers of the network, channels last.
 *
 * @param set the inputs
 * @param indices which of them, in this order
 * @param normalization how a stored value becomes a number
 * @returns [indices.length, height, width, channels]
 * @throws RangeError when an index, or the number of means or deviations, does not fit
 */
export function normalize(
  set: ImageSet,
  indices: ArrayLike<number>,
  normalization: Normalization,
): Float32Array<ArrayBuffer> {
  const { channels, data, dtype } = set;
  const pixels = set.height * set.width;
  const scale = normalization.scale ?? (dtype === "uint8" ? 1 / 255 : 1);
  const mean = perChannel(normalization.mean, channels, "mean");
  const std = perChannel(normalization.std, channels, "std");
  const [pixelStep, channelStep] = set.layout === "NCHW" ? [1, pixels] : [channels, 1];
  const rows = new Float32Array(indices.length * pixels * channels);
  for (let row = 0; row < indices.length; row++) {
    const index = indices[row]!;
    if (!(index >= 0 && index < set.count)) {
      throw new RangeError(`Cannot take input ${index}: the set has ${set.count}`);
    }
    for (let channel = 0; channel < channels; channel++) {
      // Affine in the stored value, in float64, rounded to float32 once.
      const factor = scale / std[channel]!;
      const offset = -mean[channel]! / std[channel]!;
      let from = index * pixels * channels + channel * channelStep;
      let to = row * pixels * channels + channel;
      for (let pixel = 0; pixel < pixels; pixel++) {
        rows[to] = data[from]! * factor + offset;
        from += pixelStep;
        to += channels;
      }
    }
  }
  return rows;
}

/**
 * Checks that the normalization's lists fit the network, before any work is done.
 *
 * @param normalization the lists
 * @param channels channels of the inputs
 * @throws RangeError naming the list that has neither one number nor one a channel
 */
export function checkNormalization(normalization: Normalization, channels: number): void {
  perChannel(normalization.mean, channels, "mean");
  perChannel(normalization.std, channels, "std");
}

function perChannel(values: readonly number[], channels: number, name: string): readonly number[] {
  if (values.length === channels) return values;
  const [only] = values;
  if (values.length === 1 && only !== undefined) return new Array<number>(channels).fill(only);
  throw new RangeError(
    `${name}: found ${values.length} numbers, expected 1 or one for each of the ${channels} channels`,
  );
}

/** [steps, features] are the rows and channels of an image of one column. */
function sequenceLayout(sizes: readonly number[], expected: InputSize): "NHWC" | undefined {
  const [steps = 0, features = 0] = sizes;
  return sizes.length === 2 && fits([features, steps, 1], expected) ? "NHWC" : undefined;
}

function layoutOf(sizes: readonly number[], expected: InputSize): ImageSet["layout"] | undefined {
  if (sizes.length === 1) {
    // Features: a 1 x 1 image.
    return fits([sizes[0]!, 1, 1], expected) && expected.height === 1 ? "NCHW" : undefined;
  }
  if (sizes.length === 2) {
    return expected.channels === 1 && fits([1, sizes[0]!, sizes[1]!], expected)
      ? "NCHW"
      : undefined;
  }
  if (sizes.length !== 3) return undefined;
  const [a, b, c] = threeAxes(sizes, expected);
  if (fits([a, b, c], expected)) return "NCHW";
  return fits([c, a, b], expected) ? "NHWC" : undefined;
}

/** Sizes of one stored input as three axes; a missing channel or missing 1 x 1 image is written out. */
function threeAxes(
  sizes: readonly number[],
  { isSequence = false }: InputSize,
): [number, number, number] {
  if (isSequence) return [sizes[0]!, 1, sizes[1]!];
  if (sizes.length === 1) return [sizes[0]!, 1, 1];
  if (sizes.length === 2) return [1, sizes[0]!, sizes[1]!];
  return [sizes[0]!, sizes[1]!, sizes[2]!];
}

function fits(sizes: readonly [number, number, number], expected: InputSize): boolean {
  const wanted = [expected.channels, expected.height, expected.width];
  return sizes.every((size, axis) => wanted[axis] === null || wanted[axis] === size);
}

function expectedShapes({ channels, height, width, isSequence }: InputSize): string {
  const [c, h, w] = [channels ?? "C", height ?? "H", width ?? "W"];
  if (isSequence) return `[N, ${h}, ${c}]`;
  if (height === 1 && width === 1) return `[N, ${c}]`;
  const shapes = [`[N, ${c}, ${h}, ${w}]`, `[N, ${h}, ${w}, ${c}]`];
  if (channels === 1) shapes.push(`[N, ${h}, ${w}]`);
  return shapes.join(" or ");
}

function checkFinite(data: Float32Array<ArrayBuffer>, inputSize: number, path: string): void {
  const at = findNonFinite(data);
  if (at < 0) return;
  const input = Math.floor(at / inputSize);
  throw new FormatError(path, `input ${input}`, `found ${data[at]}, expected finite numbers`);
}
