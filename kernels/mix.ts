// Element-wise random choice between two tensors, for QDrop's input mode (Wei et al. 2022): half of a unit's input
// comes from the quantized network, half from the float one. The choice is a hash of (seed, step, element), so a replay
// with the same state chooses the same.
import { declareBindings, flatIndex, grid1d, type Kernel, paddedSize } from "./kernel.ts";

/** Two tensors of a shape. */
export interface MixSpec {
  readonly shape: readonly number[];
  /** Probability of taking the element of `a`. */
  readonly probability: number;
  /** 0 .. 2^32 - 1 */
  readonly seed: number;
}

/**
 * y = a with the probability, else b, for each element.
 *
 * Bindings: a, b, state (array<f32>, state[0] the step), y (write).
 */
export function mixTensors({ shape, probability, seed }: MixSpec): Kernel {
  const bindings = [
    { name: "a", access: "read" },
    { name: "b", access: "read" },
    { name: "state", access: "read" },
    { name: "y", access: "read_write" },
  ] as const;
  const total = paddedSize(shape) / 4;
  const threshold = Math.min(0xffffffff, Math.floor(probability * 2 ** 32));
  const code = /* wgsl */ `
${declareBindings(bindings, { state: "f32" })}

// PCG hash (Jarzynski, Olano 2020).
fn hash(value: u32) -> u32 {
  let s = value * 747796405u + 2891336453u;
  let word = ((s >> ((s >> 28u) + 4u)) ^ s) * 277803737u;
  return (word >> 22u) ^ word;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let i = ${flatIndex(64)};
  if (i >= ${total}u) { return; }
  let key = hash(${seed >>> 0}u ^ hash(u32(state[0])));
  let bits = vec4u(hash(key ^ (4u * i)), hash(key ^ (4u * i + 1u)), hash(key ^ (4u * i + 2u)),
    hash(key ^ (4u * i + 3u)));
  y[i] = select(b[i], a[i], bits < vec4u(${threshold}u));
}`;
  return { label: `mix_tensors [${shape.join(", ")}]`, code, bindings, grid: grid1d(total, 64) };
}
