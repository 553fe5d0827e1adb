// Channels-last form of each operator: axes renumbered, arguments made attributes, broadcast constants turned round.
import { UnsupportedError } from "../core/errors.ts";
import { type NdArray, ndArray, sizeOf, transpose } from "../core/nd_array.ts";
import {
  clipArguments,
  type ConstantLookup,
  padArguments,
  reduceArguments,
  sliceArguments,
} from "./arguments.ts";
import { normalizeAxis, numberAttribute, numbersAttribute } from "./attributes.ts";
import type { Attribute, Node } from "./graph.ts";
import { windowOf } from "./window.ts";

/** What a rule may ask, and where it stores constants it changes. */
export interface LastContext {
  /** Opset version of the graph. */
  readonly opset: number;
  /** Channels-first shapes. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** Constants of the channels-first graph. */
  readonly constant: ConstantLookup;
  /** Constants of the channels-last graph. */
  readonly initializers: Map<string, NdArray>;
}

type Rule = (node: Node, context: LastContext) => Node;

/** [N, H, W, C] axis i is [N, C, H, W] axis TO_LAST[i]. */
const TO_LAST = [0, 2, 3, 1];
/** [N, C, H, W] axis i is [N, H, W, C] axis FROM_FIRST[i]. */
const FROM_FIRST = [0, 3, 1, 2];

/**
 * Channels-last form of a shape.
 *
 * @param shape sizes; four are taken as [N, C, H, W], others stay
 * @returns the sizes as the GPU's tensor has them
 */
export function channelsLastShape<T>(shape: readonly T[]): T[] {
  return shape.length === 4 ? TO_LAST.map((axis) => shape[axis]!) : [...shape];
}

const unchanged: Rule = (node) => node;

/** Rules by operator; Conv and Gemm also need their weights placed, which channels_last.ts does. */
export const CHANNELS_LAST_RULES = {
  Add: broadcast,
  AveragePool: pool,
  BatchNormalization: batchNormalization,
  Clip: (node, { constant }) => oneInput(node, { ...clipArguments(node, constant) }),
  Concat: axisNode,
  Conv: window,
  Div: broadcast,
  Elu: unchanged,
  Flatten: reshape,
  Gelu: unchanged,
  GlobalAveragePool: image,
  GlobalMaxPool: image,
  HardSigmoid: unchanged,
  HardSwish: unchanged,
  Identity: unchanged,
  LeakyRelu: unchanged,
  LogSoftmax: softmax,
  MatMul: matMul,
  MaxPool: pool,
  Mul: broadcast,
  PRelu: broadcast,
  Pad: pad,
  ReduceMean: reduceMean,
  Relu: unchanged,
  Reshape: reshape,
  Sigmoid: unchanged,
  Slice: slice,
  Softmax: softmax,
  Squeeze: reshape,
  Sub: broadcast,
  Tanh: unchanged,
  Transpose: transposeNode,
  Unsqueeze: reshape,
} as const satisfies Record<string, Rule>;

function window(node: Node, { shapes }: LastContext): Node {
  const spatial = shapes.get(node.inputs[0]!)!.slice(2);
  const kernelShape = node.opType === "Conv" ? shapes.get(node.inputs[1]!)!.slice(2) : undefined;
  const { kernel, strides, dilations, pads } = windowOf(node, spatial, kernelShape);
  return { ...node, attributes: { kernel_shape: kernel, strides, dilations, pads } };
}

function pool(node: Node, context: LastContext): Node {
  const { attributes } = window(image(node, context), context);
  const ceil = numberAttribute(node, "ceil_mode", 0);
  const included = numberAttribute(node, "count_include_pad", 0);
  return { ...node, attributes: { ...attributes, ceil_mode: ceil, count_include_pad: included } };
}

function image(node: Node, { shapes }: LastContext): Node {
  const shape = shapes.get(node.inputs[0]!)!;
  if (shape.length === 4) return node;
  throw unsupported(node, `the input is [${shape.join(", ")}], expected an image [N, C, H, W]`);
}

function batchNormalization(node: Node, { shapes, constant }: LastContext): Node {
  const rank = shapes.get(node.inputs[0]!)!.length;
  if (rank !== 2 && rank !== 4) {
    throw unsupported(node, `the input has rank ${rank}, expected 2 or 4`);
  }
  const variable = node.inputs.slice(1).find((name) => constant(name) === undefined);
  if (variable !== undefined) throw unsupported(node, `"${variable}" is not a constant`);
  return { ...node, attributes: { epsilon: numberAttribute(node, "epsilon", 1e-5) } };
}

// Operands that broadcast: a constant against an image gets the image's rank and is turned round with it.
function broadcast(node: Node, context: LastContext): Node {
  const { shapes, constant, initializers } = context;
  const ranks = node.inputs.map((name) => shapes.get(name)!.length);
  if (!ranks.includes(4)) return node;
  for (const name of node.inputs) {
    const shape = shapes.get(name)!;
    const array = constant(name);
    if (sizeOf(shape) === 1 && array !== undefined) continue;
    if (array === undefined) {
      if (shape.length === 4) continue;
      throw unsupported(node, `cannot broadcast "${name}" [${shape.join(", ")}] with an image`);
    }
    if (shape.length > 4) throw unsupported(node, `"${name}" has rank ${shape.length}`);
    const four = [...new Array<number>(4 - shape.length).fill(1), ...shape];
    const turned = transpose(ndArray(array.dtype, four, array.data), TO_LAST);
    const placed = initializers.get(name);
    if (placed !== array && placed?.shape.join() !== turned.shape.join()) {
      throw unsupported(node, `constant "${name}" is shared with a node that needs it otherwise`);
    }
    initializers.set(name, turned);
  }
  return node;
}

function matMul(node: Node, { shapes }: LastContext): Node {
  if (node.inputs.every((name) => shapes.get(name)!.length !== 4)) return node;
  throw unsupported(node, "matrix products of rank-4 tensors");
}

function axisNode(node: Node, { shapes }: LastContext): Node {
  const rank = shapes.get(node.inputs[0]!)!.length;
  const axis = normalizeAxis(node, numberAttribute(node, "axis", -1), rank);
  return { ...node, attributes: { axis: lastAxis(axis, rank) } };
}

function softmax(node: Node, context: LastContext): Node {
  const shape = context.shapes.get(node.inputs[0]!)!;
  const old = context.opset < 13;
  const axis = normalizeAxis(node, numberAttribute(node, "axis", old ? 1 : -1), shape.length);
  // Before opset 13 the sum ran over all axes from `axis` on.
  if (old && sizeOf(shape.slice(axis + 1)) !== 1) {
    throw unsupported(node, `opset ${context.opset} sums over all axes from ${axis} on`);
  }
  return { ...node, attributes: { axis: lastAxis(axis, shape.length) } };
}

function reduceMean(node: Node, { shapes, constant }: LastContext): Node {
  const rank = shapes.get(node.inputs[0]!)!.length;
  const { axes, keepDims } = reduceArguments(node, rank, constant);
  const left = Array.from({ length: rank }, (_, axis) => axis).filter((axis) =>
    !axes.includes(axis)
  );
  const leftLast = left.map((axis) => lastAxis(axis, rank));
  if (!keepDims && leftLast.some((axis, i) => i > 0 && axis < leftLast[i - 1]!)) {
    throw unsupported(node, `axes [${axes.join(", ")}] with keepdims = 0 would mix up the layout`);
  }
  const mapped = axes.map((axis) => lastAxis(axis, rank)).sort((a, b) => a - b);
  return oneInput(node, { axes: mapped, keepdims: keepDims ? 1 : 0 });
}

function slice(node: Node, { shapes, constant }: LastContext): Node {
  const shape = shapes.get(node.inputs[0]!)!;
  const ranges = sliceArguments(node, shape, constant);
  return oneInput(node, {
    axes: ranges.map((range) => lastAxis(range.axis, shape.length)),
    starts: ranges.map((range) => range.start),
    ends: ranges.map((range) => range.end),
    steps: ranges.map((range) => range.step),
  });
}

function pad(node: Node, { shapes, constant }: LastContext): Node {
  const rank = shapes.get(node.inputs[0]!)!.length;
  const { pads, mode, value } = padArguments(node, rank, constant);
  const order = rank === 4 ? TO_LAST : Array.from({ length: rank }, (_, axis) => axis);
  const begins = order.map((axis) => pads[axis]!), ends = order.map((axis) => pads[axis + rank]!);
  return oneInput(node, { pads: [...begins, ...ends], mode, value });
}

// y[i] = x[perm[i]] on channels-first axes, said with the axes both tensors have now.
function transposeNode(node: Node, { shapes }: LastContext): Node {
  const rank = shapes.get(node.inputs[0]!)!.length;
  const given = numbersAttribute(node, "perm") ??
    Array.from({ length: rank }, (_, axis) => rank - 1 - axis);
  if (given[0] !== 0) {
    throw unsupported(node, `perm is [${given.join(", ")}], the batch must stay first`);
  }
  if (rank !== 4) return oneInput(node, { perm: given });
  return oneInput(node, { perm: TO_LAST.map((axis) => FROM_FIRST[given[axis]!]!) });
}

// Reshapes that leave every element where it is: images of one pixel (or one channel) and anything that is no image.
function reshape(node: Node, { shapes }: LastContext): Node {
  const from = shapes.get(node.inputs[0]!)!, to = shapes.get(node.outputs[0]!)!;
  const target = channelsLastShape(to);
  const last = channelsLastShape(from).at(-1);
  if (!keepsOrder(from) || !keepsOrder(to) || last !== target.at(-1)) {
    throw unsupported(
      node,
      `[${from.join(", ")}] to [${to.join(", ")}] would move elements in channels-last memory`,
    );
  }
  return { ...oneInput(node, { shape: target }), opType: "Reshape" };
}

function keepsOrder(shape: readonly number[]): boolean {
  return shape.length !== 4 || shape[1] === 1 || shape[2]! * shape[3]! === 1;
}

function lastAxis(axis: number, rank: number): number {
  return rank === 4 ? FROM_FIRST[axis]! : axis;
}

function oneInput(node: Node, attributes: Readonly<Record<string, Attribute>>): Node {
  return { ...node, inputs: node.inputs.slice(0, 1), attributes };
}

function unsupported(node: Node, detail: string): UnsupportedError {
  return new UnsupportedError(node.opType, node.name, detail);
}
