// A plan that records nothing: it collects the kernels it is given, so that whatever can be recorded can be tuned, or
// compiled ahead. No shader is compiled here, and all tensors share one small buffer.
import {
  type Kernel,
  type KernelSequence,
  paddedSize,
  type TileChoice,
} from "../../kernels/kernel.ts";
import type { Device } from "./device.ts";
import { Plan } from "./plan.ts";
import type { Tensor } from "./tensor.ts";

/** Collects what {@linkcode tuneTiles} measures and {@linkcode Device.compile} compiles. */
export class KernelSurvey extends Plan {
  readonly #kernels = new Map<string, Kernel>();
  readonly #choices = new Map<string, TileChoice>();
  readonly #memory: Tensor;

  /** @param device whose kernels are surveyed */
  constructor(device: Device) {
    super(device);
    this.#memory = super.tensor([4], "survey");
  }

  /** Every kernel once, in the order in which they were given. */
  get kernels(): readonly Kernel[] {
    return [...this.#kernels.values()];
  }

  /** Every choice once, in the order in which the kernels were given. */
  get choices(): readonly TileChoice[] {
    return [...this.#choices.values()];
  }

  /** A tensor that has a shape but no memory of its own. */
  override tensor(shape: readonly number[], label: string): Tensor {
    return { ...this.#memory, shape: [...shape], byteLength: paddedSize(shape) * 4, label };
  }

  /** Does nothing: no tensor has memory of its own. */
  override release(_tensor: Tensor): void {}

  /** Collects a kernel with its choices; nothing will run. */
  override run(
    kernel: Kernel | KernelSequence,
    _bindings: Readonly<Record<string, Tensor>>,
  ): void {
    for (const one of "kernels" in kernel ? kernel.kernels : [kernel]) {
      this.#kernels.set(one.code, one);
      if (one.choice !== undefined) this.#choices.set(one.choice.key, one.choice);
    }
  }

  /** Does nothing: there is nothing to copy. */
  override copy(): void {}

  /** Does nothing: there are no replays. */
  override beforeReplay(): void {}
}
