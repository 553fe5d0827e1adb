// QuantizedGraph -> Graph with QuantizeLinear / DequantizeLinear (ONNX opset 13, per-axis scales). The float operators
// stay; integer weights and biases are dequantized into the tensors they were, and every quantized activation passes a
// Q/DQ pair after its producer:
//   conv.weight_quantized (int8), _scale, _zero_point -> DequantizeLinear -> conv.weight -> Conv -> relu1
//   relu1 -> [Clip] -> QuantizeLinear -> relu1_quantized -> DequantizeLinear -> relu1_dequantized -> consumers
import { type NdArray, ndArray } from "../core/nd_array.ts";
import type { Attribute, Graph, Node } from "../graph/graph.ts";
import type { ActivationQParams, QTensor, QuantizedGraph } from "../graph/quantized_graph.ts";
import { tensorNames, UniqueNames } from "./unique_names.ts";

/** The first opset with per-axis DequantizeLinear. */
export const QDQ_OPSET = 13;

/**
 * Writes the quantizers of a network into its graph.
 *
 * @param model a frozen student whose graph has opset 13 or later
 * @returns the same network with integer initializers and Q/DQ nodes; initializers nothing reads any more are gone
 * @throws RangeError when a quantizer names a tensor the graph does not have or its numbers contradict each other
 */
export function insertQdq(model: QuantizedGraph): Graph {
  const { graph, activations } = model;
  const writer = new QdqWriter(graph);
  const constants = new Map([...model.weights, ...model.biases]);
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
  for (const node of graph.nodes) {
    for (const input of node.inputs) {
      const tensor = constants.get(input);
      if (tensor === undefined || written.has(input)) continue;
      writer.constant(input, tensor);
      written.add(input);
    }
    // A quantized graph output keeps its name for the dequantized value; what the node makes gets a new one.
    const renamed = node.outputs.map((output) =>
      activations.has(output) && outputs.has(output) ? writer.unique(`${output}_float`) : output
    );
    writer.nodes.push({
      ...node,
      inputs: node.inputs.map((input) => dequantized.get(input) ?? input),
      outputs: renamed,
    });
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
  return { ...graph, nodes: writer.nodes, initializers: new Map(kept) };
}

/** Appends nodes and initializers under names that are not taken. */
class QdqWriter {
  readonly nodes: Node[] = [];
  readonly initializers = new Map<string, NdArray>();
  readonly #tensorNames: UniqueNames;
  readonly #nodeNames: UniqueNames;

  constructor(graph: Graph) {
    this.#tensorNames = new UniqueNames(tensorNames(graph));
    this.#nodeNames = new UniqueNames(graph.nodes.map((node) => node.name));
  }

  /** A tensor name that nothing has yet. */
  unique(name: string): string {
    return this.#tensorNames.reserve(name);
  }

  /** Integer initializer and the DequantizeLinear that gives the tensor `name`. */
  constant(name: string, { values, scale, zeroPoint, axis }: QTensor): void {
    const shape = axis < 0 ? [] : [scale.length];
    const inputs = [
      this.#initializer(`${name}_quantized`, values),
      this.#initializer(`${name}_scale`, ndArray("float32", shape, scale)),
    ];
    // int32 has no zero point other than 0, and runtimes expect none.
    if (values.dtype === "int8") {
      inputs.push(
        this.#initializer(`${name}_zero_point`, ndArray("int8", shape, Int8Array.from(zeroPoint))),
      );
    }
    this.#node("DequantizeLinear", name, inputs, name, axis < 0 ? {} : { axis });
  }

  /** Q/DQ pair that turns `from` into `to`; the new tensors are named after `name`. */
  activation(name: string, from: string, to: string, qparams: ActivationQParams): void {
    const { scale, zeroPoint, quantMin, quantMax } = qparams;
    const [lowest, highest] = storageRange(qparams);
    let source = from;
    if (quantMin !== lowest || quantMax !== highest) {
      // QuantizeLinear saturates only at the ends of its type; narrower grids are cut before it. The bound divided by
      // the scale is within 2^-23 of the integer, so it rounds to quantMin or quantMax exactly.
      const min = Float32Array.of((quantMin - zeroPoint) * scale);
      const max = Float32Array.of((quantMax - zeroPoint) * scale);
      const bounds = [
        this.#initializer(`${name}_min`, ndArray("float32", [], min)),
        this.#initializer(`${name}_max`, ndArray("float32", [], max)),
      ];
      source = this.unique(`${name}_clipped`);
      this.#node("Clip", name, [from, ...bounds], source, {});
    }
    const zero = lowest === 0
      ? ndArray("uint8", [], Uint8Array.of(zeroPoint))
      : ndArray("int8", [], Int8Array.of(zeroPoint));
    const parameters = [
      this.#initializer(`${name}_scale`, ndArray("float32", [], Float32Array.of(scale))),
      this.#initializer(`${name}_zero_point`, zero),
    ];
    const quantized = this.unique(`${name}_quantized`);
    this.#node("QuantizeLinear", name, [source, ...parameters], quantized, {});
    this.#node("DequantizeLinear", name, [quantized, ...parameters], to, {});
  }

  #initializer(name: string, array: NdArray): string {
    const unique = this.unique(name);
    this.initializers.set(unique, array);
    return unique;
  }

  #node(
    opType: string,
    tensor: string,
    inputs: readonly string[],
    output: string,
    attributes: Readonly<Record<string, Attribute>>,
  ): void {
    const name = this.#nodeNames.reserve(`${tensor}_${opType}`);
    this.nodes.push({ name, opType, inputs, outputs: [output], attributes });
  }
}

/** Lowest and highest code of the type an activation is stored in. */
function storageRange({ quantMin }: ActivationQParams): readonly [number, number] {
  return quantMin >= 0 ? [0, 255] : [-128, 127];
}

function checkActivation(name: string, qparams: ActivationQParams): void {
  const { scale, zeroPoint, quantMin, quantMax } = qparams;
  const [lowest, highest] = storageRange(qparams);
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
  { values, scale, zeroPoint, axis }: QTensor,
  graph: Graph,
): void {
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
  const channels = axis < 0 ? 1 : values.shape[axis];
  if (scale.length !== channels || zeroPoint.length !== channels) {
    throw new RangeError(
      `Cannot quantize "${name}": ${scale.length} scales and ${zeroPoint.length} zero points, ` +
        `expected ${channels} along axis ${axis}`,
    );
  }
}
