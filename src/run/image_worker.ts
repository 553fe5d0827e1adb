// A thread that decodes images: takes an ImageJob, answers with a DecodedImage, or with null when it cannot.
import { decodeImageAs } from "./image_channels.ts";
import type { DecodedImage, ImageJob } from "./image_pool.ts";

/** The part of a worker's global scope that is used here. */
interface WorkerScope {
  addEventListener(type: "message", listener: (event: MessageEvent<ImageJob>) => void): void;
  postMessage(message: DecodedImage | null, transfer: Transferable[]): void;
}

const scope = globalThis as unknown as WorkerScope; // the type checker takes it for a main thread

scope.addEventListener("message", ({ data: { bytes, path, channels } }) => {
  const image = decoded(bytes, path, channels);
  scope.postMessage(image, image === null ? [] : [image.data.buffer]);
});

function decoded(bytes: Uint8Array, path: string, channels: number | null): DecodedImage | null {
  try {
    const { shape, data } = decodeImageAs(bytes, path, channels);
    // Only the pixels: a view of a larger buffer would take all of it along.
    return { shape, data: data.byteLength === data.buffer.byteLength ? data : data.slice() };
  } catch {
    return null; // the main thread decodes it again and throws the error as it is
  }
}
