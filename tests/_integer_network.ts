// A frozen student on the host, in exact integers: sums and codes of the integer reference, float32 rounded after every
// operation in between, as ONNX QDQ defines it. An average is its integer sum times float32(scale / elements).
import { ndArray } from "../src/core/nd_array.ts";
import { numberAttribute, numbersAttribute } from "../src/graph/attributes.ts";
import type { Node } from "../src/graph/graph.ts";
import type { QuantizedGraph } from "../src/graph/quantized_graph.ts";
import {
  integerConv2d,
  type IntegerConv2dOptions,
  integerGemm,
} from "../src/quant/integer_reference.ts";
import { dequantizeFloat32, quantizeFloat32 } from "../src/quant/rounding.ts";

/** A tensor: its float32 values, and the codes they stand for where it is quantized. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
  readonly codes?: Int32Array<ArrayBuffer>;
}

/**
 * Every tensor of a student that has Conv, Gemm, Relu, Add, Concat of two, Slice, Pad, Flatten, and pools without pads at
 * most.
 */
export function integerForward(student: QuantizedGraph, x: HostTensor): Map<string, HostTensor> {
  const values = new Map<string, HostTensor>();
  const set = (name: string, { shape, data }: HostTensor) => {
    const quantizer = student.activations.get(name);
    if (quantizer === undefined) return values.set(name, { shape, data });
    const codes = Int32Array.from(data, (value) => quantizeFloat32(value, quantizer));
    const snapped = Float32Array.from(codes, (code) => dequantizeFloat32(code, quantizer));
    return values.set(name, { shape, data: snapped, codes });
  };
  set(student.graph.inputs[0]!.name, x);
  for (const node of student.graph.nodes) {
    set(node.outputs[0]!, evaluate(student, node, values));
  }
  return values;
}

function evaluate(
  student: QuantizedGraph,
  node: Node,
  values: ReadonlyMap<string, HostTensor>,
): HostTensor {
  const x = values.get(node.inputs[0]!)!;
  switch (node.opType) {
    case "Conv":
    case "Gemm":
      return layer(student, node, x);
    case "Relu":
      return { shape: x.shape, data: x.data.map((value) => Math.max(0, value)) };
    case "Add": {
      const other = values.get(node.inputs[1]!)!;
      return { shape: x.shape, data: x.data.map((value, i) => value + other.data[i]!) };
    }
    case "Concat":
      return concat(x, values.get(node.inputs[1]!)!);
    case "MaxPool":
      return maxPool(node, x);
    case "Flatten":
      return { ...x, shape: [x.shape[0]!, x.data.length / x.shape[0]!] };
    case "Slice":
    case "Pad":
      return move(student, node, x);
    case "AveragePool":
    case "ReduceMean":
      return average(student, node, x);
  }
  throw new TypeError(`The host does not know ${node.opType}`);
}

function layer({ weights, biases, activations }: QuantizedGraph, node: Node, x: HostTensor) {
  const [input = "", weightName = "", biasName = ""] = node.inputs;
  const { scale: inputScale, zeroPoint } = activations.get(input)!;
  const weight = weights.get(weightName)!, bias = biases.get(biasName);
  const codes = { codes: ndArray("int32", x.shape, x.codes!), zeroPoint };
  const operands = { x: codes, weight, ...(bias && { bias }) };
  const sums = node.opType === "Conv"
    ? integerConv2d({ ...operands, ...geometry(node) })
    : integerGemm(operands);
  const inner = sums.shape.slice(2).reduce((a, b) => a * b, 1);
  const scale = weight.scale.map((step) => Math.fround(inputScale) * step);
  const data = Float32Array.from(sums.data, (sum, i) => {
    const channel = Math.floor(i / inner) % sums.shape[1]!;
    return dequantizeFloat32(sum, { scale: scale[channel % scale.length]!, zeroPoint: 0 });
  });
  return { shape: sums.shape, data };
}

function average({ activations }: QuantizedGraph, node: Node, x: HostTensor): HostTensor {
  const [batch = 1, channels = 1, height = 1, width = 1] = x.shape;
  const quantizer = activations.get(node.inputs[0]!)!;
  const whole = node.opType === "ReduceMean";
  const [kernelHeight = 1, kernelWidth = 1] = whole
    ? [height, width]
    : numbersAttribute(node, "kernel_shape") ?? [];
  const elements = kernelHeight * kernelWidth;
  const ones = ndArray(
    "int8",
    [channels, 1, kernelHeight, kernelWidth],
    new Int8Array(channels * elements).fill(1),
  );
  const zeroPoint = new Int32Array(1), scale = Float32Array.of(1);
  const sums = integerConv2d({
    x: { codes: ndArray("int32", x.shape, x.codes!), zeroPoint: quantizer.zeroPoint },
    weight: { values: ones, scale, zeroPoint, axis: -1, bits: 8 },
    ...(whole ? {} : geometry(node)),
    group: channels,
  });
  const step = { scale: Math.fround(quantizer.scale) / elements, zeroPoint: 0 };
  const data = Float32Array.from(sums.data, (sum) => dequantizeFloat32(sum, step));
  return { shape: whole ? [batch, channels] : sums.shape, data };
}

/** Two images side by side in the channels. */
function concat(x: HostTensor, other: HostTensor): HostTensor {
  const [batch = 1, channels = 1, ...size] = x.shape;
  const rows = [x, other].map(({ data }) => data.length / batch);
  const data = Array.from(
    { length: batch },
    (_, n) =>
      [x, other].flatMap((part, i) => [...part.data.subarray(n * rows[i]!, (n + 1) * rows[i]!)]),
  );
  const shape = [batch, channels + other.shape[1]!, ...size];
  return { shape, data: Float32Array.from(data.flat()) };
}

function maxPool(node: Node, x: HostTensor): HostTensor {
  const [batch = 1, channels = 1, height = 1, width = 1] = x.shape;
  const [kernelY = 1, kernelX = 1] = numbersAttribute(node, "kernel_shape") ?? [];
  const [strideY = 1, strideX = 1] = numbersAttribute(node, "strides") ?? [];
  const rows = Math.floor((height - kernelY) / strideY) + 1;
  const columns = Math.floor((width - kernelX) / strideX) + 1;
  const data = Float32Array.from({ length: batch * channels * rows * columns }, (_, i) => {
    const plane = Math.floor(i / (rows * columns)) * height * width;
    const y = Math.floor(i / columns) % rows * strideY, z = i % columns * strideX;
    const window = Array.from(
      { length: kernelY * kernelX },
      (_, k) => x.data[plane + (y + Math.floor(k / kernelX)) * width + z + k % kernelX]!,
    );
    return Math.max(...window);
  });
  return { shape: [batch, channels, rows, columns], data };
}

/** Slice with steps over whole axes' arguments, and Pad with 0. */
function move({ graph }: QuantizedGraph, node: Node, x: HostTensor): HostTensor {
  const integers = (position: number) =>
    Array.from(graph.initializers.get(node.inputs[position] ?? "")?.data ?? [], Number);
  const start = x.shape.map(() => 0), step = x.shape.map(() => 1);
  const shape = [...x.shape];
  if (node.opType === "Pad") {
    const pads = integers(1);
    x.shape.forEach((size, axis) => {
      start[axis] = -pads[axis]!;
      shape[axis] = size + pads[axis]! + pads[axis + x.shape.length]!;
    });
  } else {
    const [starts, ends, axes, steps] = [1, 2, 3, 4].map(integers);
    axes!.forEach((axis, i) => {
      const end = Math.min(ends![i]!, x.shape[axis]!);
      start[axis] = starts![i]!;
      step[axis] = steps?.[i] ?? 1;
      shape[axis] = Math.ceil((end - start[axis]!) / step[axis]!);
    });
  }
  const data = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => {
    let rest = i, at = 0, stride = 1;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      const position = rest % shape[axis]! * step[axis]! + start[axis]!;
      if (position < 0 || position >= x.shape[axis]!) return 0;
      at += position * stride;
      stride *= x.shape[axis]!;
      rest = Math.floor(rest / shape[axis]!);
    }
    return x.data[at]!;
  });
  return { shape, data };
}

function geometry(node: Node): Omit<IntegerConv2dOptions, "x" | "weight" | "bias"> {
  const [strideY = 1, strideX = 1] = numbersAttribute(node, "strides") ?? [];
  const [top = 0, left = 0, bottom = 0, right = 0] = numbersAttribute(node, "pads") ?? [];
  const [dilationY = 1, dilationX = 1] = numbersAttribute(node, "dilations") ?? [];
  return {
    strides: [strideY, strideX],
    pads: [top, left, bottom, right],
    dilations: [dilationY, dilationX],
    group: numberAttribute(node, "group", 1),
  };
}
