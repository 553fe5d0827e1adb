// Element-wise random choice between two tensors, for QDrop's input mode (Wei et al. 2022): half of a unit's input
// comes from the quantized network, half from the float one.
import { declareBindings, flatIndex, grid1d, type Kernel, paddedSize } from "./kernel.ts";
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
  const bindings = [
    { name: "a", access: "read" },
    { name: "b", access: "read" },
    { name: "state", access: "read" },
    { name: "y", access: "read_write" },
  ] as const;
  const total = paddedSize(shape) / 4;
  const code = /* wgsl */ `
${declareBindings(bindings, { state: "f32" })}

${RANDOM_BITS}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let i = ${flatIndex(64)};
  if (i >= ${total}u) { return; }
  y[i] = select(b[i], a[i], ${randomChoice(probability, stream, "i")});
}`;
  return { label: `mix_tensors [${shape.join(", ")}]`, code, bindings, grid: grid1d(total, 64) };
}
