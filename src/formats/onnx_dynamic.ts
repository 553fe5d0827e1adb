// Layers whose input takes its range at run time, as ONNX writes them (opset 11 and later): the input's codes times the
// weight's, sums in int32, then one multiplication by both scales and the float bias.
//   x -> DynamicQuantizeLinear -> x_quantized (uint8), x_scale, x_zero_point
//   x_quantized, w_quantized -> ConvInteger or MatMulInteger -> Cast -> Mul (x_scale * w_scale) -> Add (bias) -> y
// DynamicQuantizeLinear takes one range of all of x: that of each input by itself in batches of one. An LSTM becomes ONNX
// Runtime's DynamicQuantizeLSTM, which quantizes its state so, too, at every step; ONNX has nothing of the kind.
// Weights are stored as uint8 with zero point 128, not as int8: x86 without VNNI saturates sums of uint8 times int8.
import { type NdArray, ndArray, transpose } from "../core/nd_array.ts";
import { numberAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import { directionOf } from "../graph/lstm.ts";
import type { QTensor } from "../graph/quantized_graph.ts";
import type { GraphWriter } from "./graph_writer.ts";
import { bothBiases, columnsOf, writeStepsFirst } from "./onnx_forms.ts";

/** The tensors that DynamicQuantizeLinear gives. */
interface DynamicTensors {
  readonly codes: string;
  readonly scale: string;
  readonly zeroPoint: string;
}

/** Code of 0 in a weight. */
const WEIGHT_ZERO_POINT = 128;

/** ONNX's number of the type float32. */
const FLOAT = 1;

/** Writes layers with dynamic inputs; those that read one tensor share its quantizer. */
export class DynamicLayers {
  readonly #writer: GraphWriter;
  readonly #quantized = new Map<string, DynamicTensors>();

  /** @param writer where nodes and initializers go */
  constructor(writer: GraphWriter) {
    this.#writer = writer;
  }

  /**
   * Writes a layer.
   *
   * @param node Conv, Gemm with weights [O, I], or LSTM of graph/lstm.ts
   * @param weight its integers, with scales of output channels (axis 0) or one
   * @param bias its float32 bias, if it has one
   * @throws RangeError when the layer has another form
   */
  write(node: Node, weight: QTensor, bias: NdArray | undefined): void {
    checkForm(node, weight);
    const writer = this.#writer;
    if (node.opType === "LSTM") return writeLstm(writer, node, weight, bias);
    const [x, w] = node.inputs as [string, string];
    const output = node.outputs[0]!;
    const { codes, scale, zeroPoint } = this.#input(x);
    const isConv = node.opType === "Conv";
    const stored = writer.initializer(`${w}_quantized`, storedCodes(weight, isConv));
    const zero = writer.initializer(
      `${w}_zero_point`,
      ndArray("uint8", [], Uint8Array.of(WEIGHT_ZERO_POINT)),
    );
    const steps = writer.initializer(
      `${w}_scale`,
      ndArray("float32", vectorShape(weight.scale.length, isConv), weight.scale),
    );
    const sums = writer.unique(`${output}_sums`), floats = writer.unique(`${output}_float_sums`);
    const step = writer.unique(`${output}_scale`);
    const operands = [codes, stored, zeroPoint, zero];
    if (isConv) writer.node("ConvInteger", output, operands, [sums], node.attributes);
    else writer.node("MatMulInteger", output, operands, [sums]);
    writer.node("Cast", output, [sums], [floats], { to: FLOAT });
    writer.node("Mul", step, [scale, steps], [step]);
    const product = bias ? writer.unique(`${output}_product`) : output;
    writer.node("Mul", output, [floats, step], [product]);
    if (bias === undefined) return;
    const shape = vectorShape(bias.data.length, isConv);
    const added = writer.initializer(`${node.inputs[2]}_vector`, { ...bias, shape });
    writer.node("Add", output, [product, added], [output]);
  }

  #input(x: string): DynamicTensors {
    const known = this.#quantized.get(x);
    if (known !== undefined) return known;
    const writer = this.#writer;
    const made = {
      codes: writer.unique(`${x}_quantized`),
      scale: writer.unique(`${x}_scale`),
      zeroPoint: writer.unique(`${x}_zero_point`),
    };
    this.#quantized.set(x, made);
    const outputs = [made.codes, made.scale, made.zeroPoint];
    writer.node("DynamicQuantizeLinear", x, [x], outputs);
    return made;
  }
}

/** Its weights are [1, I, 4H] and [1, H, 4H]. */
function writeLstm(
  writer: GraphWriter,
  node: Node,
  weight: QTensor,
  bias: NdArray | undefined,
): void {
  const [x, w] = node.inputs as [string, string];
  const [rows = 1, columns = 1] = weight.values.shape;
  const hidden = rows / 4;
  const codes = storedCodes(weight, true);
  const part = (name: string, start: number, end: number) =>
    writer.initializer(name, transpose(columnsOf(codes, start, end), [0, 2, 1]));
  const weights = [
    part(`${w}_input_quantized`, 0, columns - hidden),
    part(`${w}_recurrent_quantized`, columns - hidden, columns),
  ];
  const channels = weight.scale.length === 1 ? [1] : [1, rows];
  const zeros = new Uint8Array(weight.scale.length).fill(WEIGHT_ZERO_POINT);
  const grid = [
    writer.initializer(`${w}_scale`, ndArray("float32", channels, weight.scale)),
    writer.initializer(`${w}_zero_point`, ndArray("uint8", channels, zeros)),
  ];
  const both = bias ? writer.initializer(`${node.inputs[2]}_both`, bothBiases(bias)) : "";
  writeStepsFirst(writer, x, node.outputs[0]!, (steps, states) =>
    writer.node(
      "DynamicQuantizeLSTM",
      node.outputs[0]!,
      [steps, ...weights, both, "", "", "", "", ...grid, ...grid],
      [states],
      { direction: directionOf(node), hidden_size: hidden },
    ));
}

/** [O, I / group, ..] for a Conv, [I, O] for a Gemm. */
function storedCodes({ values }: QTensor, isConv: boolean): NdArray<"uint8"> {
  const codes = Uint8Array.from(values.data, (code) => code + WEIGHT_ZERO_POINT);
  const stored = ndArray("uint8", values.shape, codes);
  return isConv ? stored : transpose(stored, [1, 0]);
}

/** Shape that a vector of output channels, or one number, needs beside the output. */
function vectorShape(length: number, isConv: boolean): number[] {
  if (length === 1) return [];
  return isConv ? [length, 1, 1] : [length];
}

function checkForm(node: Node, { values, axis, blockSize, zeroPoint }: QTensor): void {
  const isPlain = node.opType === "Conv" || node.opType === "LSTM" ||
    node.opType === "Gemm" && numberAttribute(node, "transB", 0) === 1 &&
      numberAttribute(node, "transA", 0) === 0 && numberAttribute(node, "alpha", 1) === 1 &&
      numberAttribute(node, "beta", 1) === 1;
  const isCentred = values.dtype === "int8" && zeroPoint.every((zero) => zero === 0);
  if (isPlain && isCentred && axis <= 0 && blockSize === undefined) return;
  throw new RangeError(
    `Cannot quantize the input of "${node.name}" (${node.opType}) at run time: expected a Conv or a Gemm of ` +
      "transB 1, and int8 weights with zero point 0 and scales of output channels",
  );
}
