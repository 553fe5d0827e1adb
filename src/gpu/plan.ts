// Work recorded once and replayed many times: kernels, bind groups and buffers are made while recording; a replay only
// encodes and submits. Copies may choose their ranges anew for every replay. Buffers released while recording are handed to later work of the same plan, which is safe
// because every replay runs in recorded order; so memory follows lifetimes, not the number of tensors.
import { type Kernel, type KernelSequence, paddedSize } from "../../kernels/kernel.ts";
import { checkBindings, pick } from "./bindings.ts";
import type { Command, CopyRange } from "./commands.ts";
import type { Device } from "./device.ts";
import type { Tensor } from "./tensor.ts";

/** Takes kernels in the order they run. */
export interface Recorder {
  readonly device: Device;
  /** A tensor for intermediate results; its bytes are whatever was there. */
  tensor(shape: readonly number[], label: string): Tensor;
  /** Lets later work reuse the tensor's memory. */
  release(tensor: Tensor): void;
  /** Runs a kernel at this point, with a tensor for every binding by name. */
  run(kernel: Kernel | KernelSequence, bindings: Readonly<Record<string, Tensor>>): void;
}

/** A recorded list of dispatches with the memory they need. */
export class Plan implements Recorder, Disposable {
  readonly device: Device;
  readonly #work: ((replay: number) => Command)[] = [];
  readonly #preparations: ((replay: number) => void)[] = [];
  #replays = 0;
  readonly #owned = new Set<GPUBuffer>();
  readonly #free: Tensor[] = [];

  /** @param device where the plan runs */
  constructor(device: Device) {
    this.device = device;
  }

  /** How many commands one replay runs. */
  get length(): number {
    return this.#work.length;
  }

  /** What the next replay runs, for profiling. */
  get commands(): readonly Command[] {
    return this.#work.map((command) => command(this.#replays));
  }

  /** As {@linkcode Recorder.tensor}; the memory belongs to the plan. */
  tensor(shape: readonly number[], label: string): Tensor {
    const bytes = Math.max(4, paddedSize(shape)) * 4;
    // The smallest free buffer that fits without wasting more than half of it.
    let best = -1;
    for (let i = 0; i < this.#free.length; i++) {
      const size = this.#free[i]!.buffer.size;
      if (size < bytes || size > 2 * bytes + 4096) continue;
      if (best < 0 || size < this.#free[best]!.buffer.size) best = i;
    }
    if (best >= 0) {
      const [{ buffer }] = this.#free.splice(best, 1) as [Tensor];
      return { shape: [...shape], buffer, offset: 0, byteLength: bytes, label };
    }
    const tensor = this.device.tensor(shape, { label, zeroed: false });
    this.#owned.add(tensor.buffer);
    return tensor;
  }

  /** As {@linkcode Recorder.release}; tensors the plan does not own are left alone. */
  release(tensor: Tensor): void {
    if (this.#owned.has(tensor.buffer) && !this.#free.some((f) => f.buffer === tensor.buffer)) {
      this.#free.push(tensor);
    }
  }

  /** As {@linkcode Recorder.run}. */
  run(kernel: Kernel | KernelSequence, bindings: Readonly<Record<string, Tensor>>): void {
    if (!("kernels" in kernel)) {
      this.#dispatch(kernel, bindings);
      return;
    }
    checkBindings(kernel, bindings);
    const temporaries = Object.entries(kernel.temporaries).map(([name, size]) =>
      [name, this.tensor([size], name)] as const
    );
    const all = { ...bindings, ...Object.fromEntries(temporaries) };
    for (const one of kernel.kernels) {
      this.#dispatch(one, pick(one, all));
    }
    for (const [, tensor] of temporaries) this.release(tensor);
  }

  /**
   * Records copies between tensors.
   *
   * @param label for profiles
   * @param ranges what replay 0, 1, 2, .. copies
   */
  copy(label: string, ranges: (replay: number) => readonly CopyRange[]): void {
    this.#work.push((replay) => ({ label, ranges: ranges(replay) }));
  }

  /**
   * Has something done on the queue before each replay, such as an upload, which waits for nothing.
   *
   * @param prepare called with the number of the replay: 0, 1, 2, ..
   */
  beforeReplay(prepare: (replay: number) => void): void {
    this.#preparations.push(prepare);
  }

  /**
   * Runs the recorded work.
   *
   * @param times how often
   * @param timesPerSubmit how many of them share a submit
   */
  replay(times = 1, timesPerSubmit = 1): void {
    // What is prepared for a replay must not come before the submit of the one before.
    const most = this.#preparations.length > 0 ? 1 : timesPerSubmit;
    for (let done = 0; done < times; done += most) {
      for (const prepare of this.#preparations) prepare(this.#replays);
      const commands: Command[] = [];
      for (let i = done; i < Math.min(done + most, times); i++) {
        commands.push(...this.commands);
        this.#replays++;
      }
      this.device.submit(commands);
    }
  }

  /** Gives the plan's memory back to the device. */
  dispose(): void {
    for (const buffer of this.#owned) {
      this.device.release({
        shape: [],
        buffer,
        offset: 0,
        byteLength: buffer.size,
        label: "plan",
      });
    }
    this.#owned.clear();
    this.#free.length = 0;
    this.#work.length = 0;
  }

  /** As {@linkcode Plan.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #dispatch(kernel: Kernel, bindings: Readonly<Record<string, Tensor>>): void {
    const dispatch = this.device.prepare(kernel, bindings);
    this.#work.push(() => dispatch);
  }
}
