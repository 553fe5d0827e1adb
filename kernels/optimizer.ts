// Optimizers over one flat buffer of parameters, one dispatch a step: Adam (Kingma, Ba 2015), AdamW (Loshchilov,
// Hutter 2019), SGD with (Nesterov) momentum as PyTorch writes it. `parameters`, `gradients` and the moments have `size`
// floats; `learning_rates` has for every 64 of them [a, b, decay, 0]: the rate a * state[1] + b (schedule.ts), and the
// decoupled weight decay. Floats without a rate are frozen.
import { literal } from "./activation.ts";
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  range,
  type Target,
} from "./kernel.ts";

/** Parameters that share a learning rate: the grain of the flat buffer. */
export const CHUNK_SIZE = 64;

/** Floats that `floats` take in whole chunks. */
export function wholeChunks(floats: number): number {
  return Math.ceil(floats / CHUNK_SIZE) * CHUNK_SIZE;
}

/** Adam over a flat buffer. */
export interface AdamSpec {
  /** Floats, a multiple of 64. */
  readonly size: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
}

/**
 * m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= lr decay p, p -= lr (m / c1) / (sqrt(v / c2) + epsilon).
 *
 * Bindings: parameters, moment1, moment2 (read_write), gradients, learning_rates, state (read).
 */
export function adam(spec: AdamSpec, _target: Target): Kernel {
  const { size, beta1, beta2, epsilon } = spec;
  return optimizer(`adam ${size}`, size, ["moment1", "moment2"], {
    setup: `let correction1 = 1.0 / state[2];
  let correction2 = 1.0 / sqrt(state[3]);`,
    update: `p *= 1.0 - rate * rates.z;
    let m = ${literal(beta1)} * moment1[i] + ${literal(1 - beta1)} * g;
    let v = ${literal(beta2)} * moment2[i] + ${literal(1 - beta2)} * g * g;
    moment1[i] = m;
    moment2[i] = v;
    parameters[i] = p - rate * correction1 * m
      / (sqrt(v) * correction2 + ${literal(epsilon)});`,
  });
}

/** Stochastic gradient descent over a flat buffer. */
export interface SgdSpec {
  /** Floats, a multiple of 64. */
  readonly size: number;
  readonly momentum: number;
  readonly nesterov: boolean;
}

/**
 * g += decay p, m = momentum m + g, p -= lr (nesterov ? g + momentum m : m).
 *
 * Bindings: parameters, moment1 (read_write), gradients, learning_rates, state (read). Without momentum there is no
 * moment1.
 */
export function sgd(spec: SgdSpec, _target: Target): Kernel {
  const { size, nesterov } = spec;
  const momentum = literal(spec.momentum);
  const step = nesterov ? `fma(vec4f(${momentum}), m, g)` : "m";
  const moments = spec.momentum === 0 ? [] : ["moment1"];
  return optimizer(`sgd ${size}`, size, moments, {
    setup: "",
    update: `g = fma(vec4f(rates.z), p, g);
    ${
      spec.momentum === 0
        ? "parameters[i] = p - rate * g;"
        : `let m = fma(vec4f(${momentum}), moment1[i], g);
    moment1[i] = m;
    parameters[i] = p - rate * ${step};`
    }`,
  });
}

/**
 * A workgroup takes 256 vec4, an invocation every 64th of them; `update` sees p, g, rate and the vec4 index i. The text
 * does not name the size, so that all flat buffers share one compiled kernel.
 */
function optimizer(
  label: string,
  size: number,
  moments: readonly string[],
  { setup, update }: { readonly setup: string; readonly update: string },
): Kernel {
  if (size % CHUNK_SIZE !== 0 || size === 0) {
    throw new RangeError(`Cannot build ${label}: size must be a positive multiple of 64`);
  }
  const bindings: Binding[] = [
    { name: "parameters", access: "read_write" },
    { name: "gradients", access: "read" },
    ...moments.map((name) => ({ name, access: "read_write" as const })),
    { name: "learning_rates", access: "read" },
    { name: "state", access: "read" },
  ];
  const code = /* wgsl */ `${declareBindings(bindings, { state: "f32" })}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let first = (${flatIndex(64)} - local) * 4u + local;
  let factor = state[1];
  ${setup}
  ${
    range(4).map((part) => {
      return `{
    let i = first + ${part * 64}u;
    let rates = select(vec4f(0.0), learning_rates[i / 16u], i < arrayLength(&parameters));
    if (rates.x != 0.0 || rates.y != 0.0) {
      let rate = fma(rates.x, factor, rates.y);
      var p = parameters[i];
      var g = gradients[i];
      ${update}
    }
  }`;
    }).join("\n  ")
  }
}
`;
  return { label, code, bindings, grid: grid1d(size / 4, 256) };
}
