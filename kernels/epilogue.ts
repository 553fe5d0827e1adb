// What a convolution or GEMM does to its result before it stores it, so that no separate pass over memory is needed:
// z = value + bias + residual, y = fakeQuantize(activation(z)). All of it works on vec4f over channels. The quantizer's
// grid is data, so that one compiled kernel serves all bit widths, and tensors without a quantizer.
import { type Activation, activationForward, activationKeepsZero } from "./activation.ts";
import type { Binding } from "./kernel.ts";

/** The fused end of a kernel. */
export interface Epilogue {
  /** Binding `bias: [channels]`. */
  readonly bias?: boolean;
  /** Binding `residual`, of the shape of y. */
  readonly residual?: boolean;
  /** Binding `z`, of the shape of y: what a backward pass needs is stored too. */
  readonly keepsPreActivation?: boolean;
  readonly activation?: Activation;
  /** Binding `qparams: [scale, zeroPoint, quantMin, quantMax]`; with scale 0 values pass as they are. */
  readonly fakeQuantize?: boolean;
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

/** WGSL statements that run once an invocation, before {@linkcode epilogueStore}. */
export function epilogueSetup({ fakeQuantize }: Pick<Epilogue, "fakeQuantize">): string {
  return fakeQuantize ? "let grid = qparams[0];" : "";
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
  const keep = epilogue.keepsPreActivation ? ` z[${index}] = before;` : "";
  const store = epilogue.fakeQuantize
    ? `let after = ${y}; ${output}[${index}] = ${fakeQuantize("after")};`
    : `${output}[${index}] = ${y};`;
  return `{ let before = ${value}${bias}${residual};${keep} ${store} }`;
}

/** Where a kernel has the parameters of a grid: WGSL expressions, f32 or vec4f. */
export interface GridExpressions {
  readonly scale: string;
  readonly zeroPoint: string;
  readonly quantMin: string;
  readonly quantMax: string;
}

/**
 * WGSL of scale * (clamp(round(x / scale) + zeroPoint, quantMin, quantMax) - zeroPoint), ties to even, as ONNX defines
 * it. Zero stays exactly zero whenever the zero point lies on the grid.
 */
export function onGrid(
  x: string,
  { scale, zeroPoint, quantMin, quantMax }: GridExpressions,
): string {
  return `((clamp(round(${x} / ${scale}) + ${zeroPoint}, vec4f(${quantMin}), vec4f(${quantMax})) - ${zeroPoint}) * ${scale})`;
}

/** WGSL of a variable after the quantizer that {@linkcode epilogueSetup} has loaded. */
export function fakeQuantize(x: string): string {
  const parts = { scale: "grid.x", zeroPoint: "grid.y", quantMin: "grid.z", quantMax: "grid.w" };
  return `select(${onGrid(x, parts)}, ${x}, grid.x == 0.0)`;
}

/** The value with zeros in the padded channels of the last vec4. */
export function maskPadding(value: string, channel: string, channels: number): string {
  const last = channels % 4;
  if (last === 0) return value;
  const mask = [0, 1, 2, 3].map((i) => i < last ? "1.0" : "0.0").join(", ");
  return `(${value} * select(vec4f(1.0), vec4f(${mask}), ${channel} == ${channels >> 2}u))`;
}
