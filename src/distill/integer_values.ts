// A frozen student's integers on the GPU, as the integer kernels read them.
import { codeGrid, codeOffset } from "../../kernels/integer_epilogue.ts";
import { padded } from "../../kernels/kernel.ts";
import { type NdArray, toFloat32 } from "../core/nd_array.ts";
import type { Device } from "../gpu/device.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { numberAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import type { ActivationQParams, QTensor, QuantizedGraph } from "../graph/quantized_graph.ts";
import { toChannelsLastLayout } from "../graph/weight_layout.ts";
import { accumulatorBound } from "../quant/freeze.ts";
import {
  packBias,
  packConvWeight,
  packDepthwiseWeight,
  type PackedWeight,
} from "../quant/packed_codes.ts";
import type { Network } from "./network.ts";

/** A layer's integers, or the ones that an average pooling sums with. */
export interface IntegerLayer {
  readonly w: Tensor;
  /** [O]: int32, the input's zero point folded in. */
  readonly bias: Tensor;
  /** [O]: what a sum is multiplied by. */
  readonly scale: Tensor;
  /** Groups of w. */
  readonly group: number;
  /** Code of the input that stands for 0, as stored. */
  readonly zeroPoint: number;
  /** Whether w is that of a depthwise convolution. */
  readonly depthwise: boolean;
}

/** Weights and quantizers of a frozen student on the GPU. */
export class IntegerValues implements Disposable {
  readonly #device: Device;
  readonly #student: QuantizedGraph;
  readonly #network: Network;
  /** By what they are for; each is uploaded when it is first asked for. */
  readonly #tensors = new Map<string, Tensor>();
  readonly #layers = new Map<string, IntegerLayer>();

  /**
   * @param device where they lie
   * @param student integers and quantizers
   * @param network the student's graph, made ready
   */
  constructor(device: Device, student: QuantizedGraph, network: Network) {
    this.#device = device;
    this.#student = student;
    this.#network = network;
  }

  /** Names of the tensors that are quantized. */
  get quantized(): ReadonlySet<string> {
    return new Set(this.#student.activations.keys());
  }

  /** The quantizer of a tensor as kernels read it. */
  grid(tensor: string): Tensor {
    const quantizer = this.#student.activations.get(tensor);
    if (quantizer === undefined) throw new TypeError(`Tensor "${tensor}" has no quantizer`);
    return this.#upload(
      `grid ${tensor}`,
      (label) => this.#device.fromArray([8], codeGrid(quantizer), { label }),
    );
  }

  /** An initializer in float32. */
  parameter(name: string): Tensor {
    const array = this.#network.teacher.graph.initializers.get(name);
    if (array === undefined) throw new TypeError(`There is no initializer "${name}"`);
    const shape = array.shape.length === 0 ? [1] : array.shape;
    return this.#upload(
      name,
      (label) => this.#device.fromArray(shape, toFloat32(array), { label }),
    );
  }

  /**
   * The integers of a layer.
   *
   * @param node Conv or Gemm
   * @returns undefined when its input, weight or bias is not quantized, the bias has a scale of its own or the weight
   * scales of blocks
   * @throws RangeError when a sum could leave int32
   */
  layer(node: Node): IntegerLayer | undefined {
    const known = this.#layers.get(node.name);
    if (known !== undefined) return known;
    const [inputName = "", weightName = "", biasName = ""] = node.inputs;
    const input = this.#student.activations.get(inputName);
    const weight = this.#student.weights.get(weightName);
    const layout = this.#network.teacher.layouts.get(weightName);
    if (!input || !layout || !weight || weight.blockSize !== undefined) return undefined;
    if (!this.#isAsFrozen(weightName, weight)) return undefined;
    const outputs = layout.finalShape[layout.channelAxis]!;
    const scale = Float32Array.from(
      { length: outputs },
      (_, o) => Math.fround(input.scale) * weight.scale[weight.scale.length === 1 ? 0 : o]!,
    );
    const bias = this.#student.biases.get(biasName);
    if (biasName !== "" && !(bias && hasScale(bias, scale))) return undefined;
    accumulatorBound(weight, input, bias, 0);
    // As #isAsFrozen saw.
    const codes = toChannelsLastLayout(weight.values as NdArray<"int8">, layout);
    const depthwise = layout.channelAxis === 2;
    const packed = depthwise
      ? packDepthwiseWeight(codes)
      : packConvWeight(codes, numberAttribute(node, "group", 1));
    return this.#keep(node.name, packed, { input, scale, depthwise, bias: bias?.values.data });
  }

  /**
   * An average over windows as a depthwise convolution: sums with weights of 1, and the input's scale divided by the
   * number of elements.
   *
   * @param node the pooling
   * @param channels channels of its input
   * @param elements of a window
   */
  average(node: Node, channels: number, elements: number): IntegerLayer {
    const known = this.#layers.get(node.name);
    if (known !== undefined) return known;
    const input = this.#student.activations.get(node.inputs[0] ?? "");
    if (input === undefined) throw new TypeError(`The input of "${node.name}" has no quantizer`);
    const packed = {
      words: new Uint32Array(elements * padded(channels) / 4).fill(0x01010101),
      sums: new Float64Array(channels).fill(elements),
      group: channels,
    };
    const scale = new Float32Array(channels).fill(Math.fround(input.scale) / elements);
    return this.#keep(node.name, packed, { input, scale, depthwise: true });
  }

  /** Gives the memory back. */
  [Symbol.dispose](): void {
    for (const tensor of this.#tensors.values()) this.#device.release(tensor);
    this.#tensors.clear();
    this.#layers.clear();
  }

  /** Whether the codes are symmetric int8, and of the very array that the made-ready network holds. */
  #isAsFrozen(name: string, { values, zeroPoint }: QTensor): boolean {
    const { folded } = this.#network;
    return values.dtype === "int8" && zeroPoint.every((code) => code === 0) &&
      folded.initializers.get(name) === this.#student.graph.initializers.get(name);
  }

  #keep(
    name: string,
    { words, sums, group }: PackedWeight,
    { input, scale, depthwise, bias }: {
      readonly input: ActivationQParams;
      readonly scale: Float32Array;
      readonly depthwise: boolean;
      readonly bias?: ArrayLike<number> | undefined;
    },
  ): IntegerLayer {
    const device = this.#device;
    const zeroPoint = input.zeroPoint - codeOffset(input);
    const layer = {
      w: this.#upload(`codes ${name}`, (label) => device.uint32(words, { label })),
      bias: this.#upload(
        `bias ${name}`,
        (label) => device.uint32(packBias(sums, zeroPoint, bias), { label }),
      ),
      scale: this.#upload(
        `scale ${name}`,
        (label) => device.fromArray([scale.length], scale, { label }),
      ),
      group,
      zeroPoint,
      depthwise,
    };
    this.#layers.set(name, layer);
    return layer;
  }

  #upload(key: string, make: (label: string) => Tensor): Tensor {
    const known = this.#tensors.get(key);
    if (known !== undefined) return known;
    const tensor = make(key);
    this.#tensors.set(key, tensor);
    return tensor;
  }
}

/** Whether codes of a bias count in steps of the sums. */
function hasScale(bias: QTensor, scale: Float32Array): boolean {
  return bias.values.data.length === scale.length &&
    scale.every((step, o) => bias.scale[bias.scale.length === 1 ? 0 : o] === step);
}
