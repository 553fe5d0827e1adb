// The host's array: dtype, shape and a typed array in C order. It holds no gradient and no GPU buffer.

/** Element types stilla reads and writes; the names are NumPy's. */
export type DType =
  | "float32"
  | "float64"
  | "int8"
  | "uint8"
  | "int16"
  | "uint16"
  | "int32"
  | "uint32"
  | "int64"
  | "bool";

/** Typed array of each {@linkcode DType}. `bool` is one byte an element, 0 or 1. */
export interface TypedArrays {
  /** IEEE 754 single precision. */
  float32: Float32Array<ArrayBuffer>;
  /** IEEE 754 double precision. */
  float64: Float64Array<ArrayBuffer>;
  /** -128 to 127. */
  int8: Int8Array<ArrayBuffer>;
  /** 0 to 255. */
  uint8: Uint8Array<ArrayBuffer>;
  /** 16 bits, signed. */
  int16: Int16Array<ArrayBuffer>;
  /** 16 bits, unsigned. */
  uint16: Uint16Array<ArrayBuffer>;
  /** 32 bits, signed. */
  int32: Int32Array<ArrayBuffer>;
  /** 32 bits, unsigned. */
  uint32: Uint32Array<ArrayBuffer>;
  /** 64 bits, signed, as bigint. */
  int64: BigInt64Array<ArrayBuffer>;
  /** 0 or 1. */
  bool: Uint8Array<ArrayBuffer>;
}

/** An n-dimensional array on the host, C order. */
export interface NdArray<T extends DType = DType> {
  /** Element type. */
  readonly dtype: T;
  /** Sizes of the axes, outermost first; [] for a scalar. */
  readonly shape: readonly number[];
  /** The elements; the last axis varies fastest. */
  readonly data: TypedArrays[T];
}

/** The typed-array constructor of each dtype. */
export const TYPED_ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  bool: Uint8Array,
} as const;

/**
 * Makes an array and checks that the data fills the shape.
 *
 * @param dtype element type
 * @param shape sizes, outermost first; `[]` is a scalar
 * @param data the elements in C order
 * @returns the array (the data is not copied)
 * @throws RangeError when the shape and the data's length differ
 */
export function ndArray<T extends DType>(
  dtype: T,
  shape: readonly number[],
  data: TypedArrays[T],
): NdArray<T> {
  const size = sizeOf(shape);
  if (size !== data.length) {
    throw new RangeError(
      `Cannot make an array of shape [${
        shape.join(", ")
      }]: it needs ${size} elements, got ${data.length}`,
    );
  }
  return { dtype, shape: [...shape], data };
}

/**
 * Number of elements of a shape.
 *
 * @param shape sizes
 * @returns their product, 1 for a scalar
 */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/**
 * The elements as float32 (a copy unless the array already is float32).
 *
 * @param array any array
 * @returns its elements; int64 is rounded to the nearest float32
 */
export function toFloat32(array: NdArray): Float32Array<ArrayBuffer> {
  if (array.dtype === "float32") return array.data as Float32Array<ArrayBuffer>;
  if (array.dtype === "int64") {
    return Float32Array.from(array.data as BigInt64Array, Number);
  }
  return Float32Array.from(array.data as Exclude<TypedArrays[DType], BigInt64Array>);
}

/**
 * Permutes the axes, copying: `transpose(x, [0, 2, 3, 1])` turns channels-first into channels-last.
 *
 * @param array any array
 * @param permutation `result.shape[i] = array.shape[permutation[i]]`
 * @returns a new array
 * @throws RangeError when `permutation` does not name every axis once
 */
export function transpose<T extends DType>(
  array: NdArray<T>,
  permutation: readonly number[],
): NdArray<T> {
  const rank = array.shape.length;
  if (
    permutation.length !== rank || new Set(permutation).size !== rank ||
    permutation.some((axis) => !(axis >= 0 && axis < rank))
  ) {
    throw new RangeError(`Cannot transpose rank ${rank} by [${permutation.join(", ")}]`);
  }
  const strides = stridesOf(array.shape);
  const shape = permutation.map((axis) => array.shape[axis]!);
  const steps = permutation.map((axis) => strides[axis]!);
  const source = array.data as ArrayLike<unknown> & { length: number };
  const data = new TYPED_ARRAYS[array.dtype](source.length) as TypedArrays[T];
  const target = data as unknown as unknown[];
  const index = new Array<number>(rank).fill(0);
  let from = 0;
  for (let to = 0; to < source.length; to++) {
    target[to] = source[from];
    for (let axis = rank - 1; axis >= 0; axis--) {
      from += steps[axis]!;
      if (++index[axis]! < shape[axis]!) break;
      from -= steps[axis]! * shape[axis]!;
      index[axis] = 0;
    }
  }
  return { dtype: array.dtype, shape, data };
}

/**
 * Strides in elements of a C-order array.
 *
 * @param shape sizes
 * @returns one stride an axis
 */
export function stridesOf(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length).fill(1);
  for (let axis = shape.length - 2; axis >= 0; axis--) {
    strides[axis] = strides[axis + 1]! * shape[axis + 1]!;
  }
  return strides;
}
