// Raw bytes <-> typed arrays: the element types of npy, idx, safetensors and ONNX, either byte order. The two 16-bit
// float types have no typed array everywhere, so they are widened to float32, which holds them exactly.
import { type DType, TYPED_ARRAYS, type TypedArrays } from "../core/nd_array.ts";

/** Element types a file may hold; the last two become float32. */
export type ElementType = DType | "float16" | "bfloat16";

/** Bytes of one element. */
export const BYTES_PER_ELEMENT: Readonly<Record<ElementType, number>> = {
  float64: 8,
  float32: 4,
  float16: 2,
  bfloat16: 2,
  int64: 8,
  int32: 4,
  uint32: 4,
  int16: 2,
  uint16: 2,
  int8: 1,
  uint8: 1,
  bool: 1,
};

/**
 * The dtype an element type has once decoded.
 *
 * @param type element type of a file
 * @returns float32 for the 16-bit floats, else the type itself
 */
export function decodedDType(type: ElementType): DType {
  return type === "float16" || type === "bfloat16" ? "float32" : type;
}

/** Options of {@linkcode decodeElements}. */
export interface DecodeElementsOptions {
  readonly littleEndian?: boolean;
}

/**
 * Copies raw bytes into a typed array of their own.
 *
 * @param bytes a whole number of elements, at any alignment
 * @param type what they are
 * @param options byte order, little-endian by default
 * @returns the elements, of dtype `decodedDType(type)`
 */
export function decodeElements(
  bytes: Uint8Array,
  type: ElementType,
  { littleEndian = true }: DecodeElementsOptions = {},
): TypedArrays[DType] {
  const size = BYTES_PER_ELEMENT[type];
  const copy = new Uint8Array(bytes.length);
  copy.set(bytes);
  if (!littleEndian && size > 1) swapBytes(copy, size);
  if (type === "float16") return Float32Array.from(new Uint16Array(copy.buffer), halfToNumber);
  if (type === "bfloat16") {
    const words = Uint32Array.from(new Uint16Array(copy.buffer), (half) => half << 16);
    return new Float32Array(words.buffer);
  }
  return new TYPED_ARRAYS[type](copy.buffer);
}

/**
 * The bytes of a typed array, little-endian.
 *
 * @param data any typed array
 * @returns a copy of its bytes
 */
export function encodeElements(data: TypedArrays[DType]): Uint8Array<ArrayBuffer> {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
}

/**
 * The value of an IEEE 754 half.
 *
 * @param half its 16 bits
 * @returns the same number
 */
export function halfToNumber(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/**
 * The first element that is NaN or infinite.
 *
 * @param data any typed array
 * @returns its index, -1 when all are finite or the elements are integers
 */
export function findNonFinite(data: TypedArrays[DType]): number {
  if (!(data instanceof Float32Array || data instanceof Float64Array)) return -1;
  for (let i = 0; i < data.length; i++) {
    if (!Number.isFinite(data[i])) return i;
  }
  return -1;
}

function swapBytes(bytes: Uint8Array, size: number): void {
  for (let from = 0; from < bytes.length; from += size) {
    bytes.subarray(from, from + size).reverse();
  }
}
