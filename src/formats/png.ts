// PNG (W3C PNG third edition), read here and not by a library: the pixel stream is inflated to exactly the size the
// header asks for, and profiles, texts and animation frames, which could inflate without a limit, are never touched.
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { crc32, inflateZlib } from "./inflate.ts";
import { BoundedReader, quoteName } from "./untrusted.ts";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Samples a pixel by colour type: grey, RGB, palette, grey + alpha, RGB + alpha. */
const CHANNELS = new Map([[0, 1], [2, 3], [3, 1], [4, 2], [6, 4]]);

/** Bit depths by colour type. */
const DEPTHS = new Map([[0, [1, 2, 4, 8, 16]], [2, [8, 16]], [3, [1, 2, 4, 8]], [4, [8, 16]], [
  6,
  [8, 16],
]]);

/** Adam7's seven passes: first column and row, steps between columns and rows. */
const ADAM7_PASSES = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
] as const;

/**
 * Decodes a PNG image; see `decodeImage` for what becomes of alpha, palettes and 16-bit samples.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @param maxPixels cap on width times height
 * @returns [H, W, 3] or [H, W, 1]
 * @throws FormatError when the file is damaged or larger than the cap
 */
export function decodePng(
  bytes: Uint8Array,
  path: string,
  maxPixels: number,
): NdArray<"uint8"> {
  const reader = new BoundedReader(bytes, path);
  if (SIGNATURE.some((byte) => reader.uint8("PNG signature") !== byte)) {
    throw reader.error("damaged PNG signature", 0);
  }
  const chunks = readChunks(reader);
  const header = readHeader(chunks, reader, maxPixels);
  const data = concatenate(chunks.filter((chunk) => chunk.type === "IDAT").map((c) => c.data));
  const dataStart = chunks.find((chunk) => chunk.type === "IDAT")?.offset ?? reader.offset;
  const error = (detail: string) => reader.error(detail, dataStart);
  const raw = inflateZlib(data, rawSize(header), error);
  const samples = readSamples(raw, header, error);
  return toPixels(samples, header, chunks.find((chunk) => chunk.type === "PLTE")?.data, error);
}

interface Chunk {
  readonly type: string;
  readonly offset: number;
  readonly data: Uint8Array;
}

interface Header {
  readonly width: number;
  readonly height: number;
  readonly depth: number;
  readonly colourType: number;
  readonly channels: number;
  readonly interlaced: boolean;
}

/** Header, palette and pixel chunks with their checksums checked; other chunks are skipped. */
function readChunks(reader: BoundedReader): Chunk[] {
  const chunks: Chunk[] = [];
  for (;;) {
    const offset = reader.offset;
    const size = reader.uint32("PNG chunk size");
    const type = String.fromCharCode(...reader.take(4, "PNG chunk type"));
    if (!/^[A-Za-z]{4}$/.test(type)) {
      throw reader.error(`chunk type ${quoteName(type)}, expected four letters`, offset + 4);
    }
    const data = reader.take(size, `PNG chunk ${type}`);
    const crc = reader.uint32(`checksum of PNG chunk ${type}`);
    const isCritical = type < "a";
    if (!isCritical) continue;
    if (!["IHDR", "PLTE", "IDAT", "IEND"].includes(type)) {
      throw reader.error(`critical PNG chunk ${type} is not known`, offset);
    }
    if (crc32(reader.between(offset + 4, offset + 8 + size)) !== crc) {
      throw reader.error(`checksum of PNG chunk ${type} does not match (damaged?)`, offset);
    }
    if (chunks.length === 0 ? type !== "IHDR" : type === "IHDR") {
      throw reader.error(`PNG chunk ${type}, expected IHDR first and once`, offset);
    }
    chunks.push({ type, offset, data });
    if (type === "IEND") return chunks;
  }
}

function readHeader(chunks: readonly Chunk[], reader: BoundedReader, maxPixels: number): Header {
  // readChunks has put IHDR first.
  const { data, offset } = chunks[0]!;
  const error = (detail: string) => reader.error(detail, offset);
  if (data.length !== 13) throw error(`IHDR of ${data.length} bytes, expected 13`);
  const view = new DataView(data.buffer, data.byteOffset);
  const [width, height] = [view.getUint32(0), view.getUint32(4)];
  const [depth, colourType, , , interlace] = data.subarray(8) as unknown as number[];
  const channels = CHANNELS.get(colourType!);
  if (channels === undefined || !DEPTHS.get(colourType!)!.includes(depth!)) {
    throw error(`colour type ${colourType} with ${depth} bits is not a PNG kind`);
  }
  if (width === 0 || height === 0 || width * height > maxPixels) {
    throw error(`image of ${width} x ${height} pixels, expected 1 to ${maxPixels} pixels`);
  }
  if (interlace! > 1) throw error(`interlace method ${interlace}, expected 0 or 1`);
  const hasPalette = chunks.some((chunk) => chunk.type === "PLTE");
  if (colourType === 3 && !hasPalette) throw error("a palette image without a palette (PLTE)");
  return {
    width,
    height,
    depth: depth!,
    colourType: colourType!,
    channels,
    interlaced: interlace === 1,
  };
}

/** Columns and rows of each pass; a plain image is one pass. */
function passesOf({ width, height, interlaced }: Header): Pass[] {
  const steps: readonly (readonly [number, number, number, number])[] = interlaced
    ? ADAM7_PASSES
    : [[0, 0, 1, 1]];
  return steps.map(([firstColumn, firstRow, columnStep, rowStep]) => ({
    firstColumn,
    firstRow,
    columnStep,
    rowStep,
    columns: Math.ceil(Math.max(0, width - firstColumn) / columnStep),
    rows: Math.ceil(Math.max(0, height - firstRow) / rowStep),
  })).filter(({ columns }) => columns > 0);
}

interface Pass {
  readonly firstColumn: number;
  readonly firstRow: number;
  readonly columnStep: number;
  readonly rowStep: number;
  readonly columns: number;
  readonly rows: number;
}

function bytesPerRow({ columns }: Pass, { depth, channels }: Header): number {
  return Math.ceil(columns * depth * channels / 8);
}

/** Bytes the pixel data must inflate to: each row begins with its filter. */
function rawSize(header: Header): number {
  return passesOf(header)
    .reduce((sum, pass) => sum + pass.rows * (1 + bytesPerRow(pass, header)), 0);
}

/** Samples as stored, [height, width, channels]. */
function readSamples(
  raw: Uint8Array,
  header: Header,
  error: (detail: string) => Error,
): Uint16Array {
  const { width, height, depth, channels } = header;
  const samples = new Uint16Array(width * height * channels);
  const pixelBytes = Math.max(1, depth * channels / 8);
  let at = 0;
  for (const pass of passesOf(header)) {
    const size = bytesPerRow(pass, header);
    let above: Uint8Array = new Uint8Array(size);
    for (let row = 0; row < pass.rows; row++) {
      const filter = raw[at]!;
      const line = raw.subarray(at + 1, at + 1 + size);
      if (filter > 4) throw error(`row ${row} has the filter ${filter}, expected 0 to 4`);
      unfilter(line, above, filter, pixelBytes);
      const y = pass.firstRow + row * pass.rowStep;
      for (let i = 0; i < pass.columns * channels; i++) {
        const x = pass.firstColumn + Math.floor(i / channels) * pass.columnStep;
        samples[(y * width + x) * channels + i % channels] = sampleAt(line, i, depth);
      }
      above = line;
      at += 1 + size;
    }
  }
  return samples;
}

function sampleAt(line: Uint8Array, i: number, depth: number): number {
  if (depth === 8) return line[i]!;
  if (depth === 16) return line[2 * i]! * 256 + line[2 * i + 1]!;
  const bit = i * depth;
  return (line[bit >> 3]! >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
}

/** Undoes a row's filter in place: each byte was stored minus a guess from its neighbours (W3C PNG, section 9). */
function unfilter(line: Uint8Array, above: Uint8Array, filter: number, pixelBytes: number): void {
  if (filter === 0) return;
  for (let i = 0; i < line.length; i++) {
    const a = i >= pixelBytes ? line[i - pixelBytes]! : 0;
    const b = above[i]!;
    const c = i >= pixelBytes ? above[i - pixelBytes]! : 0;
    const guess = filter === 1
      ? a
      : filter === 2
      ? b
      : filter === 3
      ? (a + b) >> 1
      : paeth(a, b, c);
    // Uint8Array keeps the sum modulo 256.
    line[i] = line[i]! + guess;
  }
}

/** The neighbour nearest to left + above - upper left. */
function paeth(left: number, above: number, upperLeft: number): number {
  const toLeft = Math.abs(above - upperLeft);
  const toAbove = Math.abs(left - upperLeft);
  const toUpperLeft = Math.abs(left + above - 2 * upperLeft);
  if (toLeft <= toAbove && toLeft <= toUpperLeft) return left;
  return toAbove <= toUpperLeft ? above : upperLeft;
}

function toPixels(
  samples: Uint16Array,
  { width, height, depth, colourType, channels }: Header,
  palette: Uint8Array | undefined,
  error: (detail: string) => Error,
): NdArray<"uint8"> {
  const isPalette = colourType === 3;
  const outChannels = isPalette || colourType === 2 || colourType === 6 ? 3 : 1;
  const pixels = new Uint8Array(width * height * outChannels);
  const highest = 2 ** depth - 1;
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < outChannels; channel++) {
      const value = isPalette
        ? palette?.[3 * samples[pixel]! + channel]
        : Math.round(samples[pixel * channels + channel]! * 255 / highest);
      if (value === undefined) {
        throw error(`pixel ${pixel} has the palette index ${samples[pixel]}, beyond the palette`);
      }
      pixels[pixel * outChannels + channel] = value;
    }
  }
  return ndArray("uint8", [height, width, outChannels], pixels);
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
