// A walk over the wire format of an ONNX file (protobuf.dev/programming-guides/encoding) before the real decoder runs:
// it finds truncation and garbage with the byte where they are, and bounds nesting and the number of messages, since a
// message of two bytes becomes an object of hundreds.
import { BoundedReader } from "./untrusted.ts";

/** Which fields of a message hold messages that are walked into. */
interface MessageFields {
  readonly [field: number]: () => MessageFields;
}

const TENSOR: MessageFields = {};
const VALUE_INFO: MessageFields = {};
const ATTRIBUTE: MessageFields = {
  5: () => TENSOR,
  6: () => GRAPH,
  10: () => TENSOR,
  11: () => GRAPH,
};
const NODE: MessageFields = { 5: () => ATTRIBUTE };
const GRAPH: MessageFields = {
  1: () => NODE,
  5: () => TENSOR,
  11: () => VALUE_INFO,
  12: () => VALUE_INFO,
  13: () => VALUE_INFO,
};
const MODEL: MessageFields = { 7: () => GRAPH };

const MAX_DEPTH = 32;
const MAX_FIELDS = 2_000_000;

/**
 * Checks that a file is well-formed protobuf as far as the parts of an ONNX model go.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @throws FormatError with the byte of the first bad field
 */
export function scanOnnx(bytes: Uint8Array, path: string): void {
  const reader = new BoundedReader(bytes, path, { littleEndian: true });
  let fields = 0;
  walk(MODEL, bytes.length, 0);

  function walk(known: MessageFields, end: number, depth: number): void {
    if (depth > MAX_DEPTH) throw reader.error(`messages nested deeper than ${MAX_DEPTH}`);
    while (reader.offset < end) {
      const at = reader.offset;
      if (++fields > MAX_FIELDS) throw reader.error(`more than ${MAX_FIELDS} fields`);
      const tag = varint(reader, end);
      const field = Number(tag >> 3n);
      const wireType = Number(tag & 7n);
      if (field === 0 || field > 0x1fffffff) {
        throw reader.error(`field number ${field}: not an ONNX model`, at);
      }
      if (wireType === 0) varint(reader, end);
      else if (wireType === 1) skip(8n, end, field);
      else if (wireType === 5) skip(4n, end, field);
      else if (wireType === 2) {
        const size = varint(reader, end);
        const next = known[field]?.();
        if (next === undefined) skip(size, end, field);
        else walk(next, reader.offset + fitting(size, end, field), depth + 1);
      } else throw reader.error(`wire type ${wireType}: not an ONNX model`, at);
    }
  }

  function skip(size: bigint, end: number, field: number): void {
    reader.offset += fitting(size, end, field);
  }

  function fitting(size: bigint, end: number, field: number): number {
    if (size > BigInt(end - reader.offset)) {
      throw reader.error(
        `field ${field} needs ${size} bytes, ${end - reader.offset} are left (truncated?)`,
      );
    }
    return Number(size);
  }
}

function varint(reader: BoundedReader, end: number): bigint {
  const at = reader.offset;
  let value = 0n;
  for (let shift = 0n; shift < 70n; shift += 7n) {
    if (reader.offset >= end) throw reader.error("an integer is cut off (truncated?)", at);
    const byte = reader.uint8("integer");
    value |= BigInt(byte & 127) << shift;
    if (byte < 128) return value;
  }
  throw reader.error("an integer of more than 10 bytes: not an ONNX model", at);
}
