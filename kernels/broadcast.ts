// Broadcasting of channels-last shapes: which vec4 of an operand meets vec4 i of the result. Shapes are aligned at
// their last axis, as in NumPy and ONNX; an operand whose last axis is 1 gives its one channel to all.
import { padded, range } from "./kernel.ts";

/**
 * The shape of the result of broadcasting.
 *
 * @param a shape of one operand
 * @param b shape of the other
 * @returns the shape both broadcast to
 * @throws RangeError when two sizes differ and neither is 1
 */
export function broadcastShape(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return range(rank).map((axis) => {
    const one = a[axis - rank + a.length] ?? 1, other = b[axis - rank + b.length] ?? 1;
    if (one !== other && one !== 1 && other !== 1) {
      throw new RangeError(`Cannot broadcast [${a}] and [${b}]: sizes ${one} and ${other} differ`);
    }
    return one === 1 ? other : one;
  });
}

/** A run of neighbouring axes that an operand has, or repeats over. */
export interface AxisGroup {
  readonly size: number;
  /** Whether the operand has these axes; otherwise it is constant along them. */
  readonly kept: boolean;
  /** Step in the result, in vec4. */
  readonly stride: number;
  /** Step in the operand, in vec4; 0 unless kept. */
  readonly operandStride: number;
}

/**
 * The axes of a result as an operand sees them, neighbours of one kind merged, in vec4.
 *
 * @param operand shape of the operand
 * @param result shape of the result
 * @returns groups from the outermost in, without those of size 1
 */
export function axisGroups(operand: readonly number[], result: readonly number[]): AxisGroup[] {
  const rank = result.length;
  const quads = (size: number, axis: number) => axis === rank - 1 ? padded(size) / 4 : size;
  const groups: AxisGroup[] = [];
  let stride = 1, operandStride = 1;
  for (const axis of range(rank).reverse()) {
    const size = quads(result[axis]!, axis);
    const own = operand[axis - rank + operand.length] ?? 1;
    const kept = own === result[axis];
    if (size > 1) {
      const inner = groups[0];
      if (inner?.kept === kept) groups[0] = { ...inner, size: inner.size * size };
      else groups.unshift({ size, kept, stride, operandStride: kept ? operandStride : 0 });
    }
    stride *= size;
    operandStride *= quads(own, axis);
  }
  return groups;
}

/** Whether an operand gives one channel to all channels of the result. */
export function splatsChannels(operand: readonly number[], result: readonly number[]): boolean {
  return (operand.at(-1) ?? 1) === 1 && (result.at(-1) ?? 1) > 1;
}

/**
 * The operand's value at vec4 `i` of the result.
 *
 * @param name binding of the operand
 * @param operand its shape
 * @param result shape of the result
 * @param i WGSL u32 identifier
 * @returns a WGSL vec4f expression
 */
export function broadcastLoad(
  name: string,
  operand: readonly number[],
  result: readonly number[],
  i: string,
): string {
  const groups = axisGroups(operand, result);
  const terms = groups.flatMap((group, g) => {
    if (!group.kept) return [];
    const quotient = group.stride === 1 ? i : `${i} / ${group.stride}u`;
    const coordinate = g === 0 ? quotient : `(${quotient}) % ${group.size}u`;
    return [group.operandStride === 1 ? coordinate : `(${coordinate}) * ${group.operandStride}u`];
  });
  const load = `${name}[${terms.length === 0 ? "0u" : terms.join(" + ")}]`;
  return splatsChannels(operand, result) ? `vec4f(${load}.x)` : load;
}

/**
 * The vec4 index in the result of a place given by its position along the kept and along the repeated axes.
 *
 * @param groups axes of the result as the operand sees them
 * @param kept WGSL u32 identifier: flat position along the kept axes, which is the operand's vec4 index
 * @param repeated WGSL u32 identifier: flat position along the others
 * @returns a WGSL u32 expression
 */
export function joinIndex(groups: readonly AxisGroup[], kept: string, repeated: string): string {
  const inner: Record<"true" | "false", number> = { true: 1, false: 1 };
  const terms: string[] = [];
  for (const group of [...groups].reverse()) {
    const key = group.kept ? "true" : "false";
    const flat = group.kept ? kept : repeated;
    terms.unshift(`(${flat} / ${inner[key]}u % ${group.size}u) * ${group.stride}u`);
    inner[key] *= group.size;
  }
  return terms.length === 0 ? "0u" : terms.join(" + ");
}
