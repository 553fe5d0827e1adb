// A float32 (or raw 32-bit word) array on the GPU, in the physical layout of kernels/kernel.ts. It holds no gradient.
import { paddedSize } from "../../kernels/kernel.ts";

/** A tensor on the GPU: a range of a buffer with a shape. */
export interface Tensor {
  /** Logical shape, channels last. */
  readonly shape: readonly number[];
  /** Buffer that may hold other tensors, too. */
  readonly buffer: GPUBuffer;
  /** Start in bytes; a multiple of 256. */
  readonly offset: number;
  /** Length in bytes. */
  readonly byteLength: number;
  /** Name for messages. */
  readonly label: string;
}

/** Offsets of storage bindings must be multiples of this (WebGPU's default limit). */
export const BINDING_ALIGNMENT = 256;

/**
 * The same bytes under another shape whose elements, in C order, lie at the same places.
 *
 * @param tensor any tensor
 * @param shape a shape of the same size and the same channels, unless both have no padded channels
 * @returns a tensor on the same buffer
 * @throws RangeError when elements would have to move
 */
export function reshape(tensor: Tensor, shape: readonly number[]): Tensor {
  const size = (sizes: readonly number[]) => sizes.reduce((product, n) => product * n, 1);
  const from = tensor.shape.at(-1) ?? 1, to = shape.at(-1) ?? 1;
  const inPlace = from === to || (from % 4 === 0 && to % 4 === 0);
  if (!inPlace || size(shape) !== size(tensor.shape)) {
    throw new RangeError(
      `Cannot reshape "${tensor.label}" from [${tensor.shape.join(", ")}] to [${
        shape.join(", ")
      }]: the elements would have to move`,
    );
  }
  return { ...tensor, shape: [...shape] };
}

/**
 * A part of a tensor's buffer as a tensor of its own.
 *
 * @param tensor the whole
 * @param start first float, a multiple of 64
 * @param shape shape of the part
 * @param label name for messages
 * @returns a tensor on the same buffer
 */
export function view(
  tensor: Tensor,
  start: number,
  shape: readonly number[],
  label: string,
): Tensor {
  const byteLength = paddedSize(shape) * 4;
  const offset = tensor.offset + start * 4;
  if (offset % BINDING_ALIGNMENT !== 0 || start * 4 + byteLength > tensor.byteLength) {
    throw new RangeError(
      `Cannot view "${label}" at float ${start} of "${tensor.label}": not aligned or past its end`,
    );
  }
  return { shape: [...shape], buffer: tensor.buffer, offset, byteLength, label };
}

/** Copies logical data into the padded layout. */
export function pad(
  shape: readonly number[],
  data: ArrayLike<number>,
): Float32Array<ArrayBuffer> {
  const channels = shape.at(-1) ?? 1;
  const rows = channels === 0 ? 0 : data.length / channels;
  const result = new Float32Array(paddedSize(shape));
  const stride = rows === 0 ? 0 : result.length / rows;
  if (stride === channels) {
    result.set(data as ArrayLike<number>);
    return result;
  }
  for (let row = 0; row < rows; row++) {
    for (let c = 0; c < channels; c++) result[row * stride + c] = data[row * channels + c]!;
  }
  return result;
}

/** Copies padded data into logical order. */
export function unpad(
  shape: readonly number[],
  raw: Float32Array<ArrayBuffer>,
): Float32Array<ArrayBuffer> {
  const channels = shape.at(-1) ?? 1;
  const size = shape.reduce((product, n) => product * n, 1);
  const rows = channels === 0 ? 0 : size / channels;
  const stride = rows === 0 ? 0 : paddedSize(shape) / rows;
  if (stride === channels) return raw.slice(0, size);
  const result = new Float32Array(size);
  for (let row = 0; row < rows; row++) {
    result.set(raw.subarray(row * stride, row * stride + channels), row * channels);
  }
  return result;
}
