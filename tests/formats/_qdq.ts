// Small quantized networks for the tests of QDQ files, and the host calculation that a file is checked against.
import assert from "node:assert/strict";
import { type NdArray, ndArray, sizeOf } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import type { Graph, Node } from "../../src/graph/graph.ts";
import type {
  ActivationQParams,
  QTensor,
  QuantizedGraph,
} from "../../src/graph/quantized_graph.ts";
import { LEVELS, runOrt } from "./_ort.ts";

export async function assertEveryLevel(
  model: QuantizedGraph,
  inputs: Readonly<Record<string, { shape: readonly number[]; data: Float32Array }>>,
  expected: readonly number[],
  step: number,
): Promise<void> {
  const file = exportOnnx(model);
  for (const level of LEVELS) {
    const { y } = await runOrt(file, inputs, level);
    assert.equal(y!.length, expected.length);
    let moved = 0;
    for (const [i, value] of expected.entries()) {
      const difference = Math.abs(y![i]! - value);
      // f32 sums of at most 27 products of size 3: rounding below 1e-5.
      if (difference <= 1e-5) continue;
      // A sum that lies on the border of two codes may fall to either side; never further than one step.
      assert.ok(
        difference <= step * 1.001,
        `${level}: element ${i} is ${y![i]}, expected ${value}`,
      );
      moved++;
    }
    assert.ok(moved <= expected.length * 0.02, `${level}: ${moved} codes moved`);
  }
}

export function convolution(options: {
  channels: number;
  outChannels: number;
  group: number;
  activations: Record<string, ActivationQParams>;
}): QuantizedGraph {
  const { channels, outChannels, group, activations } = options;
  const weight = randomCodes(11, [outChannels, channels / group, 3, 3], 0, 6);
  const bias = biasOf(weight, activations["x"]?.scale ?? 1);
  const graph = graphOf(
    [
      node("conv", "Conv", ["x", "w", "b"], ["h"], { group, pads: [1, 1, 1, 1] }),
      node("relu", "Relu", ["h"], ["y"]),
    ],
    { w: weight, b: bias },
    ["N", channels, 4, 4],
    ["N", outChannels, 4, 4],
  );
  return quantized(graph, { w: weight }, { b: bias }, activations);
}

/** 3x3 convolution with padding 1 in float64. */
export function convolve(
  x: readonly number[],
  [batch, channels, height, width]: readonly number[],
  model: QuantizedGraph,
  group: number,
): number[] {
  const weight = model.weights.get("w")!;
  const [w, b] = [dequantize(weight), dequantize(model.biases.get("b")!)];
  const outChannels = weight.values.shape[0]!;
  const perGroup = channels! / group;
  const y: number[] = [];
  for (let n = 0; n < batch!; n++) {
    for (let o = 0; o < outChannels; o++) {
      for (let i = 0; i < height! * width!; i++) {
        const [row, column] = [Math.floor(i / width!), i % width!];
        let sum = b[o]!;
        for (let k = 0; k < perGroup * 9; k++) {
          const c = Math.floor(o * group / outChannels) * perGroup + Math.floor(k / 9);
          const [r, q] = [row + Math.floor(k / 3) % 3 - 1, column + k % 3 - 1];
          if (r < 0 || q < 0 || r >= height! || q >= width!) continue;
          sum += w[o * perGroup * 9 + k]! * x[((n * channels! + c) * height! + r) * width! + q]!;
        }
        y.push(sum);
      }
    }
  }
  return y;
}

export function quantize(x: ArrayLike<number>, qparams: ActivationQParams): number[] {
  const { scale, zeroPoint, quantMin, quantMax } = qparams;
  return Array.from(x, (value) => {
    const code = roundToEven(Math.fround(value) / Math.fround(scale)) + zeroPoint;
    return (Math.min(Math.max(code, quantMin), quantMax) - zeroPoint) * scale;
  });
}

function roundToEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

export function dequantize({ values, scale, axis }: QTensor): number[] {
  const inner = sizeOf(values.shape.slice(axis + 1));
  return Array.from(
    values.data,
    (code, i) => code * scale[axis < 0 ? 0 : Math.floor(i / inner) % scale.length]!,
  );
}

export function randomCodes(seed: number, shape: number[], axis: number, bits: number): QTensor {
  const rng = new Rng(seed);
  const channels = shape[axis]!;
  const half = 2 ** (bits - 1);
  const codes = Int8Array.from(
    { length: sizeOf(shape) },
    () => rng.integer(2 * half - 1) + 1 - half,
  );
  return {
    values: ndArray("int8", shape, codes),
    scale: Float32Array.from({ length: channels }, () => (0.5 + rng.uniform()) / half / 3),
    zeroPoint: new Int32Array(channels),
    axis,
    bits,
  };
}

export function oneScale(scale: number): Pick<QTensor, "scale" | "zeroPoint"> {
  return { scale: Float32Array.of(scale), zeroPoint: new Int32Array(1) };
}

/** A bias of scale = input scale * weight scale, as QuantizedGraph wants it. */
export function biasOf(weight: QTensor, inputScale: number): QTensor {
  const scale = weight.scale.map((step) => step * inputScale);
  const codes = Int32Array.from(scale, (step, i) => Math.round((i - 1) * 0.3 / step));
  return {
    values: ndArray("int32", [codes.length], codes),
    scale,
    zeroPoint: new Int32Array(codes.length),
    axis: 0,
    bits: 32,
  };
}

export function randomInput(seed: number, shape: readonly number[]): Float32Array<ArrayBuffer> {
  const rng = new Rng(seed);
  return Float32Array.from({ length: sizeOf(shape) }, () => rng.normal());
}

export function node(
  name: string,
  opType: string,
  inputs: string[],
  outputs: string[],
  attributes: Node["attributes"] = {},
): Node {
  return { name, opType, inputs, outputs, attributes };
}

export function graphOf(
  nodes: readonly Node[],
  tensors: Record<string, QTensor>,
  inputShape: (number | string)[],
  outputShape: (number | string)[],
): Graph {
  const initializers = Object.entries(tensors).map(([name, tensor]): [string, NdArray] => [
    name,
    ndArray("float32", tensor.values.shape, Float32Array.from(dequantize(tensor))),
  ]);
  return {
    name: "net",
    opset: 13,
    inputs: [{ name: "x", dtype: "float32", shape: inputShape }],
    outputs: [{ name: "y", dtype: "float32", shape: outputShape }],
    nodes,
    initializers: new Map(initializers),
  };
}

export function quantized(
  graph: Graph,
  weights: Record<string, QTensor>,
  biases: Record<string, QTensor>,
  activations: Record<string, ActivationQParams>,
): QuantizedGraph {
  return {
    graph,
    weights: new Map(Object.entries(weights)),
    biases: new Map(Object.entries(biases)),
    activations: new Map(Object.entries(activations)),
  };
}
