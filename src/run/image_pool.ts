// Worker threads that decode images. What a worker cannot do, for whatever reason, is answered with null and left to
// the main thread; so neither a damaged image nor a thread that may not start needs an error of its own here.
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { readRegularFile } from "./regular_file.ts";

/** What a worker is asked for. */
export interface ImageJob {
  readonly bytes: Uint8Array;
  readonly path: string;
  readonly channels: number | null;
}

/** What it answers. */
export interface DecodedImage {
  readonly shape: readonly number[];
  readonly data: Uint8Array<ArrayBuffer>;
}

/** Jobs of a worker at a time: one at work, one that waits. */
const JOBS = 2;

/** The threads' module. */
export const IMAGE_WORKER = new URL("./image_worker.ts", import.meta.url);

type Answer = (image: DecodedImage | null) => void;

/** A worker with those who wait for its answers, the oldest first; they come in the order of the jobs. */
interface Thread {
  readonly worker: Worker;
  readonly waiting: Answer[];
  failed: boolean;
}

/** A few threads; they end with the pool. */
export class ImagePool {
  readonly #threads: readonly Thread[];

  /** @param workers how many threads */
  constructor(workers: number) {
    this.#threads = Array.from({ length: workers }, startThread);
  }

  /** Jobs that should be under way at a time. */
  get capacity(): number {
    return this.#threads.length * JOBS;
  }

  /**
   * Decodes an image file.
   *
   * @param path the file
   * @param channels what the network wants
   * @returns the pixels, [H, W, C]; null when the file cannot be read or decoded by a worker
   */
  async decode(path: string, channels: number | null): Promise<NdArray<"uint8"> | null> {
    const bytes = await readRegularFile(path).catch(() => null);
    const threads = this.#threads.filter(({ failed }) => !failed)
      .sort((a, b) => a.waiting.length - b.waiting.length);
    const thread = threads[0];
    if (bytes === null || thread === undefined) return null;
    const image = await new Promise<DecodedImage | null>((answer) => {
      thread.waiting.push(answer);
      const job: ImageJob = { bytes, path, channels };
      thread.worker.postMessage(job, [bytes.buffer]);
    });
    return image && ndArray("uint8", image.shape, image.data);
  }

  /** Ends the threads; what is under way is answered with null. */
  dispose(): void {
    for (const thread of this.#threads) end(thread);
  }
}

function startThread(): Thread {
  const worker = new Worker(IMAGE_WORKER, { type: "module" });
  const thread: Thread = { worker, waiting: [], failed: false };
  worker.onmessage = ({ data }: MessageEvent<DecodedImage | null>) =>
    thread.waiting.shift()?.(data);
  worker.onerror = (event) => {
    event.preventDefault(); // the thread could not start or broke down; that is no end of the program
    end(thread);
  };
  return thread;
}

function end(thread: Thread): void {
  thread.failed = true;
  thread.worker.terminate();
  for (const answer of thread.waiting.splice(0)) answer(null);
}
