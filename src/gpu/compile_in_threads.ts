// Compiling many shaders before they are needed. Drivers of CPU adapters compile in the thread that submits, a second
// for a large kernel, and keep the result on disk: several threads, each with a device of its own, fill that cache, and
// the device that runs the kernels takes them from there.
import type { Kernel } from "../../kernels/kernel.ts";
import { mayStartWorker } from "../core/worker_source.ts";

const MOST_THREADS = 4;

/** How shaders are compiled. */
export interface CompileOptions {
  /** Called with the number of kernels done, of `total`, once there is something to wait for. */
  readonly onCompiled?: ((done: number, total: number) => void) | undefined;
  /** Stops the compilation between two kernels. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Compiles kernels. As long as the driver has them in its cache this thread takes them from there, the shortest first;
 * one that takes too long for that calls for threads, which begin with the longest.
 *
 * @param kernels what to compile
 * @param compileHere compiles one of them in this thread
 * @param options who watches
 * @param isCached whether so many milliseconds mean that a kernel came from the cache
 */
export async function compileInThreads(
  kernels: readonly Kernel[],
  compileHere: (kernel: Kernel) => Promise<void>,
  { onCompiled = () => {}, signal }: CompileOptions = {},
  isCached: (kernel: Kernel, milliseconds: number) => boolean = wasQuick,
): Promise<void> {
  const queue = kernels.toSorted((a, b) => b.code.length - a.code.length);
  let done = 0;
  const next = (from: "shift" | "pop") => {
    signal?.throwIfAborted();
    return queue[from]();
  };
  for (let kernel = next("pop"); kernel; kernel = next("pop")) {
    const start = performance.now();
    await compileHere(kernel);
    done++;
    if (!isCached(kernel, performance.now() - start)) break;
  }
  const threads = mayStartWorker(WORKER)
    ? Math.min(navigator.hardwareConcurrency, MOST_THREADS, queue.length)
    : 0;
  await Promise.all(Array.from({ length: threads }, async () => {
    using thread = new CompilerThread();
    for (let kernel = next("shift"); kernel; kernel = next("shift")) {
      if (!await thread.compile(kernel)) break;
      onCompiled(++done, kernels.length);
    }
  }));
}

/** On current machines a cached kernel takes 4 ms and half a millisecond a kB, a new one ten times as long. */
function wasQuick({ code }: Kernel, milliseconds: number): boolean {
  return milliseconds < 20 + 2 * code.length / 1000;
}

const WORKER = new URL("./shader_worker.ts", import.meta.url);

/** A worker that compiles one kernel at a time. */
class CompilerThread implements Disposable {
  readonly #worker = new Worker(WORKER, { type: "module" });

  /** Whether the worker is still alive afterwards. */
  compile({ label, code, bindings }: Kernel): Promise<boolean> {
    return new Promise((resolve) => {
      this.#worker.onmessage = () => resolve(true);
      this.#worker.onerror = (event) => {
        event.preventDefault();
        resolve(false);
      };
      this.#worker.postMessage({ label, code, bindings, grid: [0, 1, 1] } satisfies Kernel);
    });
  }

  /** Ends the thread. */
  [Symbol.dispose](): void {
    this.#worker.terminate();
  }
}
