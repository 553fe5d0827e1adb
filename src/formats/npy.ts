// NumPy's .npy files, versions 1 to 3 (numpy/lib/format.py), read strictly: no pickles, no structured types, and the
// shape must fill the file exactly. Fortran order and big-endian files become C order; float16 becomes float32.
import { type DType, type NdArray, ndArray, transpose } from "../core/nd_array.ts";
import { BYTES_PER_ELEMENT, decodedDType, decodeElements, encodeElements } from "./elements.ts";
import type { ElementType } from "./elements.ts";
import { parsePythonLiteral, type PythonLiteral } from "./python_literal.ts";
import { BoundedReader, checkedSize, decodeUtf8, quoteName } from "./untrusted.ts";

const MAGIC = "\x93NUMPY";

/** NumPy's own limit is 10,000 characters; a shape of 32 axes needs fewer than 1,000. */
const MAX_HEADER_BYTES = 10_000;

/** NumPy's limit on axes. */
const MAX_RANK = 64;

/**
 * Decodes a .npy file.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @returns the array in C order; the data is a copy
 * @throws FormatError when the bytes are not exactly one array of a supported element type
 */
export function decodeNpy(bytes: Uint8Array, path: string): NdArray {
  const reader = new BoundedReader(bytes, path, { littleEndian: true });
  const magic = String.fromCharCode(...reader.take(6, "npy magic"));
  if (magic !== MAGIC) {
    throw reader.error(`found ${quoteName(magic)}, expected the npy magic "\\x93NUMPY"`, 0);
  }
  const version = reader.uint8("npy version");
  reader.uint8("npy minor version");
  if (version < 1 || version > 3) throw reader.error(`npy version ${version}, expected 1 to 3`, 6);
  const headerSize = version === 1 ? reader.uint16("header size") : reader.uint32("header size");
  if (headerSize > MAX_HEADER_BYTES) {
    throw reader.error(`header of ${headerSize} bytes, expected at most ${MAX_HEADER_BYTES}`, 8);
  }
  const start = reader.offset;
  const headerError = (detail: string) => reader.error(detail, start);
  const headerBytes = reader.take(headerSize, "npy header");
  const text = version === 3
    ? decodeUtf8(headerBytes, headerError)
    : String.fromCharCode(...headerBytes);
  const header = parsePythonLiteral(text, (detail, at) => reader.error(detail, start + at));
  const { type, littleEndian, fortranOrder, shape } = readHeader(header, headerError);

  const size = checkedSize(shape, BYTES_PER_ELEMENT[type], reader.remaining, headerError);
  const dataStart = reader.offset;
  const raw = reader.take(size * BYTES_PER_ELEMENT[type], "npy data");
  reader.end();
  if (type === "bool") {
    const bad = raw.findIndex((byte) => byte > 1);
    if (bad >= 0) throw reader.error(`bool is ${raw[bad]}, expected 0 or 1`, dataStart + bad);
  }
  const data = decodeElements(raw, type, { littleEndian });
  const dtype = decodedDType(type);
  if (!fortranOrder || shape.length < 2) return ndArray(dtype, shape, data);
  // Fortran order is C order of the reversed shape.
  const axes = shape.map((_, axis) => shape.length - 1 - axis);
  return transpose(ndArray(dtype, shape.toReversed(), data), axes);
}

/**
 * Encodes an array as a version 1 .npy file, byte for byte what NumPy writes.
 *
 * @param array any array
 * @returns the file
 */
export function encodeNpy(array: NdArray): Uint8Array<ArrayBuffer> {
  const { shape } = array;
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
  const dictionary = `{'descr': '${
    DESCRS[array.dtype]
  }', 'fortran_order': False, 'shape': ${tuple}, }`;
  // NumPy leaves room for the first size to grow to 21 digits, then pads so that the data is aligned to 64 bytes.
  const growth = shape.length > 0 ? 21 - String(shape[0]).length : 0;
  const unpadded = 10 + dictionary.length + growth + 1;
  const padding = growth + (64 - unpadded % 64);
  const header = `${dictionary}${" ".repeat(padding)}\n`;
  const payload = encodeElements(array.data);
  const file = new Uint8Array(10 + header.length + payload.length);
  file.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  file.set(new TextEncoder().encode(header), 10);
  file.set(payload, 10 + header.length);
  return file;
}

interface NpyHeader {
  readonly type: ElementType;
  readonly littleEndian: boolean;
  readonly fortranOrder: boolean;
  readonly shape: number[];
}

function readHeader(header: PythonLiteral, error: (detail: string) => Error): NpyHeader {
  const keys = ["descr", "fortran_order", "shape"];
  if (!(header instanceof Map) || [...header.keys()].sort().join() !== keys.join()) {
    throw error(`the header must be a dictionary of exactly ${keys.join(", ")}`);
  }
  const descr = header.get("descr");
  if (Array.isArray(descr)) {
    throw error("the array is structured (has named fields), expected plain numbers");
  }
  if (typeof descr !== "string") throw error("descr must be a string");
  const [, order, code] = /^([<>|=]?)([a-zA-Z]\d*)$/.exec(descr) ?? [];
  if (code?.startsWith("O")) {
    throw error("the array holds Python objects (a pickle), which are never loaded");
  }
  const type = ELEMENT_TYPES.get(code ?? "");
  if (type === undefined) {
    throw error(
      `element type ${quoteName(descr)}, expected one of ${[...ELEMENT_TYPES.keys()].join(", ")}`,
    );
  }
  const fortranOrder = header.get("fortran_order");
  if (typeof fortranOrder !== "boolean") throw error("fortran_order must be True or False");
  const shape = header.get("shape");
  if (!Array.isArray(shape) || !shape.every((size) => typeof size === "number")) {
    throw error("shape must be a tuple of integers from 0 to 2^53 - 1");
  }
  if (shape.length > MAX_RANK) throw error(`${shape.length} axes, expected at most ${MAX_RANK}`);
  // The check above leaves only numbers in the array.
  return { type, littleEndian: order !== ">", fortranOrder, shape: shape as number[] };
}

const DESCRS: Readonly<Record<DType, string>> = {
  float32: "<f4",
  float64: "<f8",
  int8: "|i1",
  uint8: "|u1",
  int16: "<i2",
  uint16: "<u2",
  int32: "<i4",
  uint32: "<u4",
  int64: "<i8",
  bool: "|b1",
};

const ELEMENT_TYPES: ReadonlyMap<string, ElementType> = new Map<string, ElementType>([
  ["f2", "float16"],
  ["f4", "float32"],
  ["f8", "float64"],
  ["i1", "int8"],
  ["u1", "uint8"],
  ["i2", "int16"],
  ["u2", "uint16"],
  ["i4", "int32"],
  ["u4", "uint32"],
  ["i8", "int64"],
  ["b1", "bool"],
]);
