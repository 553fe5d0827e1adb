// NumPy's .npz: a zip of .npy files (numpy.savez, numpy.savez_compressed).
import type { NdArray } from "../core/nd_array.ts";
import { decodeNpy } from "./npy.ts";
import { BoundedReader, quoteName } from "./untrusted.ts";
import { unzip } from "./zip.ts";

/** Options of {@linkcode decodeNpz}. */
export interface DecodeNpzOptions {
  /** Cap on what the archive may inflate to, in bytes; 1 GiB by default. */
  readonly maxBytes?: number;
}

/**
 * Decodes a .npz archive.
 *
 * @param bytes the whole file
 * @param path its name, for messages
 * @param options cap on the inflated size
 * @returns the arrays by name, without the ending ".npy"
 * @throws FormatError when the archive or a member is damaged, or a member is not a .npy file
 */
export function decodeNpz(
  bytes: Uint8Array,
  path: string,
  { maxBytes = 2 ** 30 }: DecodeNpzOptions = {},
): Map<string, NdArray> {
  const arrays = new Map<string, NdArray>();
  for (const [name, data] of unzip(bytes, path, maxBytes)) {
    if (!name.endsWith(".npy")) {
      throw new BoundedReader(bytes, path).error(`member ${quoteName(name)} is not a .npy file`);
    }
    arrays.set(name.slice(0, -".npy".length), decodeNpy(data, `${path}(${name})`));
  }
  return arrays;
}
