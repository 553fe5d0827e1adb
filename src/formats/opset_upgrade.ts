// Rewrites a graph of opset 7 to 12 as opset 13, which per-axis QDQ needs, and one of opset 13 to 20 as 21, which INT4
// and blocked QDQ need. The rules are the version notes of onnx/docs/Changelog.md: most operators only gained types; the
// ones below moved attributes to inputs or changed meaning.
import { UnsupportedError } from "../core/errors.ts";
import { type NdArray, ndArray } from "../core/nd_array.ts";
import type { Attribute, Graph, Node } from "../graph/graph.ts";
import { tensorNames, UniqueNames } from "./unique_names.ts";

/**
 * Raises the opset of a graph.
 *
 * @param graph opset 7 or later
 * @param opset what it is to have at least
 * @returns the graph itself when its opset is high enough, else a graph that computes the same
 * @throws UnsupportedError naming the node of an operator that has no rule here
 */
export function upgradeOpset(graph: Graph, opset: 13 | 21): Graph {
  const at13 = raise(graph, 13, UPGRADES, UNCHANGED);
  return opset === 13 ? at13 : raise(at13, 21, LATER_UPGRADES, LATER_UNCHANGED);
}

function raise(
  graph: Graph,
  opset: number,
  upgrades: ReadonlyMap<string, Upgrade>,
  unchanged: ReadonlySet<string>,
): Graph {
  if (graph.opset >= opset) return graph;
  const initializers = new Map(graph.initializers);
  const names = new UniqueNames(tensorNames(graph));
  const nodeNames = new UniqueNames(graph.nodes.map((node) => node.name));
  const addConstant = (wish: string, array: NdArray): string => {
    const name = names.reserve(wish);
    initializers.set(name, array);
    return name;
  };
  const nodes = graph.nodes.flatMap((node): Node[] => {
    const upgrade = upgrades.get(node.opType);
    if (upgrade === undefined && unchanged.has(node.opType)) return [node];
    if (upgrade === undefined) {
      throw new UnsupportedError(
        node.opType,
        node.name,
        `cannot be raised from opset ${graph.opset} to ${opset}, convert the model to opset ${opset} first`,
      );
    }
    return upgrade(node, { opset: graph.opset, addConstant, names, nodeNames });
  });
  return { ...graph, opset, nodes, initializers };
}

interface UpgradeContext {
  /** Opset the node is written in. */
  readonly opset: number;
  readonly addConstant: (wish: string, array: NdArray) => string;
  readonly names: UniqueNames;
  readonly nodeNames: UniqueNames;
}

type Upgrade = (node: Node, context: UpgradeContext) => Node[];

const UPGRADES: ReadonlyMap<string, Upgrade> = new Map<string, Upgrade>([
  ["Clip", (node, context) => context.opset >= 11 ? [node] : [clipBounds(node, context)]],
  ["Pad", (node, context) => context.opset >= 11 ? [node] : [padInputs(node, context)]],
  [
    "Slice",
    (node, context) =>
      context.opset >= 10 ? [node] : [integersToInputs(node, ["starts", "ends", "axes"], context)],
  ],
  ["Squeeze", (node, context) => [integersToInputs(node, ["axes"], context)]],
  ["Unsqueeze", (node, context) => [integersToInputs(node, ["axes"], context)]],
  ["ReduceSum", (node, context) => [integersToInputs(node, ["axes"], context)]],
  ["Split", (node, context) => [integersToInputs(node, ["split"], context)]],
  ["Softmax", flattenedSoftmax],
  ["LogSoftmax", flattenedSoftmax],
  ["Dropout", (node) => [dropout(node)]],
  ["BatchNormalization", (node) => [batchNormalization(node)]],
]);

/** Reductions took their axes as an input from opset 18 on, ReduceSum already from 13. */
const reduction: Upgrade = (node, context) =>
  context.opset >= 18 ? [node] : [integersToInputs(node, ["axes"], context)];

/** From 13 to 21. */
const LATER_UPGRADES: ReadonlyMap<string, Upgrade> = new Map<string, Upgrade>([
  ["ReduceMax", reduction],
  ["ReduceMean", reduction],
  ["ReduceMin", reduction],
  ["Split", (node) => [equalParts(node)]],
]);

/** Split-18 wants to be told the number of parts where their sizes are not given. */
function equalParts(node: Node): Node {
  const isTold = (node.inputs[1] ?? "") !== "" || node.attributes["num_outputs"] !== undefined;
  if (isTold) return node;
  return { ...node, attributes: { ...node.attributes, num_outputs: node.outputs.length } };
}

/** Attributes that became int64 inputs, in input order; an absent one stays absent. */
function integersToInputs(
  node: Node,
  attributes: readonly string[],
  { addConstant }: UpgradeContext,
): Node {
  const inputs = [...node.inputs];
  for (const name of attributes) {
    const values = node.attributes[name];
    if (values === undefined) continue;
    // The schema of these attributes is a list of integers.
    const data = BigInt64Array.from(values as readonly number[], BigInt);
    inputs.push(addConstant(`${node.name}_${name}`, ndArray("int64", [data.length], data)));
  }
  return { ...node, inputs, attributes: without(node.attributes, attributes) };
}

/** Clip-6 min and max become the scalar inputs of Clip-11. */
function clipBounds(node: Node, { addConstant }: UpgradeContext): Node {
  const bounds = ["min", "max"].map((name) => {
    const bound = node.attributes[name];
    return typeof bound === "number"
      ? addConstant(`${node.name}_${name}`, ndArray("float32", [], Float32Array.of(bound)))
      : "";
  });
  return {
    ...node,
    inputs: [...node.inputs, ...bounds],
    attributes: without(node.attributes, ["min", "max"]),
  };
}

/** Pad-2 pads and value become the inputs of Pad-11. */
function padInputs(node: Node, context: UpgradeContext): Node {
  const padded = integersToInputs(node, ["pads"], context);
  const value = node.attributes["value"];
  const inputs = typeof value === "number"
    ? [
      ...padded.inputs,
      context.addConstant(`${node.name}_value`, ndArray("float32", [], Float32Array.of(value))),
    ]
    : padded.inputs;
  return { ...padded, inputs, attributes: without(padded.attributes, ["value"]) };
}

/** Softmax-1/11 flattens to [axes before `axis`, the rest] and normalizes rows; Softmax-13 one axis only. */
function flattenedSoftmax(node: Node, { names, nodeNames }: UpgradeContext): Node[] {
  const axis = node.attributes["axis"] ?? 1;
  if (axis === -1) return [node];
  const [input, output] = [node.inputs[0] ?? "", node.outputs[0] ?? ""];
  const shape = names.reserve(`${output}_shape`);
  const rows = names.reserve(`${output}_rows`);
  const normalized = names.reserve(`${output}_normalized`);
  const part = (opType: string, inputs: string[], result: string, attributes = {}): Node => ({
    name: nodeNames.reserve(`${node.name}_${opType}`),
    opType,
    inputs,
    outputs: [result],
    attributes,
  });
  return [
    part("Shape", [input], shape),
    part("Flatten", [input], rows, { axis }),
    { ...node, inputs: [rows], outputs: [normalized], attributes: { axis: -1 } },
    part("Reshape", [normalized, shape], output),
  ];
}

/** Outside training Dropout is the identity whatever its ratio. */
function dropout(node: Node): Node {
  if (node.outputs.length > 1 && node.outputs[1] !== "") {
    throw new UnsupportedError(
      "Dropout",
      node.name,
      "the mask output is used, expected one output",
    );
  }
  return { ...node, inputs: node.inputs.slice(0, 1), attributes: {} };
}

/** BatchNormalization-7 had `spatial`; later versions always are. */
function batchNormalization(node: Node): Node {
  if (node.attributes["spatial"] === 0) {
    throw new UnsupportedError("BatchNormalization", node.name, "spatial is 0, expected 1");
  }
  return { ...node, attributes: without(node.attributes, ["spatial"]) };
}

function without(
  attributes: Readonly<Record<string, Attribute>>,
  names: readonly string[],
): Record<string, Attribute> {
  return Object.fromEntries(Object.entries(attributes).filter(([name]) => !names.includes(name)));
}

/** Operators whose versions 7 to 13 mean the same for the same attributes. */
const UNCHANGED: ReadonlySet<string> = new Set(
  ("Abs Add And ArgMax ArgMin AveragePool Cast Ceil Concat ConstantOfShape Conv ConvTranspose Cos " +
    "DepthToSpace DequantizeLinear Div Elu Equal Erf Exp Expand Flatten Floor GRU Gather Gemm " +
    "GlobalAveragePool GlobalMaxPool Greater HardSigmoid Identity InstanceNormalization LRN LSTM " +
    "LeakyRelu Less Log LpNormalization MatMul Max MaxPool Mean Min Mul Neg Not Or PRelu Pow " +
    "QuantizeLinear RNN Reciprocal ReduceMax ReduceMean ReduceMin Relu Reshape Selu Shape Sigmoid " +
    "Sin Softplus Softsign SpaceToDepth Sqrt Sub Sum Tanh ThresholdedRelu Tile Transpose Where Xor")
    .split(" "),
);

/** Operators whose versions 13 to 21 mean the same: those above, what 13 already settled, and the newer ones. */
const LATER_UNCHANGED: ReadonlySet<string> = new Set([
  ...UNCHANGED,
  ...("BatchNormalization Celu Clip Constant Dropout Gelu HardSwish LayerNormalization LogSoftmax Mish Pad " +
    "ReduceSum Slice Softmax Squeeze Unsqueeze").split(" "),
]);
