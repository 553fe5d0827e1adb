// Folds batch normalization in inference form into the convolution or linear layer before it (Jacob et al. 2018,
// section 3.2): w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta.
import { ndArray, sizeOf } from "../core/nd_array.ts";
import { numbersOf } from "./arguments.ts";
import { numberAttribute } from "./attributes.ts";
import type { Graph, Node } from "./graph.ts";
import { isLinear } from "./layer_kinds.ts";
import {
  finishEdit,
  type GraphEdit,
  rewriteInitializer,
  startEdit,
  uniqueName,
} from "./rewrite.ts";
import { consumers, outputNames } from "./topology.ts";

/** A layer and the batch normalization that can be folded into it. */
export interface BatchNormFold {
  /** Conv or Gemm. */
  readonly layer: Node;
  /** BatchNormalization, the layer's only reader. */
  readonly batchNorm: Node;
}

/**
 * Finds every batch normalization that is the only reader of a convolution or linear layer with constant weights.
 *
 * @param graph the network, simplified
 * @returns the pairs, in node order
 */
export function findBatchNormFolds(graph: Graph): BatchNormFold[] {
  const readers = consumers(graph);
  const outputs = outputNames(graph);
  const folds: BatchNormFold[] = [];
  for (const layer of graph.nodes) {
    const output = layer.outputs[0]!;
    const [batchNorm, ...others] = readers.get(output) ?? [];
    if (batchNorm?.opType !== "BatchNormalization" || others.length > 0) continue;
    if (batchNorm.inputs[0] !== output || outputs.has(output)) continue;
    if (!isFoldable(graph, layer) || !isConstant(graph, batchNorm.inputs.slice(1))) continue;
    folds.push({ layer, batchNorm });
  }
  return folds;
}

/**
 * Folds all that {@linkcode findBatchNormFolds} finds. The layer makes the tensor the batch normalization made; its
 * weight and bias keep their names unless another node reads them too, and a new bias is called `<layer>.bias` after
 * the weight `<layer>.weight`. Other batch normalizations stay.
 *
 * @param graph the network, simplified
 * @param options.except names of layers whose batch normalization stays
 * @returns the new network
 */
export function foldBatchNorm(
  graph: Graph,
  { except }: { readonly except?: { has(layer: string): boolean } } = {},
): Graph {
  const edit = startEdit(graph);
  const positions = new Map(graph.nodes.map((node, i) => [node, i]));
  const gone = new Set<Node>();
  for (const { layer, batchNorm } of findBatchNormFolds(graph)) {
    if (except?.has(layer.name)) continue;
    edit.nodes[positions.get(layer)!] = foldPair(graph, edit, layer, batchNorm);
    gone.add(batchNorm);
  }
  edit.nodes = edit.nodes.filter((node) => !gone.has(node));
  return finishEdit(graph, edit);
}

/**
 * The affine map that a batch normalization is in inference: y = scale * x + shift for each channel.
 *
 * @param graph the network that holds its constants
 * @param node the BatchNormalization
 * @returns scale = gamma / sqrt(variance + epsilon) and shift = beta - mean * scale
 * @throws RangeError when a parameter is not a constant
 */
export function batchNormAffine(
  graph: Graph,
  node: Node,
): { scale: Float64Array<ArrayBuffer>; shift: Float64Array<ArrayBuffer> } {
  const [gamma, beta, mean, variance] = [1, 2, 3, 4].map((index) => {
    const array = graph.initializers.get(node.inputs[index] ?? "");
    if (array !== undefined) return numbersOf(array);
    throw new RangeError(
      `node "${node.name}" (BatchNormalization): input "${node.inputs[index]}" is not a constant`,
    );
  });
  const epsilon = numberAttribute(node, "epsilon", 1e-5);
  const scale = Float64Array.from(gamma!, (g, c) => g / Math.sqrt(variance![c]! + epsilon));
  const shift = Float64Array.from(beta!, (b, c) => b - mean![c]! * scale[c]!);
  return { scale, shift };
}

function foldPair(graph: Graph, edit: GraphEdit, layer: Node, batchNorm: Node): Node {
  const { scale, shift } = batchNormAffine(graph, batchNorm);
  const [x, w, b] = layer.inputs;
  const weight = graph.initializers.get(w!)!;
  const axis = outputAxis(layer);
  const inner = sizeOf(weight.shape.slice(axis + 1));
  const channels = scale.length;
  // Products in float64, rounded once.
  const newWeight = Float32Array.from(
    numbersOf(weight),
    (value, i) => value * scale[Math.floor(i / inner) % channels]!,
  );
  const bias = b === undefined || b === "" ? undefined : numbersOf(graph.initializers.get(b)!);
  const newBias = Float32Array.from(shift, (s, c) => (bias?.[c] ?? 0) * scale[c]! + s);

  const inputs = [
    x!,
    rewriteInitializer(graph, edit, w!, ndArray("float32", weight.shape, newWeight)),
  ];
  const biasArray = ndArray("float32", [channels], newBias);
  if (bias !== undefined) {
    inputs.push(rewriteInitializer(graph, edit, b!, biasArray));
  } else {
    const name = uniqueName(graph, edit, biasName(inputs[1]!));
    edit.initializers.set(name, biasArray);
    inputs.push(name);
  }
  return { ...layer, inputs, outputs: batchNorm.outputs };
}

function isFoldable(graph: Graph, layer: Node): boolean {
  if (!isLinear(layer)) return false;
  const [, w, b] = layer.inputs;
  if (!isConstant(graph, [w!, ...(b === undefined || b === "" ? [] : [b])])) return false;
  if (layer.opType === "Conv") return true;
  const plain = numberAttribute(layer, "alpha", 1) === 1 && numberAttribute(layer, "beta", 1) === 1;
  const channels = graph.initializers.get(w!)!.shape[outputAxis(layer)];
  const bias = b === undefined ? undefined : graph.initializers.get(b);
  return plain && (bias === undefined || bias.shape.join() === `${channels}`);
}

function isConstant(graph: Graph, names: readonly string[]): boolean {
  return names.every((name) => graph.initializers.has(name));
}

// Output channels run along axis 0 of [O, I, ...]; a Gemm with transB = 0 has [I, O].
function outputAxis(layer: Node): number {
  return layer.opType === "Gemm" && numberAttribute(layer, "transB", 0) === 0 ? 1 : 0;
}

/** Name of the bias that a layer without one gets. */
export function biasName(weightName: string): string {
  const stem = weightName.replace(/[._]?weight$/, "");
  if (stem === weightName || stem === "") return `${weightName}_bias`;
  return `${stem}${weightName[stem.length] === "_" ? "_" : "."}bias`;
}
