// Every activation the kernels know, with constants that differ from the defaults where it has any.
import type { Activation } from "../../kernels/activation.ts";

/** One or more of each kind. */
export const ACTIVATIONS: readonly Activation[] = [
  { kind: "relu" },
  { kind: "clip", min: 0, max: 6 },
  { kind: "clip", min: -1.5, max: 2.25 },
  { kind: "clip", min: -Infinity, max: 3 },
  { kind: "leakyRelu", alpha: 0.1 },
  { kind: "sigmoid" },
  { kind: "hardSigmoid", alpha: 0.2, beta: 0.5 },
  { kind: "hardSwish" },
  { kind: "silu" },
  { kind: "tanh" },
  { kind: "gelu" },
];

/** For the names of tests. */
export function nameOf(activation: Activation): string {
  return Object.values(activation).join(" ");
}
