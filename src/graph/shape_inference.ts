// Shapes of all tensors of a graph, channels first, for a given batch size. One rule for each operator, after the ONNX
// operator specification; a conflict is an error that names the node, found before anything runs on the GPU.
import { UnsupportedError } from "../core/errors.ts";
import { type NdArray, sizeOf } from "../core/nd_array.ts";
import {
  axesArgument,
  broadcastShapes,
  constantInput,
  type ConstantLookup,
  numbersOf,
  padArguments,
  reduceArguments,
  reshapedShape,
  sliceArguments,
} from "./arguments.ts";
import { normalizeAxis, numberAttribute, numbersAttribute } from "./attributes.ts";
import { evaluateConstant } from "./constants.ts";
import type { Graph, Node } from "./graph.ts";
import { lstmShapes } from "./lstm.ts";
import { windowOf, windowOutput } from "./window.ts";

/**
 * Infers the shape of every tensor, initializers included.
 *
 * @param graph the network
 * @param batch size that takes the place of the first axis of every graph input
 * @returns shape by tensor name
 * @throws UnsupportedError when an operator, or a form of it, has no rule
 * @throws RangeError when shapes contradict each other
 */
export function inferShapes(graph: Graph, batch: number): Map<string, readonly number[]> {
  return inferShapesAndValues(graph, batch).shapes;
}

/**
 * Infers shapes and, on the way, the value of every tensor that depends on shapes and constants only.
 *
 * @param graph the network
 * @param batch as for {@linkcode inferShapes}
 * @returns shape by tensor name, and value by tensor name (initializers included)
 */
export function inferShapesAndValues(
  graph: Graph,
  batch: number,
): { shapes: Map<string, readonly number[]>; values: Map<string, NdArray> } {
  const shapes = new Map<string, readonly number[]>();
  const values = new Map<string, NdArray>(graph.initializers);
  for (const [name, array] of graph.initializers) shapes.set(name, array.shape);
  for (const input of graph.inputs) shapes.set(input.name, inputShape(input, batch));
  const constant = (name: string) => values.get(name);
  for (const node of graph.nodes) {
    const value = evaluateConstant(node, constant, (name) => shapes.get(name));
    if (value !== undefined) values.set(node.outputs[0]!, value);
    const found = value ? [value.shape] : inferNode(node, shapes, constant, graph.opset);
    for (const [i, output] of node.outputs.entries()) {
      // A second output that has no shape of its own is Dropout's mask.
      if (output !== "") shapes.set(output, found[i] ?? found[0]!);
    }
  }
  return { shapes, values };
}

/** Operators with a shape rule, sorted. */
export function supportedOperators(): string[] {
  return [...Object.keys(SHAPE_RULES), "LSTM"].sort();
}

/** What a shape rule may ask about its node. */
interface Context {
  readonly node: Node;
  readonly opset: number;
  readonly constant: ConstantLookup;
  /** Shape of input `index`; an error when it is absent. */
  shape(index: number): readonly number[];
  /** Shape of input `index`, or undefined when it is absent. */
  optionalShape(index: number): readonly number[] | undefined;
}

type ShapeRule = (context: Context) => readonly number[];

const sameShape: ShapeRule = ({ shape }) => shape(0);

const SHAPE_RULES = {
  Add: broadcast,
  AveragePool: pool,
  BatchNormalization: batchNormalization,
  Cast: sameShape,
  Clip: sameShape,
  Concat: concat,
  Constant: constantOnly,
  ConstantOfShape: constantOnly,
  Conv: conv,
  Div: broadcast,
  Dropout: dropout,
  Elu: sameShape,
  Expand: constantOnly,
  Flatten: flatten,
  Gather: gather,
  Gelu: sameShape,
  Gemm: gemm,
  GlobalAveragePool: globalPool,
  GlobalMaxPool: globalPool,
  HardSigmoid: sameShape,
  HardSwish: sameShape,
  Identity: sameShape,
  LeakyRelu: sameShape,
  LogSoftmax: softmax,
  MatMul: matMul,
  MaxPool: pool,
  Mul: broadcast,
  PRelu: prelu,
  Pad: pad,
  ReduceMean: reduce,
  Relu: sameShape,
  Reshape: reshape,
  Shape: constantOnly,
  Sigmoid: sameShape,
  Slice: slice,
  Softmax: softmax,
  Squeeze: squeeze,
  Sub: broadcast,
  Tanh: sameShape,
  Transpose: transposed,
  Unsqueeze: unsqueeze,
} as const satisfies Record<string, ShapeRule>;

function inputShape(input: Graph["inputs"][number], batch: number): number[] {
  return input.shape.map((size, axis) => {
    if (axis === 0) return batch;
    if (typeof size === "number" && Number.isInteger(size) && size > 0) return size;
    throw new RangeError(
      `Graph input "${input.name}": axis ${axis} has size "${size}", but only the batch may be open`,
    );
  });
}

/** Shapes of a node's outputs. */
function inferNode(
  node: Node,
  shapes: ReadonlyMap<string, readonly number[]>,
  constant: ConstantLookup,
  opset: number,
): readonly (readonly number[])[] {
  // hasOwn: an operator may be called "constructor".
  if (!Object.hasOwn(SHAPE_RULES, node.opType) && node.opType !== "LSTM") {
    throw new UnsupportedError(
      node.opType,
      node.name,
      `the operator is not supported; supported are ${supportedOperators().join(", ")}`,
    );
  }
  const optionalShape = (index: number) => {
    const name = node.inputs[index] ?? "";
    if (name === "") return undefined;
    const shape = shapes.get(name);
    if (shape === undefined) throw conflict(node, `no node before it makes its input "${name}"`);
    return shape;
  };
  if (node.opType === "LSTM") return lstmShapes(node, optionalShape);
  if (node.opType !== "Dropout" && node.outputs.slice(1).some((output) => output !== "")) {
    throw new UnsupportedError(node.opType, node.name, "only the first output is supported");
  }
  const shape = (index: number) => {
    const found = optionalShape(index);
    if (found === undefined) throw conflict(node, `input ${index} is missing`);
    return found;
  };
  const rule: ShapeRule = SHAPE_RULES[node.opType as keyof typeof SHAPE_RULES];
  return [rule({ node, opset, constant, shape, optionalShape })];
}

function constantOnly({ node }: Context): never {
  throw new UnsupportedError(node.opType, node.name, "it is supported on constants only");
}

function broadcast({ node, shape }: Context): readonly number[] {
  const result = broadcastShapes(shape(0), shape(1));
  if (result === undefined) {
    throw conflict(node, `cannot broadcast ${text(shape(0))} with ${text(shape(1))}`);
  }
  return result;
}

function prelu({ node, shape }: Context): readonly number[] {
  if (broadcastShapes(shape(0), shape(1))?.join() !== shape(0).join()) {
    throw conflict(node, `slope ${text(shape(1))} does not fit the input ${text(shape(0))}`);
  }
  return shape(0);
}

function dropout({ node, shape, constant }: Context): readonly number[] {
  if ((constantInput(node, 2, constant)?.[0] ?? 0) !== 0) {
    throw new UnsupportedError(node.opType, node.name, "training_mode is 1, expected 0");
  }
  return shape(0);
}

function batchNormalization({ node, shape }: Context): readonly number[] {
  if (numberAttribute(node, "training_mode", 0) !== 0) {
    throw new UnsupportedError(node.opType, node.name, "training_mode is 1, expected 0");
  }
  const channels = shape(0)[1];
  if (channels === undefined) throw conflict(node, "the input has no channel axis");
  ["scale", "bias", "mean", "variance"].forEach((name, i) => {
    if (shape(i + 1).join() !== `${channels}`) {
      throw conflict(node, `${name} is ${text(shape(i + 1))}, expected [${channels}]`);
    }
  });
  return shape(0);
}

function conv({ node, shape, optionalShape }: Context): readonly number[] {
  const x = shape(0), w = shape(1), b = optionalShape(2);
  if (x.length < 3 || w.length !== x.length) {
    throw conflict(node, `input ${text(x)} and weight ${text(w)} must have the same rank, >= 3`);
  }
  const group = numberAttribute(node, "group", 1);
  if (!Number.isInteger(group) || group < 1 || w[0]! % group !== 0) {
    throw conflict(node, `group is ${group}, but the weight has ${w[0]} output channels`);
  }
  if (x[1] !== w[1]! * group) {
    throw conflict(
      node,
      `the input has ${x[1]} channels, the weight ${text(w)} with group ${group} needs ${
        w[1]! * group
      }`,
    );
  }
  if (b !== undefined && b.join() !== `${w[0]}`) {
    throw conflict(node, `the bias is ${text(b)}, expected [${w[0]}]`);
  }
  const window = windowOf(node, x.slice(2), w.slice(2));
  return [x[0]!, w[0]!, ...windowOutput(node, x.slice(2), window)];
}

function pool({ node, shape }: Context): readonly number[] {
  const x = spatialInput(node, shape(0));
  return [x[0]!, x[1]!, ...windowOutput(node, x.slice(2), windowOf(node, x.slice(2)))];
}

function globalPool({ node, shape }: Context): readonly number[] {
  return spatialInput(node, shape(0)).map((size, axis) => axis < 2 ? size : 1);
}

function gemm({ node, shape, optionalShape }: Context): readonly number[] {
  const a = shape(0), b = shape(1), c = optionalShape(2);
  const transposesA = numberAttribute(node, "transA", 0) !== 0;
  // More than two axes only where simplify has made a Gemm of MatMul (simplify_linear.ts).
  if (a.length !== numberAttribute(node, "rank", 2) || b.length !== 2) {
    throw conflict(node, `A is ${text(a)} and B is ${text(b)}, expected two matrices`);
  }
  const inner = transposesA ? a[0]! : a.at(-1)!;
  const rows = transposesA ? [a[1]!] : a.slice(0, -1);
  const [depth, columns] = numberAttribute(node, "transB", 0) === 0 ? b : b.toReversed();
  if (inner !== depth) throw conflict(node, `cannot multiply ${text(a)} by ${text(b)}`);
  const result = [...rows, columns!];
  if (c !== undefined && broadcastShapes(result, c)?.join() !== result.join()) {
    throw conflict(node, `C is ${text(c)}, expected a shape that broadcasts to ${text(result)}`);
  }
  return result;
}

function matMul({ node, shape }: Context): readonly number[] {
  const a = shape(0), b = shape(1);
  const stack = broadcastShapes(a.slice(0, -2), b.slice(0, -2));
  if (a.length < 2 || b.length < 2 || a.at(-1) !== b.at(-2) || stack === undefined) {
    throw conflict(node, `cannot multiply ${text(a)} by ${text(b)}`);
  }
  return [...stack, a.at(-2)!, b.at(-1)!];
}

function reduce({ node, shape, constant }: Context): readonly number[] {
  const { axes, keepDims } = reduceArguments(node, shape(0).length, constant);
  if (keepDims) return shape(0).map((size, axis) => axes.includes(axis) ? 1 : size);
  return shape(0).filter((_, axis) => !axes.includes(axis));
}

function concat({ node, shape }: Context): readonly number[] {
  const first = shape(0);
  const axis = normalizeAxis(node, numberAttribute(node, "axis", 0), first.length);
  let sum = 0;
  node.inputs.forEach((_, i) => {
    if (shape(i).length !== first.length || shape(i).some((s, j) => j !== axis && s !== first[j])) {
      throw conflict(node, `cannot join ${text(first)} and ${text(shape(i))} along axis ${axis}`);
    }
    sum += shape(i)[axis]!;
  });
  return first.with(axis, sum);
}

function gather({ node, shape, constant }: Context): readonly number[] {
  const x = shape(0);
  const indices = constant(node.inputs[1] ?? "");
  if (indices?.shape.length !== 0) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      "it is supported on constants, or with one constant position",
    );
  }
  const axis = normalizeAxis(node, numberAttribute(node, "axis", 0), x.length);
  normalizeAxis(node, numbersOf(indices)[0]!, x[axis]!);
  return x.toSpliced(axis, 1);
}

function slice({ node, shape, constant }: Context): readonly number[] {
  const result = [...shape(0)];
  for (const range of sliceArguments(node, result, constant)) result[range.axis] = range.count;
  return checkSizes(node, result);
}

function pad({ node, shape, constant }: Context): readonly number[] {
  const x = shape(0);
  const { pads } = padArguments(node, x.length, constant);
  return checkSizes(node, x.map((size, i) => size + pads[i]! + pads[i + x.length]!));
}

function flatten({ node, shape }: Context): readonly number[] {
  const x = shape(0);
  const given = numberAttribute(node, "axis", 1);
  const axis = given === x.length ? given : normalizeAxis(node, given, x.length);
  return [sizeOf(x.slice(0, axis)), sizeOf(x.slice(axis))];
}

function reshape({ node, shape, constant }: Context): readonly number[] {
  const target = constantInput(node, 1, constant) ?? numbersAttribute(node, "shape");
  if (target === undefined) throw conflict(node, "the shape is missing");
  return reshapedShape(node, shape(0), target);
}

function transposed({ node, shape }: Context): readonly number[] {
  const x = shape(0);
  const permutation = numbersAttribute(node, "perm") ?? x.map((_, i) => i).reverse();
  if (permutation.length !== x.length || permutation.toSorted().some((axis, i) => axis !== i)) {
    throw conflict(node, `cannot permute ${text(x)} by ${text(permutation)}`);
  }
  return permutation.map((axis) => x[axis]!);
}

function softmax({ node, shape, opset }: Context): readonly number[] {
  normalizeAxis(node, numberAttribute(node, "axis", opset < 13 ? 1 : -1), shape(0).length);
  return shape(0);
}

function squeeze({ node, shape, constant }: Context): readonly number[] {
  const x = shape(0);
  const axes = axesArgument(node, constant)?.map((axis) => normalizeAxis(node, axis, x.length));
  if (axes === undefined) return x.filter((size) => size !== 1);
  if (axes.some((axis) => x[axis] !== 1)) {
    throw conflict(node, `cannot remove axes ${text(axes)} of ${text(x)}: not all have size 1`);
  }
  return x.filter((_, axis) => !axes.includes(axis));
}

function unsqueeze({ node, shape, constant }: Context): readonly number[] {
  const x = shape(0);
  const axes = axesArgument(node, constant) ?? [];
  const rank = x.length + axes.length;
  const added = new Set(axes.map((axis) => normalizeAxis(node, axis, rank)));
  if (added.size !== axes.length) throw conflict(node, `axes ${text(axes)} name one axis twice`);
  let next = 0;
  return Array.from({ length: rank }, (_, axis) => added.has(axis) ? 1 : x[next++]!);
}

function spatialInput(node: Node, x: readonly number[]): readonly number[] {
  if (x.length < 3) throw conflict(node, `the input is ${text(x)}, expected [N, C, spatial axes]`);
  return x;
}

function checkSizes(node: Node, shape: readonly number[]): readonly number[] {
  if (shape.some((size) => !Number.isInteger(size) || size < 1)) {
    throw conflict(node, `the result ${text(shape)} would be empty`);
  }
  return shape;
}

function text(shape: readonly number[]): string {
  return `[${shape.join(", ")}]`;
}

function conflict(node: Node, detail: string): RangeError {
  return new RangeError(`node "${node.name}" (${node.opType}): ${detail}`);
}
