// Deflate, zlib and gzip streams with a cap on what they may inflate to: a bomb is stopped after one small step past
// the cap. RFC 1950, 1951, 1952; the decompressor is fflate's.
import { Inflate } from "fflate";
import { BoundedReader } from "./untrusted.ts";

/** No deflate stream gives more than this many bytes a byte (RFC 1951: 258 bytes from 2 bits). */
const MAX_DEFLATE_RATIO = 1032;

/** Compressed bytes given to the decompressor at once: at most 16 MiB come out before the cap is checked again. */
const STEP_BYTES = 16 * 1024;

/**
 * Inflates a raw deflate stream of known inflated size.
 *
 * @param compressed the stream
 * @param size bytes it must inflate to
 * @param error makes the error of the place
 * @returns exactly `size` bytes
 * @throws what `error` makes, when the stream is damaged or gives more or fewer bytes
 */
export function inflateExactly(
  compressed: Uint8Array,
  size: number,
  error: (detail: string) => Error,
): Uint8Array<ArrayBuffer> {
  // + 64: very short streams may end inside their first bits.
  if (size > compressed.length * MAX_DEFLATE_RATIO + 64) {
    throw error(
      `${compressed.length} compressed bytes cannot inflate to ${size}, ` +
        `at most to ${compressed.length * MAX_DEFLATE_RATIO}`,
    );
  }
  const inflated = new Uint8Array(size);
  let filled = 0;
  let excess = false;
  let done = false;
  const stream = new Inflate((chunk, final) => {
    done = final;
    excess = filled + chunk.length > size;
    if (!excess) inflated.set(chunk, filled);
    filled += chunk.length;
  });
  for (let from = 0; !done && from < compressed.length; from += STEP_BYTES) {
    const to = Math.min(from + STEP_BYTES, compressed.length);
    try {
      stream.push(compressed.subarray(from, to), to === compressed.length);
    } catch (cause) {
      throw error(`the deflate stream is damaged near its byte ${from} (${reason(cause)})`);
    }
    if (excess) throw error(`the deflate stream gives more than the ${size} bytes declared`);
  }
  if (filled !== size) {
    throw error(`the deflate stream gives ${filled} bytes, expected ${size}`);
  }
  return inflated;
}

/**
 * Inflates a zlib stream (as in PNG) of known inflated size.
 *
 * @param compressed header, deflate stream and checksum
 * @param size bytes it must inflate to
 * @param error makes the error of the place
 * @returns exactly `size` bytes
 */
export function inflateZlib(
  compressed: Uint8Array,
  size: number,
  error: (detail: string) => Error,
): Uint8Array<ArrayBuffer> {
  const [method = 0, flags = 0] = compressed;
  if (compressed.length < 6 || (method & 15) !== 8 || (method * 256 + flags) % 31 !== 0) {
    throw error("the compressed data does not begin with a zlib header");
  }
  if (flags & 32) throw error("the zlib stream needs a preset dictionary, which is not supported");
  return inflateExactly(compressed.subarray(2, -4), size, error);
}

/**
 * Inflates a gzip file of one member.
 *
 * @param bytes the file
 * @param path its name, for messages
 * @param maxBytes cap on the inflated size
 * @returns the inflated bytes, checked against the trailer's size and CRC
 * @throws FormatError when the file is damaged or larger than the cap
 */
export function gunzip(
  bytes: Uint8Array,
  path: string,
  maxBytes: number,
): Uint8Array<ArrayBuffer> {
  const reader = new BoundedReader(bytes, path, { littleEndian: true });
  if (reader.uint16("gzip magic") !== 0x8b1f) throw reader.error("gzip magic 1f 8b expected", 0);
  if (reader.uint8("gzip method") !== 8) throw reader.error("gzip method 8 (deflate) expected", 2);
  const flags = reader.uint8("gzip flags");
  reader.take(6, "gzip header");
  if (flags & 4) reader.take(reader.uint16("gzip extra field"), "gzip extra field");
  if (flags & 8) skipText(reader);
  if (flags & 16) skipText(reader);
  if (flags & 2) reader.take(2, "gzip header checksum");
  const start = reader.offset;
  const compressed = reader.take(reader.remaining - 8, "gzip data and trailer");
  const crc = reader.uint32("gzip checksum");
  const size = reader.uint32("gzip size");
  if (size > maxBytes) {
    throw reader.error(`inflates to ${size} bytes, the cap is ${maxBytes}`, bytes.length - 4);
  }
  const inflated = inflateExactly(compressed, size, (detail) => reader.error(detail, start));
  const found = crc32(inflated);
  if (found !== crc) {
    throw reader.error(`checksum ${hex(crc)} expected, found ${hex(found)}`, bytes.length - 8);
  }
  return inflated;
}

/**
 * CRC-32 as in gzip, zip and PNG.
 *
 * @param bytes any bytes
 * @returns their checksum, unsigned
 */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]!) & 255]! ^ (crc >>> 8);
  return ~crc >>> 0;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

function skipText(reader: BoundedReader): void {
  while (reader.uint8("gzip name or comment") !== 0);
}

function hex(word: number): string {
  return word.toString(16).padStart(8, "0");
}

function reason(cause: unknown): string {
  return cause instanceof Error ? cause.message : "unknown reason";
}
