// Evaluates, on the host, the few operators that exporters put around Reshape, Slice and Pad to compute their
// arguments. Only whole constants: a node is evaluated when all its inputs are known.
import { UnsupportedError } from "../core/errors.ts";
import {
  type DType,
  type NdArray,
  ndArray,
  sizeOf,
  stridesOf,
  transpose,
  TYPED_ARRAYS,
  type TypedArrays,
} from "../core/nd_array.ts";
import {
  axesArgument,
  broadcastShapes,
  type ConstantLookup,
  numbersOf,
  reshapedShape,
  sliceArguments,
} from "./arguments.ts";
import { normalizeAxis, numberAttribute, numbersAttribute } from "./attributes.ts";
import type { Node } from "./graph.ts";

/**
 * Computes the output of a node all whose inputs are constants.
 *
 * @param node the node
 * @param constant finds constants
 * @param shapeOf finds shapes, for Shape
 * @returns the value, or undefined when an input is not constant or the operator is not one of those evaluated
 */
export function evaluateConstant(
  node: Node,
  constant: ConstantLookup,
  shapeOf: (name: string) => readonly number[] | undefined,
): NdArray | undefined {
  if (node.opType === "Shape") return evaluateShape(node, shapeOf(node.inputs[0] ?? ""));
  if (!Object.hasOwn(CONSTANT_OPERATORS, node.opType)) return undefined;
  const inputs: NdArray[] = [];
  for (const name of node.inputs) {
    if (name === "") continue;
    const value = constant(name);
    if (value === undefined) return undefined;
    inputs.push(value);
  }
  const evaluate = CONSTANT_OPERATORS[node.opType as keyof typeof CONSTANT_OPERATORS];
  if (node.opType !== "Constant" && inputs.length === 0) return undefined;
  return evaluate(node, inputs, constant);
}

type Evaluate = (node: Node, inputs: readonly NdArray[], constant: ConstantLookup) => NdArray;

const CONSTANT_OPERATORS = {
  Add: (node, inputs) => arithmetic(node, inputs, (a, b) => a + b),
  Cast: (node, [x]) => fromNumbers(castType(node), x!.shape, numbersOf(x!)),
  Concat: concatenate,
  Constant: (node) => constantValue(node),
  ConstantOfShape: (node, [shape]) => {
    const given = node.attributes.value;
    const value = typeof given === "object" && "dtype" in given ? given : undefined;
    const sizes = numbersOf(shape!);
    const fill = value === undefined ? 0 : numbersOf(value)[0] ?? 0;
    if (!(sizeOf(sizes) <= MAX_FILLED)) {
      throw new UnsupportedError(node.opType, node.name, `more than ${MAX_FILLED} elements`);
    }
    const data = new Array<number>(sizeOf(sizes)).fill(fill);
    return fromNumbers(value?.dtype ?? "float32", sizes, data);
  },
  Div: (node, inputs) =>
    arithmetic(
      node,
      inputs,
      (a, b) => inputs[0]!.dtype.includes("int") ? Math.trunc(a / b) : a / b,
    ),
  Expand: expand,
  Gather: gather,
  Identity: (_, [x]) => x!,
  Mul: (node, inputs) => arithmetic(node, inputs, (a, b) => a * b),
  Reshape: (node, [x, shape]) =>
    ndArray(
      x!.dtype,
      reshapedShape(node, x!.shape, shape === undefined ? [] : numbersOf(shape)),
      x!.data,
    ),
  Slice: (node, [x], constant) => {
    let result = x!;
    for (const range of sliceArguments(node, x!.shape, constant)) {
      const positions = Array.from({ length: range.count }, (_, i) => range.start + i * range.step);
      result = take(result, positions, range.axis);
    }
    return result;
  },
  Squeeze: (node, [x], constant) => {
    const axes = axesArgument(node, constant)?.map((a) => normalizeAxis(node, a, x!.shape.length));
    const shape = x!.shape.filter((size, i) => axes === undefined ? size !== 1 : !axes.includes(i));
    return ndArray(x!.dtype, shape, x!.data);
  },
  Sub: (node, inputs) => arithmetic(node, inputs, (a, b) => a - b),
  Transpose: (node, [x]) =>
    transpose(x!, numbersAttribute(node, "perm") ?? x!.shape.map((_, i) => i).reverse()),
  Unsqueeze: (node, [x], constant) => {
    const axes = axesArgument(node, constant) ?? [];
    const rank = x!.shape.length + axes.length;
    const added = new Set(axes.map((axis) => normalizeAxis(node, axis, rank)));
    let next = 0;
    const shape = Array.from({ length: rank }, (_, i) => added.has(i) ? 1 : x!.shape[next++] ?? 1);
    return ndArray(x!.dtype, shape, x!.data);
  },
} as const satisfies Record<string, Evaluate>;

// A few bytes of a file must not make an array of any size.
const MAX_FILLED = 65536;

// TensorProto.DataType of the ONNX specification.
const DATA_TYPES: Readonly<Record<number, DType>> = {
  1: "float32",
  2: "uint8",
  3: "int8",
  4: "uint16",
  5: "int16",
  6: "int32",
  7: "int64",
  9: "bool",
  11: "float64",
  12: "uint32",
};

function castType(node: Node): DType {
  const code = numberAttribute(node, "to", 0);
  const dtype = DATA_TYPES[code];
  if (dtype === undefined) {
    throw new UnsupportedError(node.opType, node.name, `data type ${code}`);
  }
  return dtype;
}

function constantValue(node: Node): NdArray {
  const { value, value_int, value_ints, value_float, value_floats } = node.attributes;
  if (value !== undefined && typeof value === "object" && "dtype" in value) return value;
  if (typeof value_int === "number") return fromNumbers("int64", [], [value_int]);
  if (typeof value_float === "number") return fromNumbers("float32", [], [value_float]);
  if (value_ints !== undefined) {
    const numbers = numbersAttribute(node, "value_ints")!;
    return fromNumbers("int64", [numbers.length], numbers);
  }
  if (value_floats !== undefined) {
    const numbers = numbersAttribute(node, "value_floats")!;
    return fromNumbers("float32", [numbers.length], numbers);
  }
  throw new UnsupportedError(node.opType, node.name, "only numeric tensors are supported");
}

function evaluateShape(node: Node, shape: readonly number[] | undefined): NdArray | undefined {
  if (shape === undefined) return undefined;
  const end = node.attributes.end === undefined ? undefined : numberAttribute(node, "end", 0);
  const part = shape.slice(numberAttribute(node, "start", 0), end);
  return fromNumbers("int64", [part.length], part);
}

function arithmetic(
  node: Node,
  [a, b]: readonly NdArray[],
  apply: (a: number, b: number) => number,
): NdArray {
  const left = numbersOf(a!), right = b === undefined ? [] : numbersOf(b);
  const size = Math.max(left.length, right.length);
  if (Math.min(left.length, right.length) !== 1 && left.length !== right.length) {
    throw new UnsupportedError(node.opType, node.name, "constants of different shapes");
  }
  const shape = left.length === size ? a!.shape : b!.shape;
  const data = Array.from(
    { length: size },
    (_, i) => apply(left[i % left.length]!, right[i % right.length]!),
  );
  return fromNumbers(a!.dtype, shape, data);
}

function concatenate(node: Node, inputs: readonly NdArray[]): NdArray {
  const first = inputs[0]!;
  const axis = normalizeAxis(node, numberAttribute(node, "axis", 0), first.shape.length);
  const rows = sizeOf(first.shape.slice(0, axis));
  const data: number[] = [];
  for (let row = 0; row < rows; row++) {
    for (const input of inputs) {
      const width = sizeOf(input.shape.slice(axis));
      for (const x of numbersOf(input).slice(row * width, (row + 1) * width)) data.push(x);
    }
  }
  const sum = inputs.reduce((total, input) => total + input.shape[axis]!, 0);
  return fromNumbers(first.dtype, first.shape.with(axis, sum), data);
}

function expand(node: Node, [x, wanted]: readonly NdArray[]): NdArray {
  const sizes = numbersOf(wanted!);
  const shape = broadcastShapes(x!.shape, sizes);
  if (shape === undefined || !(sizeOf(shape) <= MAX_FILLED)) {
    const found = `[${x!.shape.join(", ")}] to [${sizes.join(", ")}]`;
    throw new UnsupportedError(node.opType, node.name, `cannot expand ${found}`);
  }
  const from = stridesOf(x!.shape), to = stridesOf(shape);
  const missing = shape.length - x!.shape.length;
  const values = numbersOf(x!);
  const data = Array.from({ length: sizeOf(shape) }, (_, i) => {
    let index = 0;
    from.forEach((stride, axis) => {
      if (x!.shape[axis] === 1) return;
      index += stride * (Math.floor(i / to[axis + missing]!) % shape[axis + missing]!);
    });
    return values[index]!;
  });
  return fromNumbers(x!.dtype, shape, data);
}

function gather(node: Node, [x, indices]: readonly NdArray[]): NdArray {
  const axis = normalizeAxis(node, numberAttribute(node, "axis", 0), x!.shape.length);
  const positions = numbersOf(indices!).map((i) => normalizeAxis(node, i, x!.shape[axis]!));
  const taken = take(x!, positions, axis);
  const shape = [...x!.shape.slice(0, axis), ...indices!.shape, ...x!.shape.slice(axis + 1)];
  return ndArray(taken.dtype, shape, taken.data);
}

function take(x: NdArray, positions: readonly number[], axis: number): NdArray {
  const stride = stridesOf(x.shape)[axis]!;
  const block = stride * x.shape[axis]!;
  const values = numbersOf(x);
  const data: number[] = [];
  for (let start = 0; start < values.length; start += block) {
    for (const position of positions) {
      const from = start + position * stride;
      for (let i = from; i < from + stride; i++) data.push(values[i]!);
    }
  }
  return fromNumbers(x.dtype, x.shape.with(axis, positions.length), data);
}

function fromNumbers(dtype: DType, shape: readonly number[], values: readonly number[]): NdArray {
  if (dtype === "int64") {
    const data = BigInt64Array.from(values, (value) => BigInt(Math.trunc(value)));
    return ndArray("int64", shape, data);
  }
  const numbers = dtype === "bool" ? values.map((value) => value === 0 ? 0 : 1) : values;
  // The union of the constructors' types does not unify; each takes numbers, int64 is done above.
  const data = TYPED_ARRAYS[dtype].from(numbers as number[]) as TypedArrays[DType];
  return ndArray<DType>(dtype, shape, data);
}
