// Which samples each training step uses, on the host and on the GPU.
import { batchTable } from "../data/sampler.ts";
import type { Device } from "../gpu/device.ts";
import type { Tensor } from "../gpu/tensor.ts";

/** The mini-batches of a training run. */
export class MiniBatches implements Disposable {
  /** Samples of a step. */
  readonly batch: number;
  readonly steps: number;
  /** [steps, batch] row numbers. */
  readonly table: Uint32Array<ArrayBuffer>;
  /** The table as the kernels of kernels/gather.ts bind it. */
  readonly indices: Tensor;
  readonly #device: Device;

  /**
   * @param device where the run trains
   * @param rows samples to choose from
   * @param batch samples of a step
   * @param steps of the run
   * @param seed of the order
   */
  constructor(device: Device, rows: number, batch: number, steps: number, seed: number) {
    this.#device = device;
    this.batch = batch;
    this.steps = steps;
    this.table = batchTable(rows, batch, steps, seed);
    this.indices = device.uint32(this.table, { label: "mini-batches" });
  }

  /** Row numbers of a step; after the last comes the first again. */
  rowsOf(step: number): Uint32Array<ArrayBuffer> {
    const first = step % this.steps * this.batch;
    return this.table.subarray(first, first + this.batch);
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    this.#device.release(this.indices);
  }
}
