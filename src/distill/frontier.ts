// Activations of all samples at one tensor of the network, resident on the GPU. The block loop moves this frontier
// through the network once, so its cost is linear in depth. A set is cut into chunks, since a binding is limited.
import { gatherBatch } from "../../kernels/gather.ts";
import { paddedSize } from "../../kernels/kernel.ts";
import type { CopyRange } from "../gpu/commands.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { MiniBatches } from "./mini_batches.ts";

/** Rows of chunks are a multiple of this, so that batches of usual sizes do not straddle chunks. */
const CHUNK_GRAIN = 64;

/**
 * Bytes from which a CPU copies the rows of a mini-batch one by one: the driver's memcpy is several times as fast as a
 * kernel's stores, but each copy takes some microseconds.
 */
const COPIED_ROW = 1 << 14;

/** Many rows (samples) of one shape. */
export class RowSet implements Disposable {
  readonly rows: number;
  /** Shape of one row. */
  readonly rowShape: readonly number[];
  readonly #device: Device;
  readonly #chunkRows: number;
  readonly #chunks: Tensor[] = [];

  /**
   * @param device where the rows lie
   * @param rows how many
   * @param rowShape shape of one, channels last
   * @param label name for messages
   */
  constructor(device: Device, rows: number, rowShape: readonly number[], label: string) {
    this.rows = rows;
    this.rowShape = rowShape;
    this.#device = device;
    const fit = Math.floor(device.maxTensorBytes / this.rowBytes);
    this.#chunkRows = fit >= CHUNK_GRAIN ? fit - fit % CHUNK_GRAIN : Math.max(1, fit);
    for (let first = 0; first < rows; first += this.#chunkRows) {
      const size = Math.min(this.#chunkRows, rows - first);
      this.#chunks.push(device.tensor([size, ...rowShape], { label, zeroed: false }));
    }
  }

  /** Bytes of one row. */
  get rowBytes(): number {
    return paddedSize([1, ...this.rowShape]) * 4;
  }

  /** Uploads rows from the host, in logical order. */
  upload(first: number, data: Float32Array<ArrayBuffer>): void {
    const size = this.rowShape.reduce((product, n) => product * n, 1);
    this.#forEachPart(first, data.length / size, (chunk, at, count, done) => {
      const staging = this.#device.fromArray(
        [count, ...this.rowShape],
        data.subarray(done * size, (done + count) * size),
      );
      this.#device.copy(staging, chunk, { toByte: at * this.rowBytes });
      this.#device.release(staging);
    });
  }

  /** Copies rows into a tensor [count, ...rowShape]. */
  copyOut(first: number, count: number, to: Tensor): void {
    this.#forEachPart(first, count, (chunk, at, size, done) =>
      this.#device.copy(chunk, to, {
        fromByte: at * this.rowBytes,
        toByte: done * this.rowBytes,
        byteLength: size * this.rowBytes,
      }));
  }

  /** Copies a tensor [count, ...rowShape] over rows. */
  copyIn(from: Tensor, first: number, count: number): void {
    this.#forEachPart(first, count, (chunk, at, size, done) =>
      this.#device.copy(from, chunk, {
        fromByte: done * this.rowBytes,
        toByte: at * this.rowBytes,
        byteLength: size * this.rowBytes,
      }));
  }

  /**
   * Records the choice of a mini-batch.
   *
   * @param plan where to record; its replays are the steps
   * @param batches the rows of each step
   * @param state the training state; state[0] is the step
   * @param label name of the result
   * @returns [batch, ...rowShape]
   */
  recordGather(plan: Plan, batches: MiniBatches, state: Tensor, label: string): Tensor {
    const { batch, steps, indices } = batches;
    const y = plan.tensor([batch, ...this.rowShape], label);
    if (this.#device.target.family === "software" && this.rowBytes >= COPIED_ROW) {
      plan.copy(
        `gather ${batch}x${this.rowBytes / 16}`,
        (step) => this.#copiesOut(batches.rowsOf(step), y),
      );
      return y;
    }
    this.#chunks.forEach((x, i) => {
      const kernel = gatherBatch({
        batch,
        rowSize: this.rowBytes / 16,
        firstRow: i * this.#chunkRows,
        rows: x.shape[0]!,
        steps,
      });
      plan.run(kernel, { x, indices, state, y });
    });
    return y;
  }

  /** Gives the memory back. */
  [Symbol.dispose](): void {
    for (const chunk of this.#chunks) this.#device.release(chunk);
    this.#chunks.length = 0;
  }

  #copiesOut(rows: Uint32Array, to: Tensor): CopyRange[] {
    const byteLength = this.rowBytes;
    return Array.from(rows, (row, i) => ({
      from: this.#chunks[Math.floor(row / this.#chunkRows)]!,
      fromByte: row % this.#chunkRows * byteLength,
      to,
      toByte: i * byteLength,
      byteLength,
    }));
  }

  #forEachPart(
    first: number,
    count: number,
    visit: (chunk: Tensor, at: number, size: number, done: number) => void,
  ): void {
    for (let done = 0; done < count;) {
      const row = first + done;
      const at = row % this.#chunkRows;
      const size = Math.min(count - done, this.#chunkRows - at);
      visit(this.#chunks[Math.floor(row / this.#chunkRows)]!, at, size, done);
      done += size;
    }
  }
}

/** The row sets of some tensors, by name. */
export type Frontier = Map<string, RowSet>;
