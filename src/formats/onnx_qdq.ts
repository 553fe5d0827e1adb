// QuantizedGraph -> Graph with QuantizeLinear / DequantizeLinear (ONNX opset 13, per-axis scales). The float operators
// stay; integer weights and biases are dequantized into the tensors they were, and every quantized activation passes a
// Q/DQ pair after its producer:
//   conv.weight_quantized (int8), _scale, _zero_point -> DequantizeLinear -> conv.weight -> Conv -> relu1
//   relu1 -> [Clip] -> QuantizeLinear -> relu1_quantized -> DequantizeLinear -> relu1_dequantized -> consumers
// Codes that count thresholds come from GreaterOrEqual and ReduceSum instead of QuantizeLinear.
// Where all activations stay float nothing computes on int8, so codes of at most 4 bits are stored as INT4. Layers whose
// input takes its range at run time are written by onnx_dynamic.ts.
import { ndArray, sizeOf } from "../core/nd_array.ts";
import type { Graph, Node } from "../graph/graph.ts";
import {
  type ActivationQParams,
  areThresholds,
  type QTensor,
  type QuantizedGraph,
  scaleIndices,
  scaleShape,
} from "../graph/quantized_graph.ts";
import { DynamicLayers } from "./onnx_dynamic.ts";
import { GraphWriter } from "./graph_writer.ts";
import { toOnnxForms } from "./onnx_forms.ts";

/** The first opset with per-axis DequantizeLinear, and the first with INT4 and scales of blocks. */
const QDQ_OPSET = 13, INT4_OPSET = 21;

/** TensorProto.DataType, as Cast names its results. */
const UINT8 = 2, INT8 = 3, INT32 = 6;

/** Bits of a code that INT4 can hold. */
const INT4_BITS = 4;

/** A graph with integers. */
export interface QdqGraph extends Graph {
  /** Names of the int8 initializers that are stored as INT4. */
  readonly int4: ReadonlySet<string>;
}

/**
 * The opset that a quantized network is written in, at least.
 *
 * @param model a frozen student
 * @returns 13, or 21 where weights have few bits and activations none, or scales are those of blocks
 */
export function qdqOpset(model: QuantizedGraph): 13 | 21 {
  const weights = [...model.weights.values()];
  const needsLater = weights.some((weight) =>
    weight.blockSize !== undefined || isInt4(weight, model)
  );
  return needsLater ? INT4_OPSET : QDQ_OPSET;
}

/**
 * Writes the quantizers of a network into its graph.
 *
 * @param quantized a frozen student whose graph has the opset of {@linkcode qdqOpset} or a later one
 * @returns the same network with integer initializers and Q/DQ nodes; initializers nothing reads any more are gone
 * @throws RangeError when a quantizer names a tensor the graph does not have or its numbers contradict each other
 */
export function insertQdq(quantized: QuantizedGraph): QdqGraph {
  const model = toOnnxForms(quantized);
  const { graph, activations } = model;
  const writer = new QdqWriter(graph);
  const constants = new Map([...model.weights, ...model.biases]);
  for (const name of model.dynamicLayers ?? []) {
    if (!graph.nodes.some((node) => node.name === name)) {
      throw new RangeError(`Cannot quantize the input of "${name}": the graph has no such node`);
    }
  }
  for (const [name, tensor] of constants) checkQTensor(name, tensor, graph);
  const makers = new Set([
    ...graph.inputs.map((input) => input.name),
    ...graph.nodes.flatMap((node) => node.outputs),
  ]);
  for (const [name, qparams] of activations) {
    if (!makers.has(name)) throw new RangeError(`Cannot quantize "${name}": no such activation`);
    checkActivation(name, qparams);
  }

  const outputs = new Set(graph.outputs.map((output) => output.name));
  /** What the consumers of a quantized activation read. */
  const dequantized = new Map<string, string>();
  for (const { name } of graph.inputs) {
    const qparams = activations.get(name);
    if (qparams === undefined) continue;
    dequantized.set(name, writer.unique(`${name}_dequantized`));
    writer.activation(name, name, dequantized.get(name)!, qparams);
  }
  const written = new Set<string>();
  const dynamic = new DynamicLayers(writer);
  for (const node of graph.nodes) {
    const isDynamic = model.dynamicLayers?.has(node.name) ?? false;
    for (const input of node.inputs) {
      const tensor = constants.get(input);
      if (tensor === undefined || written.has(input) || isDynamic) continue;
      if (isInt4(tensor, model)) writer.constantInt4(input, tensor);
      else writer.constant(input, tensor);
      written.add(input);
    }
    // A quantized graph output keeps its name for the dequantized value; what the node makes gets a new one.
    const renamed = node.outputs.map((output) =>
      activations.has(output) && outputs.has(output) ? writer.unique(`${output}_float`) : output
    );
    const inputs = node.inputs.map((input) => dequantized.get(input) ?? input);
    const made = { ...node, inputs, outputs: renamed };
    const bias = graph.initializers.get(node.inputs[2] ?? "");
    if (isDynamic) dynamic.write(made, quantizedWeight(model, node), bias);
    else writer.nodes.push(made);
    for (const [i, output] of node.outputs.entries()) {
      const qparams = activations.get(output);
      if (qparams === undefined) continue;
      const result = outputs.has(output) ? output : writer.unique(`${output}_dequantized`);
      dequantized.set(output, result);
      writer.activation(output, renamed[i]!, result, qparams);
    }
  }
  const read = new Set([...writer.nodes.flatMap((node) => node.inputs), ...outputs]);
  const kept = [...graph.initializers, ...writer.initializers]
    .filter(([name]) => read.has(name) && !written.has(name));
  return { ...graph, nodes: writer.nodes, initializers: new Map(kept), int4: writer.int4 };
}

/** Appends constants and quantizers. */
class QdqWriter extends GraphWriter {
  readonly int4 = new Set<string>();

  /** Integer initializer and the DequantizeLinear that gives the tensor `name`; returns the names of its inputs. */
  constant(name: string, tensor: QTensor): string[] {
    const { values, scale, zeroPoint, axis, blockSize } = tensor;
    const shape = scaleShape(values.shape, tensor);
    const inputs = [
      this.initializer(`${name}_quantized`, values),
      this.initializer(`${name}_scale`, ndArray("float32", shape, scale)),
    ];
    // int32 has no zero point other than 0, and runtimes expect none.
    if (values.dtype === "int8") {
      inputs.push(
        this.initializer(`${name}_zero_point`, ndArray("int8", shape, Int8Array.from(zeroPoint))),
      );
    }
    this.node("DequantizeLinear", name, inputs, [name], {
      ...(axis >= 0 && { axis }),
      ...(blockSize !== undefined && { block_size: blockSize }),
    });
    return inputs;
  }

  /** As {@linkcode constant}, in half the bytes. */
  constantInt4(name: string, tensor: QTensor): void {
    const inputs = this.constant(name, asInt4(tensor));
    for (const array of [inputs[0]!, inputs[2]!]) this.int4.add(array);
  }

  /** Q/DQ pair that turns `from` into `to`; the new tensors are named after `name`. */
  activation(name: string, from: string, to: string, qparams: ActivationQParams): void {
    const { scale, zeroPoint, quantMin, quantMax, thresholds } = qparams;
    if (thresholds) return this.#thresholds(name, from, to, { ...qparams, thresholds });
    const [lowest, highest] = storageRange(qparams);
    let source = from;
    if (quantMin !== lowest || quantMax !== highest) {
      // QuantizeLinear saturates only at the ends of its type; narrower grids are cut before it. The bound divided by
      // the scale is within 2^-23 of the integer, so it rounds to quantMin or quantMax exactly.
      const min = Float32Array.of((quantMin - zeroPoint) * scale);
      const max = Float32Array.of((quantMax - zeroPoint) * scale);
      const bounds = [
        this.initializer(`${name}_min`, ndArray("float32", [], min)),
        this.initializer(`${name}_max`, ndArray("float32", [], max)),
      ];
      source = this.unique(`${name}_clipped`);
      this.node("Clip", name, [from, ...bounds], [source]);
    }
    const parameters = this.#grid(name, scale, zeroPoint, lowest);
    const quantized = this.unique(`${name}_quantized`);
    this.node("QuantizeLinear", name, [source, ...parameters], [quantized]);
    this.node("DequantizeLinear", name, [quantized, ...parameters], [to]);
  }

  /** Codes that count thresholds, and their DequantizeLinear. ReduceSum has no 8-bit integers. */
  #thresholds(
    name: string,
    from: string,
    to: string,
    qparams: ActivationQParams & { readonly thresholds: Float32Array<ArrayBuffer> },
  ): void {
    const { scale, zeroPoint, quantMin, thresholds } = qparams;
    const [lowest] = storageRange(qparams);
    const axis = this.initializer(`${name}_axis`, ndArray("int64", [1], BigInt64Array.of(-1n)));
    const limits = this.initializer(
      `${name}_thresholds`,
      ndArray("float32", [thresholds.length], thresholds),
    );
    const step = (opType: string, inputs: readonly string[], suffix: string, attributes = {}) => {
      const result = this.unique(`${name}_${suffix}`);
      this.node(opType, name, inputs, [result], attributes);
      return result;
    };
    const column = step("Unsqueeze", [from, axis], "column");
    const reached = step("GreaterOrEqual", [column, limits], "reached");
    const ones = step("Cast", [reached], "ones", { to: INT32 });
    let code = step("ReduceSum", [ones, axis], "count", { keepdims: 0 });
    if (quantMin !== 0) {
      const offset = ndArray("int32", [], Int32Array.of(quantMin));
      code = step("Add", [code, this.initializer(`${name}_lowest`, offset)], "code");
    }
    const quantized = step("Cast", [code], "quantized", { to: lowest === 0 ? UINT8 : INT8 });
    const parameters = this.#grid(name, scale, zeroPoint, lowest);
    this.node("DequantizeLinear", name, [quantized, ...parameters], [to]);
  }

  /** Names of scale and zero point, which is stored as what its codes are. */
  #grid(name: string, scale: number, zeroPoint: number, lowest: number): string[] {
    const zero = lowest === 0
      ? ndArray("uint8", [], Uint8Array.of(zeroPoint))
      : ndArray("int8", [], Int8Array.of(zeroPoint));
    return [
      this.initializer(`${name}_scale`, ndArray("float32", [], Float32Array.of(scale))),
      this.initializer(`${name}_zero_point`, zero),
    ];
  }
}

/** The integers of a layer whose input takes its range at run time. */
function quantizedWeight({ weights }: QuantizedGraph, { name, inputs }: Node): QTensor {
  const weight = weights.get(inputs[1] ?? "");
  if (weight !== undefined) return weight;
  throw new RangeError(
    `Cannot quantize the input of "${name}" at run time: its weights are not quantized`,
  );
}

/** Whether a weight is stored as INT4. */
function isInt4(tensor: QTensor, { activations, dynamicLayers }: QuantizedGraph): boolean {
  if (activations.size > 0 || (dynamicLayers?.size ?? 0) > 0) return false;
  if (tensor.values.dtype !== "int8" || tensor.bits > INT4_BITS) return false;
  const { low, high } = extremes(tensor);
  // DoReFa's codes are the odd ones of twice the range.
  return low.every((lowest, c) => high[c]! - lowest < 2 ** INT4_BITS);
}

/** The same values with codes from -8 to 7: those of mirrored and offset grids are moved by the zero point. */
function asInt4(tensor: QTensor): QTensor {
  const { values } = tensor;
  const { indices, low, high } = extremes(tensor);
  const zeroPoint = low.map((lowest, c) => Math.min(7 - high[c]!, 0) + Math.max(-8 - lowest, 0));
  const codes = Int8Array.from(values.data, (code, i) => code + zeroPoint[indices[i]!]!);
  return { ...tensor, values: ndArray("int8", values.shape, codes), zeroPoint };
}

/** Lowest and highest code of each scale, 0 among them, and which scale a code has. */
function extremes(
  tensor: QTensor,
): Record<"indices" | "low" | "high", Int32Array> {
  const { values, scale } = tensor;
  const indices = scaleIndices(values.shape, tensor);
  const low = new Int32Array(scale.length), high = new Int32Array(scale.length);
  values.data.forEach((code, i) => {
    const c = indices[i]!;
    low[c] = Math.min(low[c]!, code);
    high[c] = Math.max(high[c]!, code);
  });
  return { indices, low, high };
}

/** Lowest and highest code of the type an activation is stored in. */
function storageRange({ quantMin }: ActivationQParams): readonly [number, number] {
  return quantMin >= 0 ? [0, 255] : [-128, 127];
}

function checkActivation(name: string, qparams: ActivationQParams): void {
  const { scale, zeroPoint, quantMin, quantMax, thresholds } = qparams;
  const [lowest, highest] = storageRange(qparams);
  if (thresholds && !areThresholds(thresholds, quantMax - quantMin)) {
    throw new RangeError(
      `Cannot quantize "${name}": thresholds ${thresholds.join(", ")}, expected ` +
        `${quantMax - quantMin} finite numbers that rise`,
    );
  }
  const isWhole = [zeroPoint, quantMin, quantMax].every(Number.isInteger);
  const isInside = quantMin >= lowest && quantMin < quantMax && quantMax <= highest &&
    zeroPoint >= lowest && zeroPoint <= highest;
  if (!isWhole || !isInside || !(Math.fround(scale) > 0 && Number.isFinite(Math.fround(scale)))) {
    throw new RangeError(
      `Cannot quantize "${name}": scale ${scale}, zero point ${zeroPoint}, range ${quantMin} to ` +
        `${quantMax}, expected scale > 0 and integers within ${lowest} to ${highest}`,
    );
  }
}

function checkQTensor(
  name: string,
  tensor: QTensor,
  graph: Graph,
): void {
  const { values, scale, zeroPoint, axis } = tensor;
  const original = graph.initializers.get(name);
  if (original === undefined) {
    throw new RangeError(`Cannot quantize "${name}": the graph has no such initializer`);
  }
  if (original.shape.join() !== values.shape.join()) {
    throw new RangeError(
      `Cannot quantize "${name}": integers of shape [${values.shape.join(", ")}], ` +
        `the initializer has [${original.shape.join(", ")}]`,
    );
  }
  const channels = sizeOf(scaleShape(values.shape, tensor));
  if (scale.length !== channels || zeroPoint.length !== channels) {
    throw new RangeError(
      `Cannot quantize "${name}": ${scale.length} scales and ${zeroPoint.length} zero points, ` +
        `expected ${channels} along axis ${axis}`,
    );
  }
}
