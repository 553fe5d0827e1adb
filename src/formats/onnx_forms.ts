// The forms that simplify makes of an ONNX network and that ONNX does not have, back into ONNX:
//   Gemm of x with more than two axes -> MatMul by the weight [I, O], Add of the bias
//   LSTM of graph/lstm.ts -> Transpose, LSTM with the steps first, Squeeze, Transpose
// Integer weights follow their float ones. Layers that take the range of their input at run time keep their form here;
// onnx_dynamic.ts writes them.
import { type NdArray, ndArray, transpose, TYPED_ARRAYS } from "../core/nd_array.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { directionOf } from "../graph/lstm.ts";
import { type QTensor, type QuantizedGraph, scaleShape } from "../graph/quantized_graph.ts";
import { GraphWriter } from "./graph_writer.ts";

/**
 * Writes a network's nodes as ONNX has them.
 *
 * @param model float or quantized network
 * @returns the network itself when all of its nodes are ONNX's already
 */
export function toOnnxForms(model: QuantizedGraph): QuantizedGraph {
  const { graph, dynamicLayers } = model;
  const foreign = foreignNodes(graph);
  for (const node of foreign) if (dynamicLayers?.has(node.name)) foreign.delete(node);
  if (foreign.size === 0) return model;
  const writer = new FormWriter(model);
  for (const node of graph.nodes) {
    if (!foreign.has(node)) writer.nodes.push(node);
    else if (node.opType === "LSTM") writer.lstm(node);
    else writer.gemm(node);
  }
  return {
    ...model,
    graph: { ...graph, nodes: writer.nodes, initializers: writer.initializers },
    weights: writer.weights,
  };
}

/**
 * Writes what stands around an LSTM whose samples come first.
 *
 * @param writer where it goes
 * @param x [N, T, I], to be read
 * @param y [N, T, H], to be made
 * @param write writes the LSTM from sequences [T, N, I] to states [T, 1, N, H], both by name
 */
export function writeStepsFirst(
  writer: GraphWriter,
  x: string,
  y: string,
  write: (steps: string, states: string) => void,
): void {
  const steps = writer.unique(`${y}_inputs`), states = writer.unique(`${y}_states`);
  const squeezed = writer.unique(`${y}_steps`);
  writer.node("Transpose", steps, [x], [steps], { perm: SWAP });
  write(steps, states);
  // Axes are an attribute before opset 13.
  const axis = ndArray("int64", [1], BigInt64Array.of(1n));
  const isInput = writer.opset >= 13;
  const inputs = isInput ? [states, writer.initializer(`${y}_axis`, axis)] : [states];
  writer.node("Squeeze", squeezed, inputs, [squeezed], isInput ? {} : { axes: [1] });
  writer.node("Transpose", y, [squeezed], [y], { perm: SWAP });
}

/**
 * Some columns of a matrix.
 *
 * @param array [rows, columns]
 * @param start the first of them
 * @param end behind the last of them
 * @returns [1, rows, end - start], as ONNX wants the weights of one direction
 */
export function columnsOf<T extends "float32" | "int8" | "uint8">(
  array: NdArray<T>,
  start: number,
  end: number,
): NdArray<T> {
  const [rows = 1, columns = 1] = array.shape;
  const width = end - start;
  const data = new TYPED_ARRAYS[array.dtype](rows * width) as NdArray<T>["data"];
  for (let row = 0; row < rows; row++) {
    data.set(array.data.subarray(row * columns + start, row * columns + end) as never, row * width);
  }
  return ndArray(array.dtype, [1, rows, width], data);
}

/** The bias of an LSTM as ONNX wants it, [1, 8H]: it adds two. */
export function bothBiases(bias: NdArray): NdArray<"float32"> {
  const data = new Float32Array(2 * bias.data.length);
  data.set(bias.data as Float32Array);
  return ndArray("float32", [1, data.length], data);
}

/** Samples and steps change places. */
const SWAP = [1, 0, 2];

/** Nodes that ONNX has no such form of. */
function foreignNodes(graph: Graph): Set<Node> {
  return new Set(
    graph.nodes.filter(({ opType, inputs: [, w = ""], attributes }) =>
      opType === "Gemm" && attributes.rank !== undefined ||
      opType === "LSTM" && graph.initializers.get(w)?.shape.length === 2
    ),
  );
}

class FormWriter extends GraphWriter {
  readonly weights: Map<string, QTensor>;

  constructor({ graph, weights }: QuantizedGraph) {
    super(graph);
    for (const [name, array] of graph.initializers) this.initializers.set(name, array);
    this.weights = new Map(weights);
  }

  gemm(node: Node): void {
    const [x, w, b = ""] = node.inputs as [string, string, string?];
    const [y] = node.outputs as [string];
    const weight = this.#weight(
      w,
      `${w}_transposed`,
      (array) => transpose(array, [1, 0]),
      (tensor) => ({
        ...transposedScales(tensor),
        ...(tensor.axis >= 0 && { axis: 1 - tensor.axis }),
      }),
    );
    const product = b === "" ? y : this.unique(`${y}_product`);
    this.nodes.push({
      ...node,
      opType: "MatMul",
      inputs: [x, weight],
      outputs: [product],
      attributes: {},
    });
    if (b !== "") this.node("Add", y, [product, b], [y]);
  }

  lstm(node: Node): void {
    const [x, w, b = ""] = node.inputs as [string, string, string?];
    const [y] = node.outputs as [string];
    const [rows = 1, columns = 1] = this.initializers.get(w)!.shape;
    const hidden = rows / 4;
    const part = (name: string, start: number, end: number) =>
      this.#weight(
        w,
        name,
        (array) => columnsOf(array, start, end),
        (tensor) => ({ ...tensor, ...(tensor.axis >= 0 && { axis: 1 }) }),
      );
    const inputs = [
      part(`${w}_input`, 0, columns - hidden),
      part(`${w}_recurrent`, columns - hidden, columns),
    ];
    if (b !== "") inputs.push(this.initializer(`${b}_both`, bothBiases(this.initializers.get(b)!)));
    writeStepsFirst(this, x, y, (steps, states) =>
      this.nodes.push({
        ...node,
        inputs: [steps, ...inputs],
        outputs: [states],
        attributes: { direction: directionOf(node), hidden_size: hidden },
      }));
  }

  /** Another form of a weight, and of its integers: `form` of the elements, `scales` of the rest. */
  #weight(
    name: string,
    wish: string,
    form: <T extends "float32" | "int8">(array: NdArray<T>) => NdArray<T>,
    scales: (tensor: QTensor) => QTensor,
  ): string {
    // Weights of layers are float32, and their codes int8.
    const made = this.initializer(wish, form(this.initializers.get(name) as NdArray<"float32">));
    const tensor = this.weights.get(name);
    if (tensor) {
      const values = form(tensor.values as NdArray<"int8">);
      this.weights.set(made, { ...scales(tensor), values });
    }
    return made;
  }
}

/** Scales of a transposed matrix; only those of blocks have two axes. */
function transposedScales(tensor: QTensor): QTensor {
  if (tensor.blockSize === undefined) return tensor;
  const shape = scaleShape(tensor.values.shape, tensor);
  const scale = transpose(ndArray("float32", shape, tensor.scale), [1, 0]).data;
  return { ...tensor, scale };
}
