// TensorProto <-> NdArray: raw_data and the typed fields (onnx.proto, message TensorProto). float16 and bfloat16 become
// float32; everything is written as raw_data.
import { create } from "@bufbuild/protobuf";
import { type TensorProto, TensorProto_DataType, TensorProtoSchema } from "onnx-buf";
import {
  type DType,
  type NdArray,
  ndArray,
  TYPED_ARRAYS,
  type TypedArrays,
} from "../core/nd_array.ts";
import {
  BYTES_PER_ELEMENT,
  decodedDType,
  decodeElements,
  type ElementType,
  encodeElements,
  findNonFinite,
} from "./elements.ts";
import { checkedSize } from "./untrusted.ts";

/** The ONNX type of each dtype. */
export const ONNX_TYPES: Readonly<Record<DType, TensorProto_DataType>> = {
  float32: TensorProto_DataType.FLOAT,
  float64: TensorProto_DataType.DOUBLE,
  int8: TensorProto_DataType.INT8,
  uint8: TensorProto_DataType.UINT8,
  int16: TensorProto_DataType.INT16,
  uint16: TensorProto_DataType.UINT16,
  int32: TensorProto_DataType.INT32,
  uint32: TensorProto_DataType.UINT32,
  int64: TensorProto_DataType.INT64,
  bool: TensorProto_DataType.BOOL,
};

/**
 * The element type of an ONNX type.
 *
 * @param dataType number from the file
 * @param error makes the error of the place
 * @returns the element type
 * @throws what `error` makes, for types stilla does not read
 */
export function readElementType(
  dataType: number,
  error: (detail: string) => Error,
): ElementType {
  const type = ELEMENT_TYPES.get(dataType);
  if (type === undefined) {
    throw error(
      `element type ${TensorProto_DataType[dataType] ?? dataType}, expected one of ` +
        [...ELEMENT_TYPES.keys()].map((known) => TensorProto_DataType[known]).join(", "),
    );
  }
  return type;
}

/**
 * Decodes a tensor and checks it.
 *
 * @param tensor as in the file
 * @param error makes the error of the place
 * @returns the array; the data is a copy, INT4 becomes int8
 * @throws what `error` makes: external data, unsupported type, shape and data that differ, NaN, or infinity in anything
 *   but a scalar (a scalar may be the open bound of a Clip)
 */
export function decodeTensor(tensor: TensorProto, error: (detail: string) => Error): NdArray {
  if (tensor.dataLocation !== 0 || tensor.externalData.length > 0) {
    throw error("the data is in another file (external data), save the model as one file");
  }
  if (tensor.segment !== undefined) {
    throw error("the tensor is in segments, which is not supported");
  }
  if (tensor.dataType === TensorProto_DataType.INT4) return decodeInt4(tensor, error);
  const type = readElementType(tensor.dataType, error);
  const data = tensor.rawData.length > 0
    ? decodeRaw(tensor, type, error)
    : decodeTyped(tensor, type, error);
  const shape = tensor.dims.map(Number);
  const bad = findNonFinite(data);
  if (bad >= 0 && (shape.length > 0 || Number.isNaN(data[bad]))) {
    throw error(`element ${bad} is ${data[bad]}, expected finite numbers`);
  }
  return ndArray(decodedDType(type), shape, data);
}

/**
 * Encodes integers from -8 to 7 as INT4, two a byte, the first in the low half.
 *
 * @param name name of the tensor
 * @param array the integers
 * @returns the message
 */
export function encodeInt4Tensor(name: string, { shape, data }: NdArray<"int8">): TensorProto {
  const rawData = new Uint8Array(Math.ceil(data.length / 2));
  data.forEach((value, i) => rawData[i >> 1]! |= (value & 15) << (4 * (i & 1)));
  const dims = shape.map(BigInt);
  return create(TensorProtoSchema, { name, dims, dataType: TensorProto_DataType.INT4, rawData });
}

/**
 * Encodes an array.
 *
 * @param name name of the tensor
 * @param array any array
 * @returns the message
 */
export function encodeTensor(name: string, array: NdArray): TensorProto {
  return create(TensorProtoSchema, {
    name,
    dims: array.shape.map(BigInt),
    dataType: ONNX_TYPES[array.dtype],
    rawData: encodeElements(array.data),
  });
}

/** INT4 becomes int8. */
function decodeInt4(
  { dims, rawData, int32Data }: TensorProto,
  error: (detail: string) => Error,
): NdArray<"int8"> {
  // int32_data holds the same bytes, one a number.
  const bytes = rawData.length > 0 ? rawData : Uint8Array.from(inRange(int32Data, 0, 255, error));
  const wrong = () =>
    error(`shape [${dims.join(", ")}] does not go with ${bytes.length} bytes of two int4 each`);
  const size = checkedSize(dims, 1, 2 * bytes.length, wrong);
  if (Math.ceil(size / 2) !== bytes.length) throw wrong();
  // Shifted to the top of 32 bits and back, so that the sign is kept.
  const data = Int8Array.from({ length: size }, (_, i) => {
    return bytes[i >> 1]! << (i % 2 === 0 ? 28 : 24) >> 28;
  });
  return ndArray("int8", dims.map(Number), data);
}

function decodeRaw(
  tensor: TensorProto,
  type: ElementType,
  error: (detail: string) => Error,
): TypedArrays[DType] {
  const { rawData } = tensor;
  const size = checkedSize(tensor.dims, BYTES_PER_ELEMENT[type], rawData.length, error);
  if (size * BYTES_PER_ELEMENT[type] !== rawData.length) {
    throw error(
      `shape [${tensor.dims.join(", ")}] needs ${size * BYTES_PER_ELEMENT[type]} bytes, ` +
        `raw_data has ${rawData.length}`,
    );
  }
  if (type === "bool") {
    const bad = rawData.findIndex((byte) => byte > 1);
    if (bad >= 0) throw error(`bool ${bad} is ${rawData[bad]}, expected 0 or 1`);
  }
  return decodeElements(rawData, type);
}

function decodeTyped(
  tensor: TensorProto,
  type: ElementType,
  error: (detail: string) => Error,
): TypedArrays[DType] {
  const [field, values] = typedField(tensor, type);
  const size = checkedSize(tensor.dims, 1, values.length, error);
  if (size !== values.length) {
    throw error(
      `shape [${tensor.dims.join(", ")}] needs ${size} elements, ${field} has ${values.length}`,
    );
  }
  if (type === "float16" || type === "bfloat16") {
    // int32_data holds the 16 bits of each number.
    const halves = Uint16Array.from(inRange(values, 0, 0xffff, error));
    return decodeElements(new Uint8Array(halves.buffer), type);
  }
  if (type === "int64") return BigInt64Array.from(values as readonly bigint[]);
  if (type === "float32" || type === "float64") {
    return TYPED_ARRAYS[type].from(values as readonly number[]);
  }
  const bits = BYTES_PER_ELEMENT[type] * 8;
  const isSigned = type.startsWith("int");
  const lowest = isSigned ? -(2 ** (bits - 1)) : 0;
  const highest = type === "bool" ? 1 : 2 ** (isSigned ? bits - 1 : bits) - 1;
  return TYPED_ARRAYS[type].from(inRange(values, lowest, highest, error));
}

function typedField(
  tensor: TensorProto,
  type: ElementType,
): [name: string, values: readonly (number | bigint)[]] {
  if (type === "float32") return ["float_data", tensor.floatData];
  if (type === "float64") return ["double_data", tensor.doubleData];
  if (type === "int64") return ["int64_data", tensor.int64Data];
  if (type === "uint32") return ["uint64_data", tensor.uint64Data];
  return ["int32_data", tensor.int32Data];
}

function inRange(
  values: readonly (number | bigint)[],
  lowest: number,
  highest: number,
  error: (detail: string) => Error,
): number[] {
  return values.map((value, i) => {
    if (value < lowest || value > highest) {
      throw error(`element ${i} is ${value}, expected ${lowest} to ${highest}`);
    }
    return Number(value);
  });
}

const ELEMENT_TYPES: ReadonlyMap<number, ElementType> = new Map<number, ElementType>([
  ...(Object.entries(ONNX_TYPES) as [DType, number][]).map(([dtype, type]) =>
    [type, dtype] as [number, ElementType]
  ),
  [TensorProto_DataType.FLOAT16, "float16"],
  [TensorProto_DataType.BFLOAT16, "bfloat16"],
]);
