// GPU buffers are expensive to make and freed late when only dropped, so they are pooled by size class and given back
// explicitly. The pool counts what is live; a leak shows in the count.

/** Pool of storage buffers. */
export class BufferPool {
  readonly #device: GPUDevice;
  readonly #limit: number;
  readonly #free = new Map<number, GPUBuffer[]>();
  #liveBytes = 0;
  #pooledBytes = 0;
  #peakBytes = 0;

  /**
   * @param device owner of the buffers
   * @param limit largest buffer that may be bound, in bytes
   */
  constructor(device: GPUDevice, limit: number) {
    this.#device = device;
    this.#limit = limit;
  }

  /** Bytes handed out and not given back. */
  get liveBytes(): number {
    return this.#liveBytes;
  }

  /** Largest number of bytes ever held, pooled ones included. */
  get peakBytes(): number {
    return this.#peakBytes;
  }

  /**
   * A storage buffer of at least `byteLength` bytes.
   *
   * @param byteLength bytes wanted
   * @param label name for messages
   * @returns the buffer and whether its bytes are zero (a recycled buffer holds old data)
   * @throws RangeError when the adapter cannot bind that much
   */
  acquire(byteLength: number, label: string): { buffer: GPUBuffer; zeroed: boolean } {
    const size = sizeClass(byteLength);
    if (byteLength > this.#limit) {
      throw new RangeError(
        `Cannot allocate "${label}": ${byteLength} bytes, the adapter binds at most ${this.#limit}`,
      );
    }
    this.#liveBytes += size;
    const recycled = this.#free.get(size)?.pop();
    if (recycled !== undefined) {
      this.#pooledBytes -= size;
      return { buffer: recycled, zeroed: false };
    }
    this.#peakBytes = Math.max(this.#peakBytes, this.#liveBytes + this.#pooledBytes);
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    return { buffer: this.#device.createBuffer({ size, usage, label }), zeroed: true };
  }

  /** Gives a buffer back; its bytes may be handed out again at once. */
  release(buffer: GPUBuffer): void {
    this.#liveBytes -= buffer.size;
    this.#pooledBytes += buffer.size;
    const free = this.#free.get(buffer.size);
    if (free === undefined) this.#free.set(buffer.size, [buffer]);
    else free.push(buffer);
  }

  /** Destroys the buffers nobody uses. */
  trim(): void {
    for (const free of this.#free.values()) for (const buffer of free) buffer.destroy();
    this.#free.clear();
    this.#pooledBytes = 0;
  }
}

/** Rounds up to 256 bytes, then to a sixteenth of the power of two below, so that classes waste at most 1/16. */
function sizeClass(byteLength: number): number {
  const step = Math.max(256, 2 ** (Math.floor(Math.log2(Math.max(byteLength, 1))) - 4));
  return Math.max(256, Math.ceil(byteLength / step) * step);
}
