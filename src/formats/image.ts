// Images -> [H, W, C] bytes, C = 3 (RGB) or 1 (grey). The kind is told by the first bytes, not by the file's name.
import type { NdArray } from "../core/nd_array.ts";
import { decodeJpeg } from "./jpeg.ts";
import { decodePng } from "./png.ts";
import { BoundedReader } from "./untrusted.ts";

/** Options of {@linkcode decodeImage}. */
export interface DecodeImageOptions {
  /** Cap on width times height; 2^25 (33 megapixels) by default. */
  readonly maxPixels?: number;
}

/**
 * Decodes a PNG or JPEG image. Alpha is dropped, 16-bit samples are rounded to 8, palettes become RGB.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @param options cap on the size
 * @returns the pixels, [H, W, 3] or, for grey images, [H, W, 1]
 * @throws FormatError when the bytes are neither, or damaged, or larger than the cap
 */
export function decodeImage(
  bytes: Uint8Array,
  path: string,
  { maxPixels = 2 ** 25 }: DecodeImageOptions = {},
): NdArray<"uint8"> {
  if (bytes[0] === 0x89 && bytes[1] === 0x50) return decodePng(bytes, path, maxPixels);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return decodeJpeg(bytes, path, maxPixels);
  throw new BoundedReader(bytes, path).error("neither a PNG nor a JPEG image");
}
