// WebGPU reports errors silently and late. This collects all of them: error scopes that stay open between checks, scopes
// of single calls with the kernel's label, uncaptured errors and the loss of the device.
import { GpuError } from "../core/errors.ts";

const FILTERS: readonly GPUErrorFilter[] = ["validation", "out-of-memory", "internal"];

/** Turns every error of a device into an exception at the next check. */
export class ErrorWatch {
  readonly #gpu: GPUDevice;
  #pending: Promise<void>[] = [];
  #errors: string[] = [];
  #lost: string | undefined;

  /** @param gpu the device to watch, from now on */
  constructor(gpu: GPUDevice) {
    this.#gpu = gpu;
    gpu.lost.then((info) => this.#lost = info.message || info.reason);
    gpu.addEventListener("uncapturederror", (event) => {
      event.preventDefault();
      this.#errors.push((event as GPUUncapturedErrorEvent).error.message);
    });
    this.#open();
  }

  /**
   * Does something whose validation errors belong to a kernel.
   *
   * @param label the kernel's label
   * @param action what to do
   * @returns its result; an error is thrown by the next check
   */
  within<T>(label: string, action: () => T): T {
    this.#gpu.pushErrorScope("validation");
    const result = action();
    this.#close("validation", label);
    return result;
  }

  /**
   * Waits for the verdict on everything so far.
   *
   * @throws GpuError with the first error since the last check
   */
  async check(): Promise<void> {
    for (const filter of FILTERS) this.#close(filter);
    this.#open();
    const pending = this.#pending;
    this.#pending = [];
    await Promise.all(pending);
    if (this.#lost !== undefined) throw new GpuError(`The GPU device was lost: ${this.#lost}`);
    const [first] = this.#errors;
    this.#errors = [];
    if (first !== undefined) throw new GpuError(first);
  }

  #open(): void {
    for (const filter of FILTERS.toReversed()) this.#gpu.pushErrorScope(filter);
  }

  #close(filter: string, label?: string): void {
    this.#pending.push(
      this.#gpu.popErrorScope().then((error) => {
        if (error === null) return;
        const where = label === undefined ? "" : `kernel "${label}": `;
        this.#errors.push(`${where}${filter} error: ${error.message}`);
      }, () => {}), // a lost device rejects; check() reports the loss
    );
  }
}
