// Elementwise arithmetic, activations and copies, one vec4 an invocation, each with its derivative.
// Shapes: channels last; binary operators broadcast (kernels/broadcast.ts), and their backward kernels sum over the axes an
// operand was repeated along, in a fixed order.
import {
  type Activation,
  activationDerivative,
  activationForward,
  activationKeepsZero,
  literal,
} from "./activation.ts";
import {
  axisGroups,
  broadcastLoad,
  broadcastShape,
  joinIndex,
  splatsChannels,
} from "./broadcast.ts";
import { maskPadding } from "./epilogue.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import {
  type Binding,
  type Kernel,
  type KernelSequence,
  padded,
  paddedSize,
  type Target,
} from "./kernel.ts";
import { forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** A binary operator and the shapes of its operands. */
export interface BinarySpec {
  readonly operator: "add" | "sub" | "mul" | "div";
  readonly a: readonly number[];
  readonly b: readonly number[];
}

/** A unary operator and the shape it works on. */
export interface UnarySpec {
  readonly operator: "neg" | "abs" | "exp" | "log" | "sqrt" | "square" | "reciprocal";
  readonly shape: readonly number[];
}

/** An activation and the shape it works on. */
export interface ActivationSpec {
  readonly activation: Activation;
  readonly shape: readonly number[];
}

const BINARY_FORWARD: Readonly<Record<BinarySpec["operator"], string>> = {
  add: "a_i + b_i",
  sub: "a_i - b_i",
  mul: "a_i * b_i",
  div: "a_i / b_i",
};

/** dL/da and dL/db before they are summed over repeated axes. */
const BINARY_BACKWARD: Readonly<Record<BinarySpec["operator"], { a: string; b: string }>> = {
  add: { a: "dy[i]", b: "dy[i]" },
  sub: { a: "dy[i]", b: "-dy[i]" },
  mul: { a: "dy[i] * b_i", b: "dy[i] * a_i" },
  div: { a: "dy[i] / b_i", b: "-dy[i] * a_i / (b_i * b_i)" },
};

const UNARY: Readonly<Record<UnarySpec["operator"], { forward: string; derivative: string }>> = {
  neg: { forward: "-v", derivative: "vec4f(-1.0)" },
  abs: { forward: "abs(v)", derivative: "sign(v)" },
  exp: { forward: "exp(v)", derivative: "exp(v)" },
  log: { forward: "log(v)", derivative: "1.0 / v" },
  sqrt: { forward: "sqrt(v)", derivative: "0.5 / sqrt(v)" },
  square: { forward: "v * v", derivative: "2.0 * v" },
  reciprocal: { forward: "1.0 / v", derivative: "-1.0 / (v * v)" },
};

// y = a op b
/**
 * Binary operator, forward.
 *
 * @param spec operator and shapes
 * @returns a kernel with bindings a, b, y
 * @throws RangeError when the shapes do not broadcast
 */
export function binaryForward({ operator, a, b }: BinarySpec): Kernel {
  const shape = broadcastShape(a, b);
  const body = `let a_i = ${broadcastLoad("a", a, shape, "i")};
  let b_i = ${broadcastLoad("b", b, shape, "i")};
  y[i] = ${clearPadding(BINARY_FORWARD[operator], shape)};`;
  const bindings = [read("a"), read("b"), write("y")];
  return elementKernel(`${operator}_forward`, shape, bindings, body);
}

// add: da = dy, db = dy; sub: db = -dy; mul: da = dy b, db = dy a; div: da = dy / b, db = -dy a / b^2; summed over repeats
/**
 * Binary operator, backward to one operand.
 *
 * @param spec operator and shapes
 * @param side the operand whose gradient is wanted
 * @param target the adapter
 * @returns kernels with bindings dy, then a and b as {@linkcode binaryBackwardReads} says, then da or db
 */
export function binaryBackward(
  { operator, a, b }: BinarySpec,
  side: "a" | "b",
  target: Target,
): KernelSequence {
  const shape = broadcastShape(a, b);
  const operand = side === "a" ? a : b;
  const reads = binaryBackwardReads(operator, side);
  const loads = reads.map((name) =>
    `let ${name}_i = ${broadcastLoad(name, name === "a" ? a : b, shape, "i")};`
  ).join(" ");
  const value = clearPadding(BINARY_BACKWARD[operator][side], shape);
  const bindings = [read("dy"), ...reads.map(read)];
  const label = `${operator}_backward_${side}`;
  const output = `d${side}`;
  const groups = axisGroups(operand, shape);
  const splat = splatsChannels(operand, shape);
  const rows = groups.reduce((size, group) => group.kept ? size : size * group.size, 1);
  if (rows === 1 && !splat) {
    const body = `${loads} ${output}[i] = ${value};`;
    const kernel = elementKernel(label, shape, [...bindings, write(output)], body);
    return { kernels: [kernel], temporaries: {} };
  }
  const size = paddedSize(operand) / 4;
  const plan = planChunks(rows, size, target);
  const first = flatKernel({
    label: `${label} [${shape.join(", ")}] chunks`,
    size: plan.chunks * size,
    bindings: [...bindings, write("partials")],
    body: `let chunk = i / ${size}u; let own = i % ${size}u; let slot = i;
  var sum = vec4f(0.0);
  ${forEachRow(plan, `let i = ${joinIndex(groups, "own", "row")}; ${loads} sum += ${value};`)}
  partials[slot] = sum;`,
  });
  const finish = splat ? "vec4f(dot(value0, vec4f(1.0)), 0.0, 0.0, 0.0)" : "value0";
  const second = reductionKernel({
    label: `${label} [${shape.join(", ")}]`,
    bindings: [read("partials"), write(output)],
    chunks: plan.chunks,
    stride: size,
    offsets: [0],
    size,
    finish: `${output}[o] = ${finish};`,
  }, target);
  return { kernels: [first, second], temporaries: { partials: 4 * plan.chunks * size } };
}

/** The operands that the backward kernel to `side` binds besides dy. */
export function binaryBackwardReads(
  operator: BinarySpec["operator"],
  side: "a" | "b",
): ("a" | "b")[] {
  const value = BINARY_BACKWARD[operator][side];
  return (["a", "b"] as const).filter((name) => value.includes(`${name}_i`));
}

// y = f(x)
/**
 * Unary operator, forward.
 *
 * @param spec operator and shape
 * @returns a kernel with bindings x, y
 */
export function unaryForward({ operator, shape }: UnarySpec): Kernel {
  const body = `let v = x[i]; y[i] = ${clearPadding(UNARY[operator].forward, shape)};`;
  return elementKernel(`${operator}_forward`, shape, [read("x"), write("y")], body);
}

// dx = dy f'(x)
/**
 * Unary operator, backward.
 *
 * @param spec operator and shape
 * @returns a kernel with bindings x, dy, dx
 */
export function unaryBackward({ operator, shape }: UnarySpec): Kernel {
  const value = `dy[i] * (${UNARY[operator].derivative})`;
  const body = `let v = x[i]; dx[i] = ${clearPadding(value, shape)};`;
  return elementKernel(`${operator}_backward`, shape, [read("x"), read("dy"), write("dx")], body);
}

// y = activation(x)
/**
 * Activation, forward.
 *
 * @param spec activation and shape
 * @returns a kernel with bindings x, y
 */
export function activationLayerForward({ activation, shape }: ActivationSpec): Kernel {
  const value = activationForward(activation, "v");
  const masked = activationKeepsZero(activation) ? value : clearPadding(value, shape);
  const body = `let v = x[i]; y[i] = ${masked};`;
  return elementKernel(`${activation.kind}_forward`, shape, [read("x"), write("y")], body);
}

// dx = dy activation'(x)
/**
 * Activation, backward.
 *
 * @param spec activation and shape
 * @returns a kernel with bindings x, dy, dx
 */
export function activationLayerBackward({ activation, shape }: ActivationSpec): Kernel {
  const body = `let v = x[i]; dx[i] = dy[i] * ${activationDerivative(activation, "v")};`;
  const bindings = [read("x"), read("dy"), write("dx")];
  return elementKernel(`${activation.kind}_backward`, shape, bindings, body);
}

// y = factor x; backward is the same kernel on dy
/**
 * Multiplication by a constant.
 *
 * @param shape of x and y
 * @param factor the constant
 * @returns a kernel with bindings x, y
 */
export function scale(shape: readonly number[], factor: number): Kernel {
  const body = `y[i] = x[i] * ${literal(factor)};`;
  return elementKernel(`scale by ${factor}`, shape, [read("x"), write("y")], body);
}

// y += x
/**
 * Accumulation in place, for gradients that several consumers contribute to.
 *
 * @param shape of x and y
 * @returns a kernel with bindings x, y
 */
export function accumulate(shape: readonly number[]): Kernel {
  return elementKernel("accumulate", shape, [read("x"), write("y")], "y[i] += x[i];");
}

// y = value
/**
 * Constant fill; padding stays zero.
 *
 * @param shape of y
 * @param value the constant
 * @returns a kernel with binding y
 */
export function fill(shape: readonly number[], value: number): Kernel {
  const body = `y[i] = ${clearPadding(`vec4f(${literal(value)})`, shape)};`;
  return elementKernel(`fill with ${value}`, shape, [write("y")], body);
}

// y = x
/**
 * Copy.
 *
 * @param shape of x and y
 * @returns a kernel with bindings x, y
 */
export function copy(shape: readonly number[]): Kernel {
  return elementKernel("copy", shape, [read("x"), write("y")], "y[i] = x[i];");
}

/** `value` with zeros in the padding, whatever it is there (0 / 0 is not a number, so a product will not do). */
function clearPadding(value: string, shape: readonly number[]): string {
  const channels = shape.at(-1) ?? 1;
  if (channels % 4 === 0) return value;
  const ones = maskPadding("vec4f(1.0)", `(i % ${padded(channels) / 4}u)`, channels);
  return `select(vec4f(0.0), ${value}, ${ones} == vec4f(1.0))`;
}

function elementKernel(
  name: string,
  shape: readonly number[],
  bindings: readonly Binding[],
  body: string,
): Kernel {
  const label = `${name} [${shape.join(", ")}]`;
  const size = paddedSize(shape) / 4;
  return flatKernel({ label, size, bindings, body, repeat: size >= 1 << 14 ? 4 : 1 });
}
