// Layers whose input takes its range at run time, as ONNX writes them (opset 11 and later): the input's codes times the
// weight's, sums in int32, then one multiplication by both scales and the float bias.
//   x -> DynamicQuantizeLinear -> x_quantized (uint8), x_scale, x_zero_point
//   x_quantized, w_quantized -> ConvInteger or MatMulInteger -> Cast -> Mul (x_scale * w_scale) -> Add (bias) -> y
// DynamicQuantizeLinear takes one range of all of x: that of each input by itself in batches of one.
// Weights are stored as uint8 with zero point 128, not as int8: x86 without VNNI saturates sums of uint8 times int8.
import { type NdArray, ndArray, transpose } from "../core/nd_array.ts";
import { numberAttribute } from "../graph/attributes.ts";
import type { Attribute, Node } from "../graph/graph.ts";
import type { QTensor } from "../graph/quantized_graph.ts";

/** Where a layer's nodes and initializers go; both get names that nothing has yet, and nodes are named after a tensor. */
export interface GraphWriter {
  /** A tensor name that nothing has yet. */
  unique(name: string): string;
  /** Adds an initializer; returns its name. */
  initializer(name: string, array: NdArray): string;
  /** Adds a node. */
  node(
    opType: string,
    tensor: string,
    inputs: readonly string[],
    outputs: readonly string[],
    attributes?: Readonly<Record<string, Attribute>>,
  ): void;
}

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
   * @param node Conv, or Gemm with weights [O, I]
   * @param weight its integers, with scales of output channels (axis 0) or one
   * @param bias its float32 bias, if it has one
   * @throws RangeError when the layer has another form
   */
  write(node: Node, weight: QTensor, bias: NdArray | undefined): void {
    checkForm(node, weight);
    const writer = this.#writer;
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
  const isPlain = node.opType === "Conv" ||
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
