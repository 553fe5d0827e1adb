// What a convolution or GEMM does to its result before it stores it, so that no separate pass over memory is needed:
// z = value + bias + residual, y = fakeQuantize(activation(z)). All of it works on vec4f over channels.
import { type Activation, activationForward, activationKeepsZero, literal } from "./activation.ts";
import type { Binding } from "./kernel.ts";

/** Grid of a fake quantizer whose scale and zero point are in the binding `qparams`. */
export interface QuantGrid {
  readonly quantMin: number;
  readonly quantMax: number;
}

/** The fused end of a kernel. */
export interface Epilogue {
  /** Binding `bias: [channels]`. */
  readonly bias?: boolean;
  /** Binding `residual`, of the shape of y. */
  readonly residual?: boolean;
  /** Binding `z`, of the shape of y: what a backward pass needs is stored too. */
  readonly keepsPreActivation?: boolean;
  readonly activation?: Activation;
  /** Binding `qparams: [scale, zeroPoint]`. */
  readonly fakeQuantize?: QuantGrid;
}

/** The bindings of an epilogue besides y. */
export function epilogueBindings(epilogue: Epilogue): Binding[] {
  const bindings: Binding[] = [];
  if (epilogue.bias) bindings.push({ name: "bias", access: "read" });
  if (epilogue.residual) bindings.push({ name: "residual", access: "read" });
  if (epilogue.fakeQuantize) bindings.push({ name: "qparams", access: "read" });
  if (epilogue.keepsPreActivation) bindings.push({ name: "z", access: "read_write" });
  return bindings;
}

/** Element types of those bindings that are not vec4f. */
export function epilogueTypes(epilogue: Epilogue): Record<string, string> {
  return epilogue.fakeQuantize ? { qparams: "f32" } : {};
}

/** WGSL statements that run once an invocation, before {@linkcode epilogueStore}. */
export function epilogueSetup(epilogue: Epilogue): string {
  return epilogue.fakeQuantize
    ? "let activation_scale = qparams[0]; let activation_zero_point = qparams[1];"
    : "";
}

/**
 * Loads the bias of a channel once for several stores: stores to y keep compilers from doing so.
 *
 * @param epilogue what is fused
 * @param name of the variable
 * @param channel WGSL u32 expression: vec4 index among the channels
 * @returns a WGSL statement, empty without a bias
 */
export function loadBias(epilogue: Epilogue, name: string, channel: string): string {
  return epilogue.bias ? `let ${name} = bias[${channel}];` : "";
}

/** Where an epilogue is applied. */
export interface EpilogueSite {
  /** WGSL expression of type vec4f; zero in padded channels. */
  readonly value: string;
  /** Name of the binding y. */
  readonly output: string;
  /** WGSL u32 expression: vec4 index in y. */
  readonly index: string;
  /** WGSL u32 expression: vec4 index among the channels. */
  readonly channel: string;
  /** Name of {@linkcode loadBias}, where several stores share a channel; by default every store loads its bias. */
  readonly bias?: string;
  /** Logical number of channels. */
  readonly channels: number;
}

/**
 * Stores a value after the epilogue.
 *
 * @param epilogue what to fuse
 * @param site the value and where it goes
 * @returns a WGSL statement; padded channels stay zero
 */
export function epilogueStore(epilogue: Epilogue, site: EpilogueSite): string {
  const { value, output, index, channel, channels } = site;
  const bias = epilogue.bias ? ` + ${site.bias ?? `bias[${channel}]`}` : "";
  const residual = epilogue.residual ? ` + residual[${index}]` : "";
  let y = "before";
  if (epilogue.activation) {
    y = activationForward(epilogue.activation, y);
    if (!activationKeepsZero(epilogue.activation)) y = maskPadding(y, channel, channels);
  }
  if (epilogue.fakeQuantize) y = fakeQuantize(epilogue.fakeQuantize, y);
  const keep = epilogue.keepsPreActivation ? ` z[${index}] = before;` : "";
  return `{ let before = ${value}${bias}${residual};${keep} ${output}[${index}] = ${y}; }`;
}

/**
 * scale * (clamp(round(x / scale) + zeroPoint, quantMin, quantMax) - zeroPoint), ties to even, as ONNX defines it.
 * Zero stays exactly zero whenever the zero point lies on the grid.
 */
export function fakeQuantize({ quantMin, quantMax }: QuantGrid, x: string): string {
  return `((clamp(round(${x} / activation_scale) + activation_zero_point, vec4f(${
    literal(quantMin)
  }), vec4f(${literal(quantMax)})) - activation_zero_point) * activation_scale)`;
}

/** The value with zeros in the padded channels of the last vec4. */
export function maskPadding(value: string, channel: string, channels: number): string {
  const last = channels % 4;
  if (last === 0) return value;
  const mask = [0, 1, 2, 3].map((i) => i < last ? "1.0" : "0.0").join(", ");
  return `(${value} * select(vec4f(1.0), vec4f(${mask}), ${channel} == ${channels >> 2}u))`;
}
