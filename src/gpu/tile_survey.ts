// A plan that records nothing: it collects the choices of tiles among the kernels it is given, so that whatever can be
// recorded can be tuned. No shader is compiled, and all tensors share one small buffer.
import type { Kernel, KernelSequence, TileChoice } from "../../kernels/kernel.ts";
import type { Device } from "./device.ts";
import { Plan } from "./plan.ts";
import type { Tensor } from "./tensor.ts";

/** Collects what {@linkcode tuneTiles} measures. */
export class TileSurvey extends Plan {
  readonly #choices = new Map<string, TileChoice>();
  readonly #memory: Tensor;

  /** @param device whose kernels are surveyed */
  constructor(device: Device) {
    super(device);
    this.#memory = super.tensor([4], "survey");
  }

  /** Every choice once, in the order in which the kernels were given. */
  get choices(): readonly TileChoice[] {
    return [...this.#choices.values()];
  }

  /** A tensor that has a shape but no memory of its own. */
  override tensor(shape: readonly number[], label: string): Tensor {
    return { ...this.#memory, shape: [...shape], label };
  }

  /** Does nothing: no tensor has memory of its own. */
  override release(_tensor: Tensor): void {}

  /** Collects the choices of a kernel; nothing will run. */
  override run(
    kernel: Kernel | KernelSequence,
    _bindings: Readonly<Record<string, Tensor>>,
  ): void {
    for (const { choice } of "kernels" in kernel ? kernel.kernels : [kernel]) {
      if (choice !== undefined) this.#choices.set(choice.key, choice);
    }
  }
}
