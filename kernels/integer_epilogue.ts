// What follows the int32 sum of a layer, in float32 as ONNX QDQ defines it, for one word of 4 channels:
//   v = float32(sum + bias) * scale + residual;  y = codes(activation(v)), or v where no quantizer follows.
// Codes are int8, 4 channels a word, [.., ceil(C / 4)] words; codes of a uint8 quantizer are stored minus 128, and so is
// its zero point. Lanes past the last channel hold anything: weights there are 0.
import { type Activation, activationForward, activationKeepsZero, literal } from "./activation.ts";
import { maskPadding } from "./epilogue.ts";
import type { Binding } from "./kernel.ts";

/** The fused end of an integer kernel. Bindings `bias: [C]` (int32) and `scale: [C]` are always there. */
export interface IntegerEpilogue {
  /** Binding `residual`, of the shape of y; codes come with a binding `residual_grid`. */
  readonly residual?: "codes" | "float32";
  readonly activation?: Activation;
  /** Codes come with a binding `grid`. A grid is [8] of {@linkcode codeGrid}. */
  readonly output: "codes" | "float32";
}

/** Quantizer of codes: value = scale * (code - zeroPoint). */
export interface CodeQuantizer {
  readonly scale: number;
  readonly zeroPoint: number;
  readonly quantMin: number;
  readonly quantMax: number;
}

/**
 * What is subtracted from a quantizer's codes to store them as int8.
 *
 * @param quantizer its codes are uint8 when quantMin >= 0
 * @returns 128 or 0
 */
export function codeOffset({ quantMin }: Pick<CodeQuantizer, "quantMin">): number {
  return quantMin >= 0 ? 128 : 0;
}

/**
 * A quantizer as kernels read it: [1 / scale, the scale's upper 12 bits, its lower bits, scale / 2^24] and
 * [scale, zeroPoint, quantMin, quantMax], the last three as stored.
 *
 * @param quantizer of the codes
 * @returns the 8 numbers
 */
export function codeGrid(quantizer: CodeQuantizer): Float32Array<ArrayBuffer> {
  const scale = Math.fround(quantizer.scale), offset = codeOffset(quantizer);
  const bits = Uint32Array.of(new Uint32Array(Float32Array.of(scale).buffer)[0]! & 0xfffff000);
  const high = new Float32Array(bits.buffer)[0]!;
  const codes = [quantizer.zeroPoint, quantizer.quantMin, quantizer.quantMax];
  return Float32Array.of(
    1 / scale,
    high,
    scale - high,
    scale * 2 ** -24,
    scale,
    ...codes.map((code) => code - offset),
  );
}

/**
 * WGSL `quantize(v, near, grid) -> u32`, with the two vec4f of a grid: clip(round(fround(v / scale)) + zeroPoint),
 * the same on every adapter.
 *
 * WGSL divides to 2.5 units in the last place only, so the rounding is decided without the quotient: v is compared with
 * b * scale, b halfway between the two nearest integers. b has 10 bits and the scale comes in two parts of 12, so the
 * products and differences are exact (contracted or not) wherever it matters. float32(v / scale) is b itself, a tie,
 * when |v - b * scale| <= scale * ulp(b) / 2.
 */
export const QUANTIZE = /* wgsl */ `fn quantize(v: vec4f, near: vec4f, grid: vec4f) -> u32 {
  let below = floor(clamp(v * near.x, vec4f(-1024.0), vec4f(1024.0)));
  let b = below + 0.5;
  let rest = (v - b * near.y) - b * near.z;
  let binade = bitcast<vec4f>(bitcast<vec4u>(b) & vec4u(0x7f800000u));
  let odd = below - 2.0 * floor(below * 0.5);
  let above = select(vec4f(0.0), vec4f(1.0), rest > vec4f(0.0));
  let rounded = below + select(odd, above, abs(rest) > binade * near.w);
  return pack4xI8(vec4i(clamp(rounded + grid.y, vec4f(grid.z), vec4f(grid.w))));
}`;

/** WGSL `dequantize(word, grid) -> vec4f`, with the second vec4f of a grid. */
export const DEQUANTIZE = /* wgsl */ `fn dequantize(word: u32, grid: vec4f) -> vec4f {
  return (vec4f(unpack4xI8(word)) - grid.y) * grid.x;
}`;

/** The bindings of an epilogue, y excepted. */
export function integerEpilogueBindings({ residual, output }: IntegerEpilogue): Binding[] {
  const names = ["bias", "scale"];
  if (residual) names.push("residual");
  if (residual === "codes") names.push("residual_grid");
  if (output === "codes") names.push("grid");
  return names.map((name) => ({ name, access: "read" }));
}

/** Element types of the bindings, y included, that are not vec4f. */
export function integerEpilogueTypes(
  { residual, output }: IntegerEpilogue,
): Record<string, string> {
  return {
    bias: "vec4i",
    ...(residual === "codes" && { residual: "u32" }),
    ...(output === "codes" && { y: "u32" }),
  };
}

/** WGSL functions that the epilogue uses. */
export function integerEpilogueFunctions({ residual, output }: IntegerEpilogue): string {
  const functions = [residual === "codes" ? DEQUANTIZE : "", output === "codes" ? QUANTIZE : ""];
  return functions.filter(Boolean).join("\n\n");
}

/** WGSL statements that run once an invocation. */
export function integerEpilogueSetup({ residual, output }: IntegerEpilogue): string {
  const lines: string[] = [];
  if (residual === "codes") lines.push("let residual_parameters = residual_grid[1];");
  if (output === "codes") lines.push("let near = grid[0]; let parameters = grid[1];");
  return lines.join("\n  ");
}

/**
 * WGSL statement that loads what belongs to 4 channels, for several {@linkcode integerEpilogueStore}.
 *
 * @param name suffix of the variables
 * @param channel WGSL u32 expression: word among the channels
 * @returns the statement
 */
export function loadChannel(name: string, channel: string): string {
  return `let bias${name} = bias[${channel}]; let scale${name} = scale[${channel}];`;
}

/** Where an epilogue is applied. */
export interface IntegerEpilogueSite {
  /** WGSL expression of type vec4i. */
  readonly sum: string;
  /** WGSL u32 expression: word of y. */
  readonly index: string;
  /** Suffix given to {@linkcode loadChannel}. */
  readonly name: string;
  /** WGSL u32 expression: word among the channels. */
  readonly channel: string;
  /** Logical number of channels. */
  readonly channels: number;
}

/**
 * WGSL statement that stores a word after the epilogue.
 *
 * @param epilogue what to fuse
 * @param site the sum and where it goes
 * @returns the statement; in float32, padded channels become zero
 */
export function integerEpilogueStore(
  { residual, activation, output }: IntegerEpilogue,
  { sum, index, name, channel, channels }: IntegerEpilogueSite,
): string {
  const other = residual === "codes"
    ? `dequantize(residual[${index}], residual_parameters)`
    : `residual[${index}]`;
  // Without the maximum a driver could contract a product with the next sum into one rounding.
  const rounded = (product: string) => `max(${product}, vec4f(${literal(-Infinity)}))`;
  const value = rounded(`vec4f(${sum} + bias${name}) * scale${name}`);
  const before = residual ? `${value} + ${rounded(other)}` : value;
  let y = "before";
  if (activation) y = activationForward(activation, y);
  if (output === "codes") y = `quantize(${y}, near, parameters)`;
  else if (activation && !activationKeepsZero(activation)) y = maskPadding(y, channel, channels);
  return `{ let before = ${before}; y[${index}] = ${y}; }`;
}
