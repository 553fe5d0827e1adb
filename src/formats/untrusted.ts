// Bounded reading of bytes that come from outside: every size is checked against the bytes really there before anything
// is allocated, and every failure is one FormatError that names the file and the byte. The other parsers read through it.
import { FormatError } from "../core/errors.ts";

/** Options of {@linkcode BoundedReader}. */
export interface BoundedReaderOptions {
  /** Byte order of the integers; false (network order) by default. */
  readonly littleEndian?: boolean;
}

/** Reads bytes in order and never past their end. */
export class BoundedReader {
  /** Name of the file, for messages. */
  readonly path: string;
  /** Where the next read begins. */
  offset = 0;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #littleEndian: boolean;

  /**
   * @param bytes the whole file
   * @param path its name, for messages
   * @param options byte order
   */
  constructor(
    bytes: Uint8Array,
    path: string,
    { littleEndian = false }: BoundedReaderOptions = {},
  ) {
    this.path = path;
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#littleEndian = littleEndian;
  }

  /** @returns bytes not read yet */
  get remaining(): number {
    return this.#bytes.length - this.offset;
  }

  /**
   * Makes the error of a place in the file.
   *
   * @param detail what was found and what was expected
   * @param offset the byte, by default the next to be read
   * @returns the error, to be thrown
   */
  error(detail: string, offset: number = this.offset): FormatError {
    return new FormatError(this.path, `byte ${offset}`, detail);
  }

  /**
   * Takes the next bytes as a view.
   *
   * @param size how many
   * @param what their name in messages
   * @returns a view, not a copy
   * @throws FormatError when fewer bytes are left
   */
  take(size: number, what: string): Uint8Array {
    this.#need(size, what);
    const from = this.offset;
    this.offset += size;
    return this.#bytes.subarray(from, from + size);
  }

  /**
   * Bytes that were already read.
   *
   * @param from first byte
   * @param to one past the last byte, at most `offset`
   * @returns a view
   */
  between(from: number, to: number): Uint8Array {
    return this.#bytes.subarray(from, to);
  }

  /**
   * @param what name in messages
   * @returns the next byte
   */
  uint8(what: string): number {
    this.#need(1, what);
    return this.#view.getUint8(this.offset++);
  }

  /**
   * @param what name in messages
   * @returns the next two bytes as an unsigned integer
   */
  uint16(what: string): number {
    this.#need(2, what);
    this.offset += 2;
    return this.#view.getUint16(this.offset - 2, this.#littleEndian);
  }

  /**
   * @param what name in messages
   * @returns the next four bytes as an unsigned integer
   */
  uint32(what: string): number {
    this.#need(4, what);
    this.offset += 4;
    return this.#view.getUint32(this.offset - 4, this.#littleEndian);
  }

  /**
   * @param what name in messages
   * @returns the next eight bytes as an unsigned integer
   * @throws FormatError above 2^53 - 1
   */
  uint64(what: string): number {
    this.#need(8, what);
    const value = this.#view.getBigUint64(this.offset, this.#littleEndian);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw this.error(`${what} is ${value}, expected at most 2^53 - 1`);
    }
    this.offset += 8;
    return Number(value);
  }

  /**
   * Ends the file.
   *
   * @throws FormatError when bytes are left over
   */
  end(): void {
    if (this.remaining > 0) {
      throw this.error(`${this.remaining} bytes follow the end of the data, expected none`);
    }
  }

  #need(size: number, what: string): void {
    if (!Number.isSafeInteger(size) || size < 0 || size > this.remaining) {
      throw this.error(
        `${what} needs ${size} bytes, the file has ${this.remaining} left (truncated?)`,
      );
    }
  }
}

/**
 * Number of elements of a shape from a file, checked before anything is allocated.
 *
 * @param shape sizes as the file gives them
 * @param bytesPerElement bytes of one element
 * @param availableBytes bytes really there; the elements must not need more
 * @param error makes the error of the place
 * @returns the product of the sizes
 * @throws what `error` makes, when a size is negative or unsafe or the product needs more bytes than there are
 */
export function checkedSize(
  shape: readonly (number | bigint)[],
  bytesPerElement: number,
  availableBytes: number,
  error: (detail: string) => Error,
): number {
  let product = 1n;
  for (const size of shape) {
    if (size < 0 || size > Number.MAX_SAFE_INTEGER || !Number.isInteger(Number(size))) {
      throw error(`shape [${shape.join(", ")}] has the size ${size}, expected 0 .. 2^53 - 1`);
    }
    product *= BigInt(size);
  }
  // BigInt: a product of 2^64 must not wrap around or round to something that fits.
  if (product * BigInt(bytesPerElement) > BigInt(availableBytes)) {
    throw error(
      `shape [${shape.join(", ")}] needs ${product * BigInt(bytesPerElement)} bytes, ` +
        `there are ${availableBytes}`,
    );
  }
  return Number(product);
}

/**
 * Decodes UTF-8 and refuses what is not UTF-8.
 *
 * @param bytes the text
 * @param error makes the error of the place
 * @returns the text, a byte-order mark kept
 * @throws what `error` makes
 */
export function decodeUtf8(bytes: Uint8Array, error: (detail: string) => Error): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw error("the text is not valid UTF-8");
  }
}

/**
 * A name from a file as it may appear in a one-line message: control characters escaped, long names cut.
 *
 * @param name any text
 * @returns the name in double quotes
 */
export function quoteName(name: string): string {
  const short = name.length > 120 ? `${name.slice(0, 117)}...` : name;
  // JSON leaves U+007F..U+009F and the line separators as they are; terminals and log readers act on them.
  return JSON.stringify(short).replace(
    /[\u007f-\u009f\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
