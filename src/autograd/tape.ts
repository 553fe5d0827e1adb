// Reverse-mode differentiation: operators push their backward step while they record their forward kernels; `backward`
// runs the steps in reverse, recording the gradient kernels after the forward ones. The tape only knows the order;
// the derivatives stand with the operators.
import type { Kernel } from "../../kernels/kernel.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";

interface Step {
  readonly output: Tensor;
  readonly backward: (dy: Tensor) => void;
}

/** Makes the kernel y = a + b (bindings a, b, y) for a shape. */
export type AddKernel = (shape: readonly number[]) => Kernel;

/** One forward pass on its way to being differentiated. */
export class Tape {
  /** Where forward and backward kernels are recorded. */
  readonly plan: Plan;
  readonly #add: AddKernel;
  readonly #steps: Step[] = [];
  readonly #tracked = new Set<Tensor>();
  readonly #gradients = new Map<Tensor, Tensor>();
  readonly #observers = new Map<Tensor, (gradient: Tensor) => void>();
  /** How many tensors have this one as their gradient; it is released with the last. */
  readonly #holders = new Map<Tensor, number>();

  /**
   * @param plan where kernels are recorded
   * @param add kernel that sums the gradients of a tensor used more than once
   */
  constructor(plan: Plan, add: AddKernel) {
    this.plan = plan;
    this.#add = add;
  }

  /**
   * Marks a leaf whose gradient is wanted.
   *
   * @param tensor the leaf
   */
  watch(tensor: Tensor): void {
    this.#tracked.add(tensor);
  }

  /** Whether a gradient with respect to the tensor is wanted. */
  needs(tensor: Tensor): boolean {
    return this.#tracked.has(tensor);
  }

  /**
   * Records an operator's derivative, unless no gradient passes through it.
   *
   * @param inputs the tensors it was computed from
   * @param output its result
   * @param backward records the kernels that pass the result's gradient on, by {@linkcode Tape.give}
   * @param trains true when the operator has parameters of its own that want gradients
   */
  push(
    inputs: readonly Tensor[],
    output: Tensor,
    backward: (dy: Tensor) => void,
    trains = false,
  ): void {
    if (!trains && !inputs.some((input) => this.#tracked.has(input))) return;
    this.#tracked.add(output);
    this.#steps.push({ output, backward });
  }

  /**
   * Passes a gradient on, unless nobody wants it.
   *
   * @param tensor what the gradient is with respect to
   * @param write records the kernels that write the whole gradient into the tensor it is given
   */
  give(tensor: Tensor, write: (gradient: Tensor) => void): void {
    if (!this.#tracked.has(tensor)) return;
    const gradient = this.plan.tensor(tensor.shape, `gradient of ${tensor.label}`);
    write(gradient);
    this.share(tensor, gradient);
    if (!this.#holders.has(gradient)) this.plan.release(gradient);
  }

  /**
   * Passes an already computed gradient on, without a copy. Several tensors may share it; it is never written again,
   * and is released when the last of them is done.
   *
   * @param tensor what the gradient is with respect to
   * @param gradient the gradient, of the same physical size
   */
  share(tensor: Tensor, gradient: Tensor): void {
    if (!this.#tracked.has(tensor)) return;
    const present = this.#gradients.get(tensor);
    if (present === undefined) {
      this.#hold(tensor, gradient);
      return;
    }
    const sum = this.plan.tensor(tensor.shape, `gradient of ${tensor.label}`);
    this.plan.run(this.#add(tensor.shape), { a: present, b: gradient, y: sum });
    this.#drop(tensor);
    this.#hold(tensor, sum);
  }

  /** Releases a gradient tensor that was computed but may be shared by now. */
  releaseUnlessShared(gradient: Tensor): void {
    if (!this.#holders.has(gradient)) this.plan.release(gradient);
  }

  /**
   * Has the whole gradient of a tensor seen, which must be tracked by then.
   *
   * @param tensor the tensor
   * @param read records kernels that read its gradient
   */
  observe(tensor: Tensor, read: (gradient: Tensor) => void): void {
    this.#observers.set(tensor, read);
  }

  /** Runs the recorded derivatives in reverse; gradients of results must have been given before. */
  backward(): void {
    for (const { output, backward } of this.#steps.toReversed()) {
      const dy = this.#gradients.get(output);
      if (dy === undefined) continue;
      this.#observers.get(output)?.(dy);
      this.#observers.delete(output);
      backward(dy);
      this.#drop(output);
    }
    for (const [tensor, read] of this.#observers) {
      const gradient = this.#gradients.get(tensor);
      if (gradient) read(gradient);
    }
    this.#observers.clear();
    this.#steps.length = 0;
  }

  /** The gradient of a watched leaf, after {@linkcode Tape.backward}; undefined when nothing depends on it. */
  gradient(tensor: Tensor): Tensor | undefined {
    return this.#gradients.get(tensor);
  }

  #hold(tensor: Tensor, gradient: Tensor): void {
    this.#gradients.set(tensor, gradient);
    this.#holders.set(gradient, (this.#holders.get(gradient) ?? 0) + 1);
  }

  #drop(tensor: Tensor): void {
    const gradient = this.#gradients.get(tensor);
    this.#gradients.delete(tensor);
    const holders = gradient && this.#holders.get(gradient);
    if (gradient === undefined || holders === undefined) return;
    if (holders > 1) {
      this.#holders.set(gradient, holders - 1);
      return;
    }
    this.#holders.delete(gradient);
    this.plan.release(gradient);
  }
}
