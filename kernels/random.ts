// Random bits as a hash of (seed, step, stream, element), so that a replay with the same state draws the same. Seed and
// step are data, state[7] and state[0] of the training state (schedule.ts): other seeds need no other kernel.
import { range } from "./kernel.ts";

/** WGSL declarations of {@linkcode randomBits}. */
// PCG hash (Jarzynski, Olano 2020).
export const RANDOM_BITS = /* wgsl */ `fn hash(value: u32) -> u32 {
  let s = value * 747796405u + 2891336453u;
  let word = ((s >> ((s >> 28u) + 4u)) ^ s) * 277803737u;
  return (word >> 22u) ^ word;
}

fn random_bits(seed: f32, step: f32, stream: u32, i: u32) -> vec4u {
  let key = hash(stream ^ hash(u32(step) ^ hash(u32(seed))));
  return vec4u(${range(4).map((lane) => `hash(key ^ (4u * i + ${lane}u))`).join(", ")});
}
`;

/**
 * WGSL of a random choice for each lane of a vec4; needs {@linkcode RANDOM_BITS} and the binding `state`.
 *
 * @param probability of true
 * @param stream which of the independent choices of a step it is
 * @param index WGSL u32 expression: the number of the vec4
 * @returns a vec4<bool> expression
 */
export function randomChoice(probability: number, stream: number, index: string): string {
  const threshold = Math.min(0xffffffff, Math.floor(probability * 2 ** 32));
  return `(random_bits(state[7], state[0], ${stream}u, ${index}) < vec4u(${threshold}u))`;
}
