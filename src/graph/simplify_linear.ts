// Linear layers in one form: Gemm with y = x W^T + b, W [O, I] and b [O] initializers. Of MatMul by sequences [N, T, I] it
// is a Gemm that ONNX does not have: attribute `rank` says so.
import { type NdArray, ndArray, sizeOf, toFloat32, transpose } from "../core/nd_array.ts";
import { numberAttribute } from "./attributes.ts";
import type { Graph, Node } from "./graph.ts";
import { finishEdit, type GraphEdit, rewriteInitializer, startEdit } from "./rewrite.ts";
import { inferShapes } from "./shape_inference.ts";
import { sampleBatch } from "./simplify_constants.ts";
import { consumers, outputNames } from "./topology.ts";

/**
 * Turns MatMul of [N, I] or [N, T, I] by a constant matrix (and the Add of a constant vector after it) into Gemm, and gives every Gemm with
 * constant weights transA = 0, transB = 1 and alpha = beta = 1. Other MatMul and Gemm nodes stay as they are.
 *
 * @param graph the network
 * @returns the new network; a changed initializer keeps its name unless another node reads it too
 */
export function normalizeLinear(graph: Graph): Graph {
  const edit = startEdit(matMulToGemm(graph));
  for (const [i, node] of edit.nodes.entries()) {
    if (node.opType === "Gemm") edit.nodes[i] = normalizeGemm(graph, edit, node);
  }
  return finishEdit(graph, edit);
}

function matMulToGemm(graph: Graph): Graph {
  const shapes = inferShapes(graph, sampleBatch(graph));
  const readers = consumers(graph);
  const outputs = outputNames(graph);
  const nodes: Node[] = [];
  // Output of a MatMul that waits for its Add -> the MatMul.
  const waiting = new Map<string, Node>();
  for (const node of graph.nodes) {
    const [x, w] = node.inputs;
    if (node.opType === "MatMul" && isActivation(x!, graph, shapes) && isMatrix(graph, w!)) {
      const output = node.outputs[0]!;
      const [reader, ...more] = readers.get(output) ?? [];
      const columns = graph.initializers.get(w!)!.shape[1]!;
      const bias = reader?.opType === "Add" && more.length === 0 && !outputs.has(output) &&
        asVector(graph.initializers.get(otherInput(reader, output)), columns) !== undefined;
      if (bias) waiting.set(output, node);
      else nodes.push({ ...node, opType: "Gemm", attributes: rankOf(shapes.get(x!)!) });
      continue;
    }
    const product = node.opType === "Add"
      ? node.inputs.find((name) => waiting.has(name))
      : undefined;
    if (product === undefined) {
      nodes.push(node);
      continue;
    }
    const matMul = waiting.get(product)!;
    const inputs = [...matMul.inputs, otherInput(node, product)];
    const attributes = rankOf(shapes.get(matMul.inputs[0]!)!);
    nodes.push({ ...matMul, opType: "Gemm", inputs, outputs: node.outputs, attributes });
  }
  return { ...graph, nodes };
}

function normalizeGemm(graph: Graph, edit: GraphEdit, node: Node): Node {
  const [x, w, b] = node.inputs;
  const weight = edit.initializers.get(w!);
  if (weight === undefined || numberAttribute(node, "transA", 0) !== 0) return node;
  const transposed = numberAttribute(node, "transB", 0) === 0;
  const columns = weight.shape[transposed ? 1 : 0]!;
  const given = b === undefined || b === "" ? undefined : edit.initializers.get(b);
  const bias = asVector(given, columns);
  if (b !== undefined && b !== "" && bias === undefined) return node;

  const newWeight = scaled(
    transposed ? transpose(weight, [1, 0]) : weight,
    numberAttribute(node, "alpha", 1),
  );
  const inputs = [x!, w!];
  if (newWeight !== weight) inputs[1] = rewriteInitializer(graph, edit, w!, newWeight);
  if (bias !== undefined) {
    const newBias = scaled(bias, numberAttribute(node, "beta", 1));
    inputs.push(newBias === given ? b! : rewriteInitializer(graph, edit, b!, newBias));
  }
  const { rank } = node.attributes;
  return { ...node, inputs, attributes: { transB: 1, ...(rank !== undefined && { rank }) } };
}

/** Attribute of a Gemm that ONNX does not have. */
function rankOf(shape: readonly number[]): Node["attributes"] {
  return shape.length === 2 ? {} : { rank: shape.length };
}

/** Rank 4 is an image, whose last axis is not its channels. */
function isActivation(
  name: string,
  graph: Graph,
  shapes: ReadonlyMap<string, readonly number[]>,
): boolean {
  const rank = shapes.get(name)!.length;
  return !graph.initializers.has(name) && (rank === 2 || rank === 3);
}

function isMatrix(graph: Graph, name: string): boolean {
  return graph.initializers.get(name)?.shape.length === 2;
}

function otherInput(node: Node, name: string): string {
  return node.inputs[0] === name ? node.inputs[1]! : node.inputs[0]!;
}

// A constant as the vector [size] it adds to every row; undefined when it is not one.
function asVector(array: NdArray | undefined, size: number): NdArray | undefined {
  if (array === undefined || array.shape.length > 2) return undefined;
  if (array.shape.join() === `${size}`) return array;
  const values = toFloat32(array);
  if (values.length === 1) {
    return ndArray("float32", [size], new Float32Array(size).fill(values[0]!));
  }
  if (sizeOf(array.shape) !== size || array.shape.at(-1) !== size) return undefined;
  return ndArray("float32", [size], values);
}

function scaled(array: NdArray, factor: number): NdArray {
  if (factor === 1) return array;
  return ndArray("float32", array.shape, toFloat32(array).map((value) => value * factor));
}
