// Activations of all samples at one tensor of the network. The block loop moves this frontier through the network once,
// so its cost is linear in depth. Rows are stored as float32, as float16 or as a quantizer's codes, on the GPU in chunks
// (a binding is limited) or in host memory; whoever reads them gets float32 on the GPU.
import { gatherBatch } from "../../kernels/gather.ts";
import { type Kernel, paddedSize } from "../../kernels/kernel.ts";
import { encodeCodes, encodeFloat16, type RowFormat, storedForm } from "../../kernels/row_codes.ts";
import type { CopyRange } from "../gpu/commands.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import { pad, type Tensor } from "../gpu/tensor.ts";
import type { ActivationQParams } from "../graph/quantized_graph.ts";
import { HostRows } from "./host_rows.ts";
import type { MiniBatches } from "./mini_batches.ts";

/** Rows of chunks are a multiple of this, so that batches of usual sizes do not straddle chunks. */
const CHUNK_GRAIN = 64;
/**
 * Bytes from which a CPU copies the rows of a mini-batch one by one: the driver's memcpy is several times as fast as a
 * kernel's stores, but each copy takes some microseconds.
 */
const COPIED_ROW = 1 << 14;
/** Bytes of one read-back at most: its staging buffer is kept. */
const READ_BACK_BYTES = 1 << 24;

/** How a row set stores its values; the quantizer's parameters mean the codes of values that went through it. */
export type RowStorage = "float32" | "float16" | ActivationQParams;

/** Where a row set lies. */
export type Residence = "gpu" | "host";

/** How and where a row set is stored. */
export interface RowSetOptions {
  readonly storage?: RowStorage;
  readonly residence?: Residence;
}

/** Stored rows on the GPU: rows [first, first + rows) of the set, as `place` says too. */
interface Chunk {
  readonly x: Tensor;
  /** [first, rows] */
  readonly place: Tensor;
}

/** Many rows (samples) of one shape. */
export class RowSet implements Disposable {
  readonly rows: number;
  /** Shape of one row. */
  readonly rowShape: readonly number[];
  readonly #device: Device;
  readonly #label: string;
  readonly #format: RowFormat;
  readonly #chunkRows: number;
  readonly #chunks: Chunk[] = [];
  readonly #host: HostRows | undefined;
  /** What the format's kernels need: scale and grid of codes, range of float16. */
  readonly #parameters: Readonly<Record<string, Tensor>>;

  /**
   * @param device where the rows are used
   * @param rows how many
   * @param rowShape shape of one, channels last
   * @param label name for messages
   * @param options how and where they are stored: by default as float32 on the GPU
   * @throws RangeError when a quantizer has more than 256 levels
   */
  constructor(
    device: Device,
    rows: number,
    rowShape: readonly number[],
    label: string,
    { storage = "float32", residence = "gpu" }: RowSetOptions = {},
  ) {
    this.rows = rows;
    this.rowShape = rowShape;
    this.#device = device;
    this.#label = label;
    this.#format = typeof storage === "string" ? storage : "codes";
    this.#parameters = parametersOf(device, storage, label);
    const fit = Math.floor(device.maxTensorBytes / this.rowBytes);
    this.#chunkRows = fit >= CHUNK_GRAIN ? fit - fit % CHUNK_GRAIN : Math.max(1, fit);
    if (residence === "host") {
      this.#host = new HostRows(rows, this.rowBytes / 4);
      return;
    }
    for (let first = 0; first < rows; first += this.#chunkRows) {
      this.#chunks.push(this.#makeChunk(first, Math.min(this.#chunkRows, rows - first)));
    }
  }

  /** Bytes of one row as it is stored. */
  get rowBytes(): number {
    // A vec4 has 4 elements and takes this many words of 4 bytes.
    return paddedSize([1, ...this.rowShape]) * storedForm(this.#format).words;
  }

  /** Uploads rows from the host into a float32 set, in logical order. */
  upload(first: number, data: Float32Array<ArrayBuffer>): void {
    const size = this.rowShape.reduce((product, n) => product * n, 1);
    this.#forEachPart(first, data.length / size, (at, count, done) => {
      const part = data.subarray(done * size, (done + count) * size);
      const words = pad([count, ...this.rowShape], part);
      if (this.#host) return this.#host.write(first + done, new Uint32Array(words.buffer));
      const { x } = this.#chunkOf(first + done);
      this.#device.uploadRaw({ ...x, offset: x.offset + at * this.rowBytes }, words);
    });
  }

  /**
   * Copies rows out.
   *
   * @param first row number
   * @param count how many
   * @param to [count or more, ...rowShape]; further rows become copies of the last one
   */
  copyOut(first: number, count: number, to: Tensor): void {
    const batch = to.shape[0]!;
    if (this.#isPlain && count === batch) return this.#copyPlain(first, count, to);
    const rows = Uint32Array.from({ length: batch }, (_, i) => first + Math.min(i, count - 1));
    const device = this.#device;
    const state = device.tensor([4], { label: "step 0" });
    const host = this.#host;
    const window = host && this.#makeChunk(0, batch);
    if (window) this.#device.uploadRaw(window.x, host.read(rows));
    const indices = device.uint32(window ? firstNumbers(batch) : rows, { label: "rows" });
    const from = window ? [window] : this.#chunksOf(first, count);
    const spec = { batch, steps: 1 };
    this.#gather(from, spec, { indices, state, y: to }, (kernel, all) => device.run(kernel, all));
    for (const tensor of [state, indices, ...window ? [window.x, window.place] : []]) {
      device.release(tensor);
    }
  }

  /**
   * Copies a tensor over rows.
   *
   * @param from [count or more, ...rowShape]
   * @param first row number
   * @param count how many
   */
  async copyIn(from: Tensor, first: number, count: number): Promise<void> {
    const device = this.#device;
    const stored = this.#encode(from);
    if (this.#host) {
      await this.#readInto(this.#host, stored, first, count);
    } else {
      this.#forEachPart(first, count, (at, size, done) => {
        device.copy(stored, this.#chunkOf(first + done).x, {
          fromByte: done * this.rowBytes,
          toByte: at * this.rowBytes,
          byteLength: size * this.rowBytes,
        });
      });
    }
    if (stored !== from) device.release(stored);
  }

  /**
   * Whether what was copied in keeps its accuracy. Only float16 can fail to: beyond its range, or far below it.
   *
   * @returns false when the set should be made anew with other storage
   */
  async isAccurate(): Promise<boolean> {
    const { range } = this.#parameters;
    if (range === undefined || this.rows === 0) return true;
    const [above = 0, normal = 0] = await this.#device.readUint32(range);
    return above === 0 && normal === 1;
  }

  /**
   * Records the choice of a mini-batch.
   *
   * @param plan where to record; its replays are the steps
   * @param batches the rows of every step
   * @param state the training state; state[0] is the step
   * @param label name of the result
   * @returns [batch, ...rowShape]
   */
  recordGather(plan: Plan, batches: MiniBatches, state: Tensor, label: string): Tensor {
    const { batch } = batches;
    const y = plan.tensor([batch, ...this.rowShape], label);
    const record = (kernel: Kernel, all: Readonly<Record<string, Tensor>>) => plan.run(kernel, all);
    const host = this.#host;
    if (host === undefined) {
      const onCpu = this.#device.target.family === "software";
      if (this.#isPlain && onCpu && this.rowBytes >= COPIED_ROW) {
        const label = `gather ${batch}x${this.rowBytes / 16}`;
        plan.copy(label, (step) => this.#copiesOf(batches.rowsOf(step), y));
      } else {
        this.#gather(this.#chunks, batches, { indices: batches.indices, state, y }, record);
      }
      return y;
    }
    const window = this.#makeChunk(0, batch);
    batches.own(window.x);
    batches.own(window.place);
    plan.beforeReplay((step) => this.#device.uploadRaw(window.x, host.read(batches.rowsOf(step))));
    const indices = batches.own(this.#device.uint32(firstNumbers(batch), { label: "rows" }));
    this.#gather([window], { batch, steps: 1 }, { indices, state, y }, record);
    return y;
  }

  /** Gives the memory back. */
  [Symbol.dispose](): void {
    const chunks = this.#chunks.flatMap(({ x, place }) => [x, place]);
    for (const tensor of [...chunks, ...Object.values(this.#parameters)]) {
      this.#device.release(tensor);
    }
    this.#chunks.length = 0;
  }

  /** Whether stored rows are float32 on the GPU, so that they can be copied as they are. */
  get #isPlain(): boolean {
    return this.#format === "float32" && this.#host === undefined;
  }

  #copyPlain(first: number, count: number, to: Tensor): void {
    this.#forEachPart(
      first,
      count,
      (at, size, done) =>
        this.#device.copy(this.#chunkOf(first + done).x, to, {
          fromByte: at * this.rowBytes,
          toByte: done * this.rowBytes,
          byteLength: size * this.rowBytes,
        }),
    );
  }

  /** Copies of rows, one after another, from float32 chunks. */
  #copiesOf(rows: Uint32Array, to: Tensor): CopyRange[] {
    const byteLength = this.rowBytes;
    return Array.from(rows, (row, i) => ({
      from: this.#chunkOf(row).x,
      fromByte: row % this.#chunkRows * byteLength,
      to,
      toByte: i * byteLength,
      byteLength,
    }));
  }

  #makeChunk(first: number, rows: number): Chunk {
    const words = rows * this.rowBytes / 4;
    const x = this.#device.tensor([words], { label: this.#label, zeroed: false });
    return { x, place: this.#device.uint32(Uint32Array.of(first, rows), { label: "place" }) };
  }

  /** The stored form of a tensor: a new one, unless it is float32 itself. */
  #encode(x: Tensor): Tensor {
    if (this.#format === "float32") return x;
    const device = this.#device, size = x.byteLength / 16;
    const words = size * storedForm(this.#format).words;
    const y = device.tensor([words], { label: `stored ${this.#label}`, zeroed: false });
    const kernel = this.#format === "codes" ? encodeCodes(size) : encodeFloat16(size);
    device.run(kernel, { x, y, ...this.#parameters });
    return y;
  }

  /** Collects rows into y from chunks that hold them. */
  #gather(
    chunks: readonly Chunk[],
    { batch, steps }: { readonly batch: number; readonly steps: number },
    tensors: Readonly<Record<"indices" | "state" | "y", Tensor>>,
    run: (kernel: Kernel, bindings: Readonly<Record<string, Tensor>>) => void,
  ): void {
    const format = this.#format, rowSize = paddedSize([1, ...this.rowShape]) / 4;
    const kernel = gatherBatch({ batch, rowSize, steps, format });
    const { qparams } = this.#parameters;
    for (const { x, place } of chunks) {
      run(kernel, { x, place, ...tensors, ...(qparams && { qparams }) });
    }
  }

  async #readInto(host: HostRows, stored: Tensor, first: number, count: number): Promise<void> {
    const most = Math.max(1, Math.floor(READ_BACK_BYTES / this.rowBytes));
    for (let done = 0; done < count; done += most) {
      const byteLength = Math.min(most, count - done) * this.rowBytes;
      const part = { ...stored, offset: stored.offset + done * this.rowBytes, byteLength };
      host.write(first + done, await this.#device.readUint32(part));
    }
  }

  #chunkOf(row: number): Chunk {
    return this.#chunks[Math.floor(row / this.#chunkRows)]!;
  }

  #chunksOf(first: number, count: number): Chunk[] {
    const chunks: Chunk[] = [];
    this.#forEachPart(first, count, (_at, _size, done) => chunks.push(this.#chunkOf(first + done)));
    return chunks;
  }

  #forEachPart(
    first: number,
    count: number,
    visit: (at: number, size: number, done: number) => void,
  ): void {
    for (let done = 0; done < count;) {
      const at = (first + done) % this.#chunkRows;
      const size = Math.min(count - done, this.#chunkRows - at);
      visit(at, size, done);
      done += size;
    }
  }
}

/** The row sets of some tensors, by name. */
export type Frontier = Map<string, RowSet>;

function parametersOf(device: Device, storage: RowStorage, label: string): Record<string, Tensor> {
  if (storage === "float32") return {};
  if (storage === "float16") {
    return { range: device.uint32(new Uint32Array(2), { label: "range" }) };
  }
  const { scale, zeroPoint, quantMin, quantMax } = storage;
  if (quantMax - quantMin > 255) {
    throw new RangeError(
      `Cannot store "${label}" as codes: its quantizer has ${
        quantMax - quantMin + 1
      } levels, expected at most 256`,
    );
  }
  const values = [scale, zeroPoint, quantMin, quantMax];
  return { qparams: device.fromArray([4], values, { label: `grid of ${label}` }) };
}

/** 0, 1, 2, ... */
function firstNumbers(count: number): Uint32Array<ArrayBuffer> {
  return Uint32Array.from({ length: count }, (_, i) => i);
}
