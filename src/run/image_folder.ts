// Reads a folder of images: in order, and in large folders beside the main thread.
import { basename, join } from "node:path";
import { FormatError } from "../core/errors.ts";
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { mayStartWorker } from "../core/worker_source.ts";
import { decodeImageAs } from "./image_channels.ts";
import { IMAGE_WORKER, ImagePool } from "./image_pool.ts";
import { readRegularFile } from "./regular_file.ts";

/** How a folder is read. */
export interface ImageFolderOptions {
  /** Threads beside the main one; by default as many as pay. */
  readonly workers?: number;
}

const IMAGE_NAME = /\.(png|jpe?g)$/i;

/** More workers hardly help: the main thread reads the files for them. */
const MOST_WORKERS = 4;

/** Images from which workers may pay. */
const MANY_IMAGES = 64;

/** Pixels in all from which they do: they take a moment to start, and small files are mostly waited for. */
const MANY_PIXELS = 2 ** 22;

/**
 * Reads all images of a folder.
 *
 * @param folder the folder; its images are sorted by name
 * @param channels what the network wants; null takes the first image's own colours
 * @param options how many threads decode
 * @returns the images, [N, H, W, C]
 * @throws FormatError when there is none, or names the first that is damaged or of another size
 */
export async function readImageFolder(
  folder: string,
  channels: number | null,
  options: ImageFolderOptions = {},
): Promise<NdArray<"uint8">> {
  const names: string[] = [];
  for await (const entry of Deno.readDir(folder)) {
    if (!entry.isDirectory && IMAGE_NAME.test(entry.name)) names.push(entry.name);
  }
  names.sort();
  if (names.length === 0) {
    throw new FormatError(folder, "", "found no .png, .jpg or .jpeg file in the folder");
  }
  const paths = names.map((name) => join(folder, name));
  const first = await decodeFile(paths[0]!, channels);
  const size = first.data.length;
  const data = new Uint8Array(names.length * size);
  data.set(first.data);
  const rest = paths.slice(1);
  const [height = 0, width = 0] = first.shape;
  const workers = options.workers ??
    (mayStartWorker(IMAGE_WORKER) ? usefulWorkers(names.length, height * width) : 0);
  let index = 0;
  for await (const image of decodeFiles(rest, channels, workers)) {
    const path = rest[index++]!; // one image a path
    if (image.shape.join() !== first.shape.join()) {
      const [found, expected] = [image.shape, first.shape].map((shape) => shape.join(" x "));
      throw new FormatError(
        path,
        "",
        `found ${found}, expected ${expected} as in ${basename(names[0]!)}`,
      );
    }
    data.set(image.data, index * size);
  }
  return ndArray("uint8", [names.length, ...first.shape], data);
}

/**
 * How many threads pay.
 *
 * @param images in a folder
 * @param pixels of an image
 * @returns 0 when the main thread is as fast alone
 */
export function usefulWorkers(images: number, pixels: number): number {
  if (images < MANY_IMAGES || images * pixels < MANY_PIXELS) return 0;
  return Math.min(MOST_WORKERS, navigator.hardwareConcurrency);
}

/** Images in the order of their paths; the first that cannot be decoded is an error at its turn. */
async function* decodeFiles(
  paths: readonly string[],
  channels: number | null,
  workers: number,
): AsyncGenerator<NdArray<"uint8">> {
  if (workers === 0) {
    for (const path of paths) yield await decodeFile(path, channels);
    return;
  }
  const pool = new ImagePool(workers);
  const begin = (path: string) => pool.decode(path, channels);
  const pending = paths.slice(0, pool.capacity).map(begin);
  try {
    for (const [i, path] of paths.entries()) {
      const image = await pending.shift();
      const next = paths[i + pool.capacity];
      if (next !== undefined) pending.push(begin(next));
      // Whatever a worker could not do is done here, so that errors are the same with and without workers.
      yield image ?? await decodeFile(path, channels);
    }
  } finally {
    pool.dispose();
    await Promise.all(pending); // files that are being read
  }
}

async function decodeFile(path: string, channels: number | null): Promise<NdArray<"uint8">> {
  return decodeImageAs(await readRegularFile(path), path, channels);
}
