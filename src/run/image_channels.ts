// Decodes an image to the colour channels that a network wants.
import { FormatError } from "../core/errors.ts";
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { decodeImage } from "../formats/image.ts";

/**
 * Decodes a PNG or JPEG image.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @param channels what the network wants; null takes the image's own colours
 * @returns the pixels, [H, W, C]
 * @throws FormatError when the bytes are no such image, or have other colours
 */
export function decodeImageAs(
  bytes: Uint8Array,
  path: string,
  channels: number | null,
): NdArray<"uint8"> {
  return withChannels(decodeImage(bytes, path), channels, path);
}

/** Drops an alpha channel and repeats grey where the network wants colours. */
function withChannels(
  image: NdArray<"uint8">,
  wanted: number | null,
  path: string,
): NdArray<"uint8"> {
  const [height = 0, width = 0, channels = 0] = image.shape;
  const colours = channels === 2 || channels === 4 ? channels - 1 : channels; // 2: grey and alpha
  const target = wanted ?? colours;
  if (target === channels) return image;
  if (colours !== target && colours !== 1) {
    throw new FormatError(path, "", `found ${colours} colour channels, expected ${target}`);
  }
  const data = new Uint8Array(height * width * target);
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let channel = 0; channel < target; channel++) {
      const from = colours === 1 ? 0 : channel;
      data[pixel * target + channel] = image.data[pixel * channels + from]!;
    }
  }
  return ndArray("uint8", [height, width, target], data);
}
