// The two forms of LSTM in a graph. As ONNX has it: x [T, N, I] (or [N, T, I] with layout 1), W [D, 4H, I], R [D, 4H, H],
// optional B [D, 8H] and more, three outputs, gates in the order i, o, f, c. As simplify leaves it, one direction each:
//   y [N, T, H] = LSTM(x [N, T, I], w [4H, I + H] = [W, R], b [4H] = Wb + Rb)     layout 1, direction forward or reverse
import { UnsupportedError } from "../core/errors.ts";
import { numberAttribute, stringAttribute } from "./attributes.ts";
import type { Node } from "./graph.ts";

/** Shape of an input by position; undefined where it is absent. */
type InputShape = (index: number) => readonly number[] | undefined;

/**
 * Shapes of the outputs of an LSTM in either form.
 *
 * @param node the LSTM
 * @param input shapes of its inputs
 * @returns one shape for each of its outputs: Y, Y_h, Y_c
 * @throws UnsupportedError when it uses a part of the operator that is not implemented
 * @throws RangeError when shapes contradict each other
 */
export function lstmShapes(node: Node, input: InputShape): readonly (readonly number[])[] {
  const [x, w, r] = [0, 1, 2].map(input);
  if (x?.length !== 3) throw conflict(node, `the input is ${text(x)}, expected three axes`);
  const inputs = x[2]!;
  if (w?.length === 2) {
    const [rows = 0, columns = 0] = w;
    const hidden = rows / 4;
    if (columns !== inputs + hidden || (r !== undefined && r.join() !== `${rows}`)) {
      throw conflict(node, `weight ${text(w)} and bias ${text(r)} do not fit the input ${text(x)}`);
    }
    return [[x[0]!, x[1]!, hidden]];
  }
  const { directions, hidden } = lstmSizes(node, input);
  const expected = [
    [directions, 4 * hidden, inputs],
    [directions, 4 * hidden, hidden],
    [directions, 8 * hidden],
  ];
  for (const [i, shape] of expected.entries()) {
    const found = input(i + 1);
    if (i === 2 && found === undefined) continue;
    if (found?.join() !== shape.join()) {
      throw conflict(node, `${"WRB"[i]} is ${text(found)}, expected ${text(shape)}`);
    }
  }
  const first = isBatchFirst(node);
  const [samples, steps] = first ? [x[0]!, x[1]!] : [x[1]!, x[0]!];
  const states = first ? [samples, directions, hidden] : [directions, samples, hidden];
  const all = first ? [samples, steps, directions, hidden] : [steps, directions, samples, hidden];
  return [all, states, states];
}

/**
 * Directions and units of an LSTM as ONNX has it.
 *
 * @param node the LSTM
 * @param input shapes of its inputs
 * @returns 1 or 2 directions, and units of each
 * @throws UnsupportedError when it uses a part of the operator that is not implemented
 */
export function lstmSizes(
  node: Node,
  input: InputShape,
): { readonly directions: 1 | 2; readonly hidden: number } {
  const unsupported = (detail: string) => new UnsupportedError(node.opType, node.name, detail);
  const { activations, clip, activation_alpha, activation_beta } = node.attributes;
  const direction = directionOf(node);
  const usual = ["Sigmoid", "Tanh", "Tanh"];
  const given = activations === undefined ? [] : [activations].flat() as unknown[];
  if (given.some((name, i) => name !== usual[i % 3])) {
    throw unsupported(`activations are ${given.join(", ")}, expected Sigmoid, Tanh, Tanh`);
  }
  const others = { clip, activation_alpha, activation_beta };
  for (const [name, value] of Object.entries(others)) {
    if (value !== undefined) throw unsupported(`attribute ${name} is not supported`);
  }
  if (numberAttribute(node, "input_forget", 0) !== 0) {
    throw unsupported("input_forget is 1, expected 0");
  }
  if (input(7) !== undefined) throw unsupported("peepholes are not supported");
  const rows = input(2)?.at(-1) ?? 0;
  const hidden = numberAttribute(node, "hidden_size", rows);
  return { directions: direction === "bidirectional" ? 2 : 1, hidden };
}

/** Attribute `direction` of an LSTM. */
export function directionOf(node: Node): "forward" | "reverse" | "bidirectional" {
  const direction = stringAttribute(node, "direction", "forward");
  if (direction === "forward" || direction === "reverse" || direction === "bidirectional") {
    return direction;
  }
  throw conflict(node, `direction is "${direction}", expected forward, reverse or bidirectional`);
}

/** Whether the samples come before the steps: attribute `layout`. */
export function isBatchFirst(node: Node): boolean {
  return numberAttribute(node, "layout", 0) === 1;
}

function text(shape: readonly number[] | undefined): string {
  return shape === undefined ? "missing" : `[${shape.join(", ")}]`;
}

function conflict(node: Node, detail: string): RangeError {
  return new RangeError(`node "${node.name}" (${node.opType}): ${detail}`);
}
