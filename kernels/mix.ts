// Element-wise random choice between two tensors, for QDrop's input mode (Wei et al. 2022): half of a unit's input
// comes from the quantized network, half from the float one.
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type Kernel, paddedSize } from "./kernel.ts";
import { RANDOM_BITS, randomChoice } from "./random.ts";

/** Two tensors of a shape. */
export interface MixSpec {
  readonly shape: readonly number[];
  /** Probability of taking the element of `a`. */
  readonly probability: number;
  /** Which of the independent choices of a step it is. */
  readonly stream: number;
}

/**
 * y = a with the probability, else b, for each element.
 *
 * Bindings: a, b, state (schedule.ts: step and seed), y (write).
 */
export function mixTensors({ shape, probability, stream }: MixSpec): Kernel {
  return flatKernel({
    label: `mix_tensors [${shape.join(", ")}]`,
    size: paddedSize(shape) / 4,
    bindings: [read("a"), read("b"), read("state"), write("y")],
    types: { state: "f32" },
    declarations: RANDOM_BITS,
    body: `y[i] = select(b[i], a[i], ${randomChoice(probability, stream, "i")});`,
  });
}
