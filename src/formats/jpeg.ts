// JPEG (ITU T.81, baseline and progressive) through jpeg-js. The markers are read here first: size, components and the
// number of scans bound the decoder's memory and time, which depend on them and not on the file's size.
import { decode } from "jpeg-js";
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { FormatError } from "../core/errors.ts";
import { BoundedReader } from "./untrusted.ts";

/** Start-of-frame markers of the kinds jpeg-js decodes: baseline, extended, progressive. */
const SUPPORTED_FRAMES = [0xc0, 0xc1, 0xc2];

/** Cap on pixels times scans: a progressive file of a few kilobytes can ask for thousands of passes. */
const MAX_PIXEL_PASSES = 2 ** 30;

/** Cap on the decoder's own memory: about 12 bytes a sample and the result. */
const MAX_MEMORY_MIB = 1024;

/**
 * Decodes a JPEG image.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @param maxPixels cap on width times height
 * @returns [H, W, 3], or [H, W, 1] for a grey image
 * @throws FormatError when the file is damaged, larger than the cap or of an unsupported kind
 */
export function decodeJpeg(
  bytes: Uint8Array,
  path: string,
  maxPixels: number,
): NdArray<"uint8"> {
  const { width, height, components, dataStart } = readMarkers(bytes, path, maxPixels);
  let rgb: Uint8Array;
  try {
    rgb = decode(bytes, {
      useTArray: true,
      formatAsRGBA: false,
      tolerantDecoding: false,
      maxResolutionInMP: maxPixels / 1e6,
      maxMemoryUsageInMB: MAX_MEMORY_MIB,
    }).data;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.split("\n")[0] : "unknown reason";
    throw new FormatError(path, `byte ${dataStart}`, `damaged JPEG data (${reason})`);
  }
  if (components === 3) {
    return ndArray("uint8", [height, width, 3], Uint8Array.from(rgb));
  }
  const grey = Uint8Array.from({ length: width * height }, (_, pixel) => rgb[3 * pixel]!);
  return ndArray("uint8", [height, width, 1], grey);
}

interface Frame {
  readonly width: number;
  readonly height: number;
  readonly components: number;
  /** Offset of the first scan. */
  readonly dataStart: number;
}

function readMarkers(bytes: Uint8Array, path: string, maxPixels: number): Frame {
  const reader = new BoundedReader(bytes, path);
  reader.take(2, "JPEG start");
  let frame: Omit<Frame, "dataStart"> | undefined;
  let dataStart: number | undefined;
  let scans = 0;
  for (;;) {
    const at = reader.offset;
    if (reader.uint8("JPEG marker") !== 0xff) throw reader.error("JPEG marker expected", at);
    let marker = reader.uint8("JPEG marker");
    while (marker === 0xff) marker = reader.uint8("JPEG marker");
    if (marker === 0xd9) break;
    const size = reader.uint16("JPEG segment size");
    if (size < 2) throw reader.error(`JPEG segment size ${size}, expected at least 2`, at + 2);
    const segment = reader.take(size - 2, "JPEG segment");
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) {
      if (frame !== undefined) throw reader.error("a second JPEG frame", at);
      frame = readFrame(marker, segment, maxPixels, (detail) => reader.error(detail, at));
    }
    if (marker === 0xda) {
      if (frame === undefined) throw reader.error("JPEG scan before the frame header", at);
      dataStart ??= reader.offset;
      scans++;
      if (frame.width * frame.height * scans > MAX_PIXEL_PASSES) {
        throw reader.error(`${scans} scans of ${frame.width} x ${frame.height} pixels`, at);
      }
      skipScan(bytes, reader);
    }
  }
  if (frame === undefined || dataStart === undefined) {
    throw reader.error("the JPEG image ends without pixels");
  }
  return { ...frame, dataStart };
}

function readFrame(
  marker: number,
  segment: Uint8Array,
  maxPixels: number,
  error: (detail: string) => Error,
): Omit<Frame, "dataStart"> {
  if (!SUPPORTED_FRAMES.includes(marker)) {
    throw error(
      `JPEG frame kind 0x${marker.toString(16)} (lossless or arithmetic), ` +
        "expected baseline or progressive",
    );
  }
  const [precision = 0, high = 0, low = 0, left = 0, right = 0, components = 0] = segment;
  const [height, width] = [high * 256 + low, left * 256 + right];
  if (precision !== 8) throw error(`JPEG samples of ${precision} bits, expected 8`);
  if (components !== 1 && components !== 3) {
    throw error(`JPEG image of ${components} components, expected 1 (grey) or 3 (colour)`);
  }
  if (width === 0 || height === 0 || width * height > maxPixels) {
    throw error(`image of ${width} x ${height} pixels, expected 1 to ${maxPixels} pixels`);
  }
  if (segment.length !== 6 + 3 * components) {
    throw error(`JPEG frame header of ${segment.length} bytes, expected ${6 + 3 * components}`);
  }
  return { width, height, components };
}

/** Moves to the next marker that is neither a stuffed zero nor a restart. */
function skipScan(bytes: Uint8Array, reader: BoundedReader): void {
  for (let at = reader.offset; at + 1 < bytes.length; at++) {
    const next = bytes[at + 1]!;
    if (bytes[at] === 0xff && next !== 0 && !(next >= 0xd0 && next <= 0xd7)) {
      reader.offset = at;
      return;
    }
  }
  throw reader.error("the JPEG scan has no end (truncated?)");
}
