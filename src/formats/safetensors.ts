// safetensors (github.com/huggingface/safetensors, format section of its README): u64 header size, JSON header, bytes.
// Read with every check the format asks for: no duplicate keys, no holes, no overlap, the whole buffer covered.
import { type DType, type NdArray, ndArray } from "../core/nd_array.ts";
import { FormatError } from "../core/errors.ts";
import { BYTES_PER_ELEMENT, decodedDType, decodeElements, encodeElements } from "./elements.ts";
import type { ElementType } from "./elements.ts";
import { type JsonObject, type JsonValue, parseStrictJson } from "./strict_json.ts";
import { BoundedReader, checkedSize, decodeUtf8, quoteName } from "./untrusted.ts";

/** The format's own limit. */
const MAX_HEADER_BYTES = 100_000_000;

/** What a safetensors file holds. */
export interface Safetensors {
  /** In the order of their bytes. */
  readonly tensors: ReadonlyMap<string, NdArray>;
  /** `__metadata__`; empty when the file has none. */
  readonly metadata: ReadonlyMap<string, string>;
}

/**
 * Decodes a safetensors file; F16 and BF16 become float32.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @returns tensors and metadata; the data are copies
 * @throws FormatError when any rule of the format is broken or an element type is not supported
 */
export function decodeSafetensors(bytes: Uint8Array, path: string): Safetensors {
  const reader = new BoundedReader(bytes, path, { littleEndian: true });
  const headerSize = reader.uint64("header size");
  if (headerSize > MAX_HEADER_BYTES) {
    throw reader.error(`header of ${headerSize} bytes, expected at most ${MAX_HEADER_BYTES}`, 0);
  }
  const headerBytes = reader.take(headerSize, "header");
  if (headerBytes[0] !== 0x7b) throw reader.error('the header must begin with "{"', 8);
  const text = decodeUtf8(headerBytes, (detail) => reader.error(detail, 8));
  const header = parseStrictJson(text, path);
  if (!(header instanceof Map)) throw reader.error("the header must be an object", 8);
  const buffer = reader.take(reader.remaining, "data");
  const metadata = readMetadata(header, path);
  const entries = [...header as JsonObject].filter(([name]) => name !== "__metadata__")
    .map(([name, value]) => readEntry(name, value, buffer.length, path))
    .sort((a, b) => a.begin - b.begin || a.end - b.end);

  let covered = 0;
  const tensors = new Map<string, NdArray>();
  for (const { name, type, shape, begin, end } of entries) {
    if (begin !== covered) {
      throw new FormatError(
        path,
        `tensor ${quoteName(name)}`,
        `begins at data byte ${begin}, expected ${covered} (${
          begin < covered ? "tensors overlap" : "hole between tensors"
        })`,
      );
    }
    covered = end;
    const data = decodeElements(buffer.subarray(begin, end), type);
    tensors.set(name, ndArray(decodedDType(type), shape, data));
  }
  if (covered !== buffer.length) {
    throw reader.error(
      `${buffer.length - covered} bytes belong to no tensor`,
      8 + headerSize + covered,
    );
  }
  return { tensors, metadata };
}

/** Options of {@linkcode encodeSafetensors}. */
export interface EncodeSafetensorsOptions {
  /** Written as `__metadata__`. */
  readonly metadata?: ReadonlyMap<string, string>;
}

/**
 * Encodes tensors as a safetensors file, widest elements first so that all are aligned.
 *
 * @param tensors by name
 * @param options metadata
 * @returns the file
 * @throws RangeError when a tensor is named `__metadata__`
 */
export function encodeSafetensors(
  tensors: ReadonlyMap<string, NdArray>,
  { metadata = new Map() }: EncodeSafetensorsOptions = {},
): Uint8Array<ArrayBuffer> {
  if (tensors.has("__metadata__")) {
    throw new RangeError('Cannot name a tensor "__metadata__": safetensors reserves that key');
  }
  const ordered = [...tensors].sort(([nameA, a], [nameB, b]) =>
    BYTES_PER_ELEMENT[b.dtype] - BYTES_PER_ELEMENT[a.dtype] || (nameA < nameB ? -1 : 1)
  );
  let end = 0;
  const entries = ordered.map(([name, { dtype, shape, data }]) => {
    const begin = end;
    end += data.byteLength;
    const entry = { dtype: TYPE_NAMES[dtype], shape, data_offsets: [begin, end] };
    return `${JSON.stringify(name)}:${JSON.stringify(entry)}`;
  });
  if (metadata.size > 0) {
    // Built by hand: in an object literal a key such as "2" would move to the front, "__proto__" would vanish.
    const pairs = [...metadata].map((pair) => pair.map((part) => JSON.stringify(part)).join(":"));
    entries.unshift(`"__metadata__":{${pairs.join(",")}}`);
  }
  const json = new TextEncoder().encode(`{${entries.join(",")}}`);
  const headerSize = Math.ceil(json.length / 8) * 8;
  const file = new Uint8Array(8 + headerSize + end);
  new DataView(file.buffer).setBigUint64(0, BigInt(headerSize), true);
  file.fill(0x20, 8, 8 + headerSize);
  file.set(json, 8);
  let at = 8 + headerSize;
  for (const [, { data }] of ordered) {
    file.set(encodeElements(data), at);
    at += data.byteLength;
  }
  return file;
}

interface Entry {
  readonly name: string;
  readonly type: ElementType;
  readonly shape: number[];
  readonly begin: number;
  readonly end: number;
}

function readEntry(name: string, value: JsonValue, bufferSize: number, path: string): Entry {
  const error = (detail: string) => new FormatError(path, `tensor ${quoteName(name)}`, detail);
  if (!(value instanceof Map)) throw error("the entry must be an object");
  const object = value as JsonObject;
  const keys = ["data_offsets", "dtype", "shape"];
  if ([...object.keys()].sort().join() !== keys.join()) {
    throw error(`the entry must have exactly the keys ${keys.join(", ")}`);
  }
  const dtype = object.get("dtype");
  const type = typeof dtype === "string" ? ELEMENT_TYPES.get(dtype) : undefined;
  if (type === undefined) {
    const found = typeof dtype === "string" ? quoteName(dtype) : "no text";
    throw error(`dtype is ${found}, expected one of ${[...ELEMENT_TYPES.keys()].join(", ")}`);
  }
  const shape = readSizes(object.get("shape"));
  if (shape === undefined) throw error("shape must be a list of integers, 0 or more");
  const [begin, end, ...rest] = readSizes(object.get("data_offsets")) ?? [];
  if (begin === undefined || end === undefined || rest.length > 0 || begin > end) {
    throw error("data_offsets must be two integers [begin, end], begin <= end");
  }
  if (end > bufferSize) {
    throw error(`ends at data byte ${end}, the file has ${bufferSize} (truncated?)`);
  }
  const size = checkedSize(shape, BYTES_PER_ELEMENT[type], end - begin, error);
  if (size * BYTES_PER_ELEMENT[type] !== end - begin) {
    throw error(
      `shape [${shape.join(", ")}] needs ${size * BYTES_PER_ELEMENT[type]} bytes, ` +
        `data_offsets give ${end - begin}`,
    );
  }
  return { name, type, shape, begin, end };
}

function readSizes(value: JsonValue | undefined): number[] | undefined {
  if (!Array.isArray(value)) return undefined;
  const isSize = (size: JsonValue): size is number =>
    typeof size === "number" && Number.isSafeInteger(size) && size >= 0;
  return value.every(isSize) ? [...value] : undefined;
}

function readMetadata(header: JsonValue, path: string): Map<string, string> {
  // The caller has checked that the header is an object.
  const metadata = (header as JsonObject).get("__metadata__") ?? new Map<string, JsonValue>();
  const texts = new Map<string, string>();
  if (!(metadata instanceof Map)) throw new FormatError(path, "__metadata__", "must be an object");
  for (const [key, value] of metadata as JsonObject) {
    if (typeof value !== "string") {
      throw new FormatError(path, `__metadata__ ${quoteName(key)}`, "must be text");
    }
    texts.set(key, value);
  }
  return texts;
}

const TYPE_NAMES: Readonly<Record<DType, string>> = {
  float64: "F64",
  float32: "F32",
  int64: "I64",
  int32: "I32",
  uint32: "U32",
  int16: "I16",
  uint16: "U16",
  int8: "I8",
  uint8: "U8",
  bool: "BOOL",
};

const ELEMENT_TYPES: ReadonlyMap<string, ElementType> = new Map<string, ElementType>([
  ...(Object.entries(TYPE_NAMES) as [DType, string][]).map(([dtype, name]) =>
    [name, dtype] as [string, ElementType]
  ),
  ["F16", "float16"],
  ["BF16", "bfloat16"],
]);
