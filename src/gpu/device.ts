// The one door to the GPU. WebGPU reports errors silently and late; here every one becomes a thrown GpuError that names
// the kernel: pipelines are made inside error scopes, everything else inside scopes that each read closes and reopens.
import { type Kernel, type KernelSequence, paddedSize, type Target } from "../../kernels/kernel.ts";
import { GpuError } from "../core/errors.ts";
import { bindingEntries, checkBindings, pick } from "./bindings.ts";
import { type FindTiles, openAdapter } from "./adapter.ts";
import { type Command, type Dispatch, encode, encodeCopies } from "./commands.ts";
import { compileInThreads, type CompileOptions } from "./compile_in_threads.ts";
import { ErrorWatch } from "./error_watch.ts";
import { PipelineCache } from "./pipeline_cache.ts";
import { BufferPool } from "./pool.ts";
import type { Profiler } from "./profiler.ts";
import { ReadBack } from "./read_back.ts";
import { pad, type Tensor, unpad } from "./tensor.ts";
import { submitTimed, takeTimes } from "./timestamps.ts";

/** How a device is opened. */
export interface DeviceOptions {
  /** Kernel family; by default "software" on CPU adapters and "gpu" on the rest. */
  readonly family?: Target["family"];
  /** False reads by awaiting the mapping. */
  readonly synchronousReadBack?: boolean;
  /** False does without subgroups even where the adapter has them. */
  readonly subgroups?: boolean;
  /** Times every dispatch. */
  readonly profiler?: Profiler;
  /** Looks for tiles that were measured on the adapter; without them cost models choose. */
  readonly findTiles?: FindTiles;
}

/** A GPU (or a CPU that poses as one) with its kernels, memory and errors. */
export class Device implements Disposable {
  /** What kernels must know of the adapter. */
  readonly target: Target;
  /** Adapter description for reports, e.g. `llvmpipe (LLVM 15.0.6, 256 bits)`. */
  readonly adapterName: string;
  /** The adapter's limits, all of them requested. */
  readonly limits: GPUSupportedLimits;
  readonly #gpu: GPUDevice;
  readonly #pool: BufferPool;
  readonly #readBack: ReadBack;
  readonly #errors: ErrorWatch;
  readonly #pipelines: PipelineCache;
  readonly #compiledAhead = new Set<string>();
  readonly #profiler: Profiler | undefined;

  private constructor(
    gpu: GPUDevice,
    adapterName: string,
    target: Target,
    { synchronousReadBack = true, profiler }: DeviceOptions,
  ) {
    this.#gpu = gpu;
    this.target = target;
    this.adapterName = adapterName;
    this.limits = gpu.limits;
    this.#errors = new ErrorWatch(gpu);
    this.#pipelines = new PipelineCache(gpu, this.#errors);
    this.#pool = new BufferPool(
      gpu,
      Math.min(gpu.limits.maxStorageBufferBindingSize, gpu.limits.maxBufferSize),
    );
    this.#readBack = new ReadBack(gpu, synchronousReadBack);
    this.#profiler = profiler;
  }

  /**
   * Opens the adapter with all its limits, with subgroups where it has them.
   *
   * @param options kernel family and fallbacks, for tests and odd adapters
   * @returns the device
   * @throws GpuError when there is no adapter, or a profiler but no timestamps
   */
  static async open(options: DeviceOptions = {}): Promise<Device> {
    const { subgroups = true, family, profiler, findTiles } = options;
    const { gpu, name, target } = await openAdapter({ subgroups, family, findTiles });
    if (profiler && !gpu.features.has("timestamp-query")) {
      throw new GpuError("The adapter has no timestamps, which a profile needs");
    }
    return new Device(gpu, name, target, options);
  }

  /** Bytes of GPU memory in use. */
  get liveBytes(): number {
    return this.#pool.liveBytes;
  }

  /** Largest number of bytes of GPU memory ever held. */
  get peakBytes(): number {
    return this.#pool.peakBytes;
  }

  /** Whether the GPU's kernels may keep float16 in their tiles: tiles are for GPUs only, float16 for those that have it. */
  get hasFloat16Tiles(): boolean {
    return this.target.family === "gpu" && this.#gpu.features.has("shader-f16");
  }

  /** Whether read-back takes the fast way. */
  get synchronousReadBack(): boolean {
    return this.#readBack.synchronous;
  }

  /** Largest tensor that can be bound, in bytes. */
  get maxTensorBytes(): number {
    return Math.min(this.limits.maxStorageBufferBindingSize, this.limits.maxBufferSize);
  }

  /**
   * A tensor of zeros (or, with `zeroed: false`, of whatever was there).
   *
   * @param shape logical shape, channels last
   * @param options label for messages
   * @returns the tensor; give it back with {@linkcode Device.release}
   */
  tensor(
    shape: readonly number[],
    options: { label?: string; zeroed?: boolean } = {},
  ): Tensor {
    const { label = "tensor", zeroed = true } = options;
    return this.#allocate(shape, Math.max(4, paddedSize(shape)) * 4, label, zeroed);
  }

  /**
   * A tensor with the given elements.
   *
   * @param shape logical shape, channels last
   * @param data logical elements in C order
   * @param options label for messages
   * @returns the tensor
   * @throws RangeError when the data does not fill the shape
   */
  fromArray(
    shape: readonly number[],
    data: ArrayLike<number>,
    options: { label?: string } = {},
  ): Tensor {
    const tensor = this.tensor(shape, { ...options, zeroed: false });
    this.upload(tensor, data);
    return tensor;
  }

  /**
   * A buffer of 32-bit words: tables and indices, bound as array<u32>.
   *
   * @param data the words
   * @param options label for messages
   * @returns a tensor whose shape is the number of words
   */
  uint32(data: Uint32Array<ArrayBuffer>, options: { label?: string } = {}): Tensor {
    const { label = "table" } = options;
    const bytes = Math.max(16, data.byteLength);
    const tensor = this.#allocate([data.length], bytes, label, true);
    this.uploadRaw(tensor, data);
    return tensor;
  }

  /**
   * Overwrites a tensor with logical elements.
   *
   * @param tensor the target
   * @param data as many elements as its shape has
   * @throws RangeError when the counts differ
   */
  upload(tensor: Tensor, data: ArrayLike<number>): void {
    const size = tensor.shape.reduce((product, n) => product * n, 1);
    if (size !== data.length) {
      throw new RangeError(
        `Cannot upload ${data.length} elements to "${tensor.label}": its shape [${
          tensor.shape.join(", ")
        }] has ${size}`,
      );
    }
    this.uploadRaw(tensor, pad(tensor.shape, data));
  }

  /** Overwrites the raw words of a tensor, starting at its first byte. */
  uploadRaw(tensor: Tensor, data: Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>): void {
    if (data.length === 0) return; // Deno 2.9 aborts the process on an empty write
    this.#gpu.queue.writeBuffer(tensor.buffer, tensor.offset, data);
  }

  /** Gives a tensor's memory back. Views share their buffer: release the whole, once. */
  release(tensor: Tensor): void {
    this.#pool.release(tensor.buffer);
  }

  /** Destroys pooled buffers that nobody uses. */
  trim(): void {
    this.#pool.trim();
  }

  /**
   * The logical elements of a tensor, after all work submitted so far.
   *
   * @param tensor the tensor
   * @returns a copy
   * @throws GpuError when anything went wrong on the device since the last read
   */
  async read(tensor: Tensor): Promise<Float32Array<ArrayBuffer>> {
    return unpad(tensor.shape, await this.readRaw(tensor));
  }

  /** As {@linkcode Device.read}, padding included. */
  async readRaw(tensor: Tensor): Promise<Float32Array<ArrayBuffer>> {
    return new Float32Array(await this.#readBytes(tensor));
  }

  /** As {@linkcode Device.read}, as raw words. */
  async readUint32(tensor: Tensor): Promise<Uint32Array<ArrayBuffer>> {
    return new Uint32Array(await this.#readBytes(tensor));
  }

  /**
   * Waits for all submitted work.
   *
   * @throws GpuError when anything went wrong on the device since the last check
   */
  async synchronize(): Promise<void> {
    const probe = this.#allocate([4], 16, "synchronize", false);
    await this.#readBytes(probe);
    this.release(probe);
  }

  /**
   * Lets timers and signals run. Synchronous read-back never leaves the event loop idle, so long work calls this
   * between submits; otherwise an interrupt would wait for its end, and finished GPU futures would pile up.
   */
  async breathe(): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, 0));
  }

  /**
   * Runs a kernel now.
   *
   * @param kernel one kernel, or several that run in order
   * @param bindings a tensor for every binding, by name
   * @throws TypeError when a binding is missing or unknown
   */
  run(kernel: Kernel | KernelSequence, bindings: Readonly<Record<string, Tensor>>): void {
    if ("kernels" in kernel) {
      checkBindings(kernel, bindings);
      const temporaries = Object.entries(kernel.temporaries).map(([name, size]) =>
        [name, this.tensor([size], { label: name, zeroed: false })] as const
      );
      const all = { ...bindings, ...Object.fromEntries(temporaries) };
      this.submit(kernel.kernels.map((one) => this.prepare(one, pick(one, all))));
      for (const [, tensor] of temporaries) this.release(tensor);
      return;
    }
    this.submit([this.prepare(kernel, bindings)]);
  }

  /**
   * Makes a dispatch: pipeline from the cache, bind group for these tensors.
   *
   * @param kernel the kernel
   * @param bindings a tensor for every binding, by name
   * @returns what {@linkcode Device.submit} takes
   * @throws TypeError when a binding is missing or unknown, or one buffer is both read and written
   * @throws RangeError when the grid is too large
   */
  prepare(kernel: Kernel, bindings: Readonly<Record<string, Tensor>>): Dispatch {
    const { pipeline, layout } = this.#pipelines.get(kernel);
    const most = this.limits.maxComputeWorkgroupsPerDimension;
    const entries = bindingEntries(kernel, bindings, most);
    const { label, grid } = kernel;
    const bindGroup = this.#errors.within(
      label,
      () => this.#gpu.createBindGroup({ layout, entries, label }),
    );
    return { label, pipeline, bindGroup, grid };
  }

  /**
   * Has the driver compile a kernel, which it otherwise does when the kernel first runs: none of its workgroups is run.
   *
   * @param kernel what to compile
   * @throws GpuError when it does not compile
   */
  async compile(kernel: Kernel): Promise<void> {
    const bindings = kernel.bindings.map(({ name }) => [name, this.tensor([64])] as const);
    try {
      this.submit([{ ...this.prepare(kernel, Object.fromEntries(bindings)), grid: [0, 1, 1] }]);
      await this.synchronize();
    } finally {
      for (const [, tensor] of bindings) this.release(tensor);
    }
  }

  /**
   * Compiles kernels ahead, in several threads where the driver would compile them one after another: on CPU adapters.
   *
   * @param kernels what will run later
   * @param options who watches
   * @throws GpuError when one does not compile
   */
  async compileAhead(kernels: readonly Kernel[], options?: CompileOptions): Promise<void> {
    if (this.target.family !== "software") return;
    const missing = new Map(kernels.map((kernel) => [kernel.code, kernel]));
    for (const [code, kernel] of missing) {
      if (this.#pipelines.has(kernel) || this.#compiledAhead.has(code)) missing.delete(code);
      this.#compiledAhead.add(code);
    }
    await compileInThreads([...missing.values()], (kernel) => this.compile(kernel), options);
  }

  /**
   * Runs work in order, in one command buffer.
   *
   * @param commands what to run
   */
  submit(commands: readonly Command[]): void {
    if (this.#profiler) {
      this.#profiler.submit(this.#gpu, commands);
      return;
    }
    const encoder = this.#gpu.createCommandEncoder();
    encode(encoder, commands);
    this.#gpu.queue.submit([encoder.finish()]);
  }

  /**
   * Runs work once, timing each command with GPU timestamps.
   *
   * @param commands what to run
   * @returns nanoseconds of each, or undefined where the adapter has no timestamps
   */
  async time(commands: readonly Command[]): Promise<number[] | undefined> {
    if (!this.#gpu.features.has("timestamp-query")) return undefined;
    const times: number[] = [];
    for (const work of submitTimed(this.#gpu, commands)) {
      times.push(...await takeTimes(work, this.#readBack));
    }
    await this.#errors.check();
    return times;
  }

  /**
   * Copies bytes between tensors.
   *
   * @param from source
   * @param to target; neither may be a view of the other's buffer
   * @param range first byte in each and number of bytes (multiples of 4); by default all of the source
   */
  copy(
    from: Tensor,
    to: Tensor,
    range: { fromByte?: number; toByte?: number; byteLength?: number } = {},
  ): void {
    const { fromByte = 0, toByte = 0, byteLength = from.byteLength } = range;
    const encoder = this.#gpu.createCommandEncoder();
    const ranges = [{ from, fromByte, to, toByte, byteLength }];
    encodeCopies(encoder, { label: from.label, ranges });
    this.#gpu.queue.submit([encoder.finish()]);
  }

  /** Destroys the device and all its memory. */
  dispose(): void {
    this.#readBack.dispose();
    this.#pool.trim();
    this.#gpu.destroy();
  }

  /** As {@linkcode Device.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #allocate(shape: readonly number[], bytes: number, label: string, zeroed: boolean): Tensor {
    const acquired = this.#pool.acquire(bytes, label);
    if (zeroed && !acquired.zeroed) {
      const encoder = this.#gpu.createCommandEncoder();
      encoder.clearBuffer(acquired.buffer);
      this.#gpu.queue.submit([encoder.finish()]);
    }
    return { shape: [...shape], buffer: acquired.buffer, offset: 0, byteLength: bytes, label };
  }

  async #readBytes(tensor: Tensor): Promise<ArrayBuffer> {
    let bytes: ArrayBuffer;
    try {
      bytes = await this.#readBack.read(tensor.buffer, tensor.offset, tensor.byteLength);
    } catch (error) {
      await this.#errors.check();
      throw new GpuError(`Cannot read "${tensor.label}": ${(error as Error).message}`);
    }
    await this.#profiler?.collect(this.#readBack);
    await this.#errors.check();
    return bytes;
  }
}
