// Rewrites a simplified network for the GPU: images [N, H, W, C] instead of [N, C, H, W], weights to match, and every
// argument of a node an attribute. Tensor and node names stay. See kernels/kernel.ts for the physical layout.
//
// Forms of the nodes in the result (inputs that are arguments in ONNX are gone):
//   Conv                     kernel_shape, strides, dilations, pads [top, left, bottom, right], group; w, optional b
//   Gemm                     y = x w^T + b with w [O, I]; transB = 1
//   LSTM                     as lstm.ts has it: direction; x [N, T, I]; w [4H, I + H], optional b [4H]
//   MaxPool, AveragePool     as Conv without group; ceil_mode, count_include_pad
//   Clip                     min, max (may be infinite)
//   Slice                    axes, starts, ends, steps: non-negative and clamped; end -1 = through index 0
//   Pad                      pads (begins, ends, one for each axis), mode, value
//   ReduceMean               axes, keepdims      Concat, Softmax, LogSoftmax   axis      Transpose   perm
//   Reshape                  shape, batch included; the elements keep their place in memory, padding included.
//                            Flatten, Squeeze, Unsqueeze and Reshape all become this one.
// A Gemm that reads a flattened image becomes a Conv with the image as its kernel; its output keeps the shape [N, O].
import { UnsupportedError } from "../core/errors.ts";
import { type NdArray, ndArray, toFloat32 } from "../core/nd_array.ts";
import { numberAttribute } from "./attributes.ts";
import { CHANNELS_LAST_RULES, channelsLastShape, type LastContext } from "./channels_last_rules.ts";
import type { Graph, Node, ValueInfo } from "./graph.ts";
import { directionOf } from "./lstm.ts";
import { finishEdit, startEdit } from "./rewrite.ts";
import { consumers, outputNames } from "./topology.ts";
import {
  convLayout,
  flattenedLayout,
  linearLayout,
  toChannelsLastLayout,
  type WeightLayout,
} from "./weight_layout.ts";

export { channelsLastShape };

/** The graph that the GPU executes. */
export interface ChannelsLastGraph {
  /** Channels last; all initializers are float32. */
  readonly graph: Graph;
  /** Channels-last shape of every tensor, batch included. */
  readonly shapes: Map<string, readonly number[]>;
  /** How each weight of a layer was made, by initializer name. Other parameters of layers are vectors [C]. */
  readonly layouts: ReadonlyMap<string, WeightLayout>;
}

/**
 * Rewrites a network to channels last.
 *
 * @param graph the network after `simplify`
 * @param shapes its shapes, from `inferShapes`
 * @returns the network that the GPU executes
 * @throws UnsupportedError when a node has no channels-last form
 */
export function toChannelsLast(
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
): ChannelsLastGraph {
  const layouts = new Map<string, WeightLayout>();
  const images = flattenedImages(graph, shapes);
  const edit = startEdit(graph);
  const context: LastContext = {
    opset: graph.opset,
    shapes,
    constant: (name) => graph.initializers.get(name),
    initializers: edit.initializers,
  };
  edit.nodes = [];
  for (const node of graph.nodes) {
    if (images.has(node.outputs[0]!)) continue;
    if (node.opType === "Conv") edit.nodes.push(convNode(node, context, layouts));
    else if (node.opType === "Gemm") edit.nodes.push(gemmNode(node, context, images, layouts));
    else if (node.opType === "LSTM") edit.nodes.push(lstmNode(node, context, layouts));
    else edit.nodes.push(otherNode(node, context));
  }
  // Constants are already in their final layout; everything else is float32 by now or about to be dropped.
  const result = finishEdit(graph, edit);
  const initializers = new Map<string, NdArray>();
  for (const [name, array] of result.initializers) {
    initializers.set(name, ndArray("float32", array.shape, toFloat32(array)));
  }
  return {
    graph: {
      ...result,
      inputs: graph.inputs.map(valueInfo),
      outputs: graph.outputs.map(valueInfo),
      initializers,
    },
    shapes: lastShapes(graph, shapes, initializers, images),
    layouts,
  };
}

/** What a Flatten that disappears reads. */
interface FlattenedImage {
  readonly input: string;
  /** [C, H, W] */
  readonly image: readonly number[];
}

// Flatten nodes over more than one pixel whose only readers are linear layers, by output name.
function flattenedImages(
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
): Map<string, FlattenedImage> {
  const images = new Map<string, FlattenedImage>();
  const readers = consumers(graph);
  const outputs = outputNames(graph);
  for (const node of graph.nodes) {
    const shape = shapes.get(node.inputs[0] ?? "") ?? [];
    if (node.opType !== "Flatten" || shape.length !== 4 || shape[2]! * shape[3]! === 1) continue;
    if (shapes.get(node.outputs[0]!)![0] !== shape[0]) continue;
    const output = node.outputs[0]!;
    const linear = (readers.get(output) ?? []).every((reader) =>
      reader.opType === "Gemm" && reader.inputs[0] === output
    );
    if (!linear || outputs.has(output)) {
      throw new UnsupportedError(
        node.opType,
        node.name,
        `the flattened image [${shape.join(", ")}] may be read by Gemm nodes only`,
      );
    }
    images.set(output, { input: node.inputs[0]!, image: shape.slice(1) });
  }
  return images;
}

function convNode(node: Node, context: LastContext, layouts: Map<string, WeightLayout>): Node {
  const shape = context.shapes.get(node.inputs[0]!)!;
  const weight = context.constant(node.inputs[1]!);
  if (shape.length !== 4) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      `the input is [${shape.join(", ")}], expected an image [N, C, H, W]`,
    );
  }
  if (weight === undefined) throw notConstant(node, node.inputs[1]!);
  const group = numberAttribute(node, "group", 1);
  placeWeight(node, context, layouts, convLayout(weight.shape, group));
  const rewritten = CHANNELS_LAST_RULES.Conv(node, context);
  return { ...rewritten, attributes: { ...rewritten.attributes, group } };
}

function gemmNode(
  node: Node,
  context: LastContext,
  images: ReadonlyMap<string, FlattenedImage>,
  layouts: Map<string, WeightLayout>,
): Node {
  const weight = context.constant(node.inputs[1]!);
  if (weight === undefined) throw notConstant(node, node.inputs[1]!);
  const bias = node.inputs[2] ?? "";
  const plain = numberAttribute(node, "transA", 0) === 0 &&
    numberAttribute(node, "transB", 0) === 1 && numberAttribute(node, "alpha", 1) === 1 &&
    numberAttribute(node, "beta", 1) === 1;
  if (!plain || (bias !== "" && context.constant(bias)?.shape.join() !== `${weight.shape[0]}`)) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      "it is not x W^T + b with constant W [O, I] and b [O]; simplify the graph first",
    );
  }
  const flattened = images.get(node.inputs[0]!);
  if (flattened === undefined) {
    placeWeight(node, context, layouts, linearLayout(weight.shape));
    return { ...node, attributes: { transB: 1 } };
  }
  placeWeight(node, context, layouts, flattenedLayout(weight.shape, flattened.image));
  const [, height, width] = flattened.image;
  return {
    ...node,
    opType: "Conv",
    inputs: node.inputs.with(0, flattened.input),
    attributes: {
      kernel_shape: [height!, width!],
      strides: [1, 1],
      dilations: [1, 1],
      pads: [0, 0, 0, 0],
      group: 1,
    },
  };
}

function lstmNode(
  node: Node,
  context: LastContext,
  layouts: Map<string, WeightLayout>,
): Node {
  const weight = context.constant(node.inputs[1]!);
  if (weight?.shape.length !== 2) {
    throw new UnsupportedError(node.opType, node.name, "simplify the graph first");
  }
  placeWeight(node, context, layouts, linearLayout(weight.shape));
  return { ...node, attributes: { direction: directionOf(node) } };
}

function otherNode(node: Node, context: LastContext): Node {
  if (!Object.hasOwn(CHANNELS_LAST_RULES, node.opType)) {
    throw new UnsupportedError(node.opType, node.name, "it has no channels-last form");
  }
  const rewrite = CHANNELS_LAST_RULES[node.opType as keyof typeof CHANNELS_LAST_RULES];
  return rewrite(node, context);
}

// Stores the weight in its final layout. Layers may share a weight if they want it in one layout.
function placeWeight(
  node: Node,
  context: LastContext,
  layouts: Map<string, WeightLayout>,
  layout: WeightLayout,
): void {
  const name = node.inputs[1]!;
  const other = layouts.get(name);
  if (other !== undefined && other.finalShape.join() !== layout.finalShape.join()) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      `weight "${name}" is shared with a layer that needs it as [${other.finalShape.join(", ")}]`,
    );
  }
  layouts.set(name, layout);
  context.initializers.set(name, toChannelsLastLayout(context.constant(name)!, layout));
}

function lastShapes(
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
  initializers: ReadonlyMap<string, NdArray>,
  images: ReadonlyMap<string, FlattenedImage>,
): Map<string, readonly number[]> {
  const result = new Map<string, readonly number[]>();
  for (const [name, shape] of shapes) {
    if (!graph.initializers.has(name) && !images.has(name)) {
      result.set(name, channelsLastShape(shape));
    }
  }
  for (const [name, array] of initializers) result.set(name, array.shape);
  return result;
}

function valueInfo(info: ValueInfo): ValueInfo {
  return { name: info.name, dtype: "float32", shape: channelsLastShape(info.shape) };
}

function notConstant(node: Node, name: string): UnsupportedError {
  return new UnsupportedError(node.opType, node.name, `its weight "${name}" is not a constant`);
}
