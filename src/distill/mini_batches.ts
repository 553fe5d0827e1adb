// The mini-batches of a training run: which rows each step takes, on the host and on the GPU.
import type { Device } from "../gpu/device.ts";
import type { Tensor } from "../gpu/tensor.ts";

/** The rows of every step. */
export class MiniBatches implements Disposable {
  /** [steps * batch] row numbers on the GPU. */
  readonly indices: Tensor;
  /** Rows of a step. */
  readonly batch: number;
  /** How many steps there are. */
  readonly steps: number;
  readonly #device: Device;
  readonly #table: Uint32Array<ArrayBuffer>;
  readonly #owned: Tensor[] = [];

  /**
   * @param device where the row sets are used
   * @param table [steps * batch] row numbers
   * @param batch rows of a step
   */
  constructor(device: Device, table: Uint32Array<ArrayBuffer>, batch: number) {
    this.#device = device;
    this.#table = table;
    this.batch = batch;
    this.steps = table.length / batch;
    this.indices = this.own(device.uint32(table, { label: "mini-batches" }));
  }

  /** Row numbers of a step; after the last comes the first again. */
  rowsOf(step: number): Uint32Array<ArrayBuffer> {
    const first = (step % this.steps) * this.batch;
    return this.#table.subarray(first, first + this.batch);
  }

  /** Keeps a tensor until the mini-batches are disposed of. */
  own(tensor: Tensor): Tensor {
    this.#owned.push(tensor);
    return tensor;
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    for (const tensor of this.#owned) this.#device.release(tensor);
    this.#owned.length = 0;
  }
}
