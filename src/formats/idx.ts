// The idx files of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist): big-endian, plain or gzipped.
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { BYTES_PER_ELEMENT, decodedDType, decodeElements, type ElementType } from "./elements.ts";
import { gunzip } from "./inflate.ts";
import { BoundedReader, checkedSize } from "./untrusted.ts";

/** Options of {@linkcode decodeIdx}. */
export interface DecodeIdxOptions {
  /** Cap on what a gzipped file may inflate to, in bytes; 1 GiB by default. */
  readonly maxBytes?: number;
}

/**
 * Decodes an idx file, gunzipping it first when it begins as a gzip file.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @param options cap on the inflated size
 * @returns the array
 * @throws FormatError when the bytes are not exactly one idx array
 */
export function decodeIdx(
  bytes: Uint8Array,
  path: string,
  { maxBytes = 2 ** 30 }: DecodeIdxOptions = {},
): NdArray {
  const isGzip = bytes[0] === 0x1f && bytes[1] === 0x8b;
  const reader = new BoundedReader(isGzip ? gunzip(bytes, path, maxBytes) : bytes, path);
  const zeros = reader.uint16("idx magic");
  const code = reader.uint8("idx element type");
  const rank = reader.uint8("idx axis count");
  if (zeros !== 0) throw reader.error(`idx magic is ${zeros}, expected two zero bytes`, 0);
  const type = ELEMENT_TYPES.get(code);
  if (type === undefined) {
    const known = [...ELEMENT_TYPES.keys()].map((key) => `0x${key.toString(16)}`).join(", ");
    throw reader.error(`idx element type 0x${code.toString(16)}, expected one of ${known}`, 2);
  }
  const shape = Array.from({ length: rank }, () => reader.uint32("idx size"));
  const size = checkedSize(
    shape,
    BYTES_PER_ELEMENT[type],
    reader.remaining,
    (detail) => reader.error(detail, 4),
  );
  const raw = reader.take(size * BYTES_PER_ELEMENT[type], "idx data");
  reader.end();
  return ndArray(decodedDType(type), shape, decodeElements(raw, type, { littleEndian: false }));
}

const ELEMENT_TYPES: ReadonlyMap<number, ElementType> = new Map<number, ElementType>([
  [0x08, "uint8"],
  [0x09, "int8"],
  [0x0b, "int16"],
  [0x0c, "int32"],
  [0x0d, "float32"],
  [0x0e, "float64"],
]);
