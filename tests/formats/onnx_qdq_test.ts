// QDQ files against a host calculation: every tensor is computed in float64 with its codes rounded as the file says.
// ONNX Runtime runs each file at every optimization level: "disabled" literally, the others with integer kernels.
import assert from "node:assert/strict";
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema, TensorProto_DataType } from "onnx-buf";
import { ndArray, sizeOf } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { insertQdq } from "../../src/formats/onnx_qdq.ts";
import type {
  ActivationQParams,
  QTensor,
  QuantizedGraph,
} from "../../src/graph/quantized_graph.ts";
import { quantizeByThresholds } from "../../src/quant/thresholds.ts";
import {
  assertEveryLevel,
  biasOf,
  convolution,
  convolve,
  dequantize,
  graphOf,
  node,
  oneScale,
  quantize,
  quantized,
  randomCodes,
  randomInput,
} from "./_qdq.ts";

// Scales without common multiples: sums must not lie on the border of two codes.
const X8: ActivationQParams = {
  scale: 0.0203,
  zeroPoint: 120,
  quantMin: 0,
  quantMax: 255,
  bits: 8,
};
const X4: ActivationQParams = { scale: 0.2, zeroPoint: 0, quantMin: 0, quantMax: 15, bits: 4 };
const S8: ActivationQParams = {
  scale: 0.0307,
  zeroPoint: -3,
  quantMin: -128,
  quantMax: 127,
  bits: 8,
};
const S5: ActivationQParams = { scale: 0.0971, zeroPoint: 1, quantMin: -16, quantMax: 15, bits: 5 };

Deno.test("exportOnnx() per-channel convolution, bias, 4-bit activations, dynamic batch", async () => {
  const model = convolution({
    channels: 3,
    outChannels: 5,
    group: 1,
    activations: { x: X8, y: X4 },
  });
  const shape = [2, 3, 4, 4];
  const x = randomInput(1, shape);
  const codes = convolve(quantize(x, X8), shape, model, 1).map((value) => Math.max(value, 0));
  const expected = quantize(codes, X4);
  assert.ok(new Set(expected).size > 8, "the codes spread");
  assert.ok(expected.includes(15 * X4.scale), "some codes saturate at quantMax");
  await assertEveryLevel(model, { x: { shape, data: x } }, expected, X4.scale);
});

Deno.test("exportOnnx() counts the thresholds that a value reaches, in uint8 and in int8", async () => {
  const input = {
    ...{ scale: 0.4, zeroPoint: 1, quantMin: -2, quantMax: 1, bits: 2 },
    thresholds: Float32Array.of(-1.1, -0.3, 0.7),
  };
  const output = {
    ...{ scale: 0.3, zeroPoint: 0, quantMin: 0, quantMax: 7, bits: 3 },
    thresholds: Float32Array.of(0.05, 0.15, 0.3, 0.8, 1.1, 1.2, 1.5),
  };
  const model = convolution({
    channels: 3,
    outChannels: 5,
    group: 1,
    activations: { x: input, y: output },
  });
  const shape = [2, 3, 4, 4];
  const x = randomInput(1, shape);
  const levels = (values: ArrayLike<number>, grid: typeof input) =>
    Array.from(values, (value) => quantizeByThresholds(value, grid, grid.thresholds));
  const sums = convolve(levels(x, input), shape, model, 1).map((value) => Math.max(value, 0));
  const expected = levels(sums, output);
  assert.ok(new Set(expected).size === 8, "all codes occur");
  assert.ok(new Set(levels(x, input)).size === 4, "of the input too");
  await assertEveryLevel(model, { x: { shape, data: x } }, expected, output.scale);
});

Deno.test("exportOnnx() depthwise convolution with int8 activations", async () => {
  const model = convolution({
    channels: 4,
    outChannels: 4,
    group: 4,
    activations: { x: S8, y: S8 },
  });
  const shape = [1, 4, 4, 4];
  const x = randomInput(2, shape);
  const values = convolve(quantize(x, S8), shape, model, 4).map((value) => Math.max(value, 0));
  await assertEveryLevel(model, { x: { shape, data: x } }, quantize(values, S8), S8.scale);
});

for (const transB of [0, 1]) {
  Deno.test(`exportOnnx() Gemm with transB = ${transB}, float output`, async () => {
    const weight = randomCodes(3, transB ? [6, 4] : [4, 6], transB ? 0 : 1, 8);
    const bias = biasOf(weight, S5.scale);
    const model = quantized(
      graphOf(
        [node("fc", "Gemm", ["x", "w", "b"], ["y"], { transB })],
        { w: weight, b: bias },
        ["N", 4],
        ["N", 6],
      ),
      { w: weight },
      { b: bias },
      { x: S5 },
    );
    const x = randomInput(4, [3, 4]);
    const xq = quantize(x, S5);
    const w = dequantize(weight);
    const b = dequantize(bias);
    const expected = Array.from({ length: 18 }, (_, i) => {
      const [row, column] = [Math.floor(i / 6), i % 6];
      let sum = b[column]!;
      for (let k = 0; k < 4; k++) {
        sum += xq[row * 4 + k]! * w[transB ? column * 4 + k : k * 6 + column]!;
      }
      return sum;
    });
    await assertEveryLevel(model, { x: { shape: [3, 4], data: x } }, expected, 0);
  });
}

Deno.test("exportOnnx() one scale for a whole weight, from a graph of opset 11", async () => {
  const weight: QTensor = { ...randomCodes(3, [4, 6], 1, 4), axis: -1, ...oneScale(0.07) };
  const graph = graphOf(
    [
      node("matmul", "MatMul", ["x", "w"], ["h"]),
      node("softmax", "Softmax", ["h"], ["y"]),
    ],
    { w: weight },
    ["N", 4],
    ["N", 6],
  );
  const model = quantized({ ...graph, opset: 11 }, { w: weight }, {}, { x: S8 });
  assert.equal(importOnnx(exportOnnx(model)).opset, 13);
  const x = randomInput(6, [2, 4]);
  const [xq, w] = [quantize(x, S8), dequantize(weight)];
  const h = Array.from({ length: 12 }, (_, i) => {
    let sum = 0;
    for (let k = 0; k < 4; k++) sum += xq[Math.floor(i / 6) * 4 + k]! * w[k * 6 + i % 6]!;
    return Math.exp(sum);
  });
  const expected = h.map((value, i) => {
    const row = Math.floor(i / 6) * 6;
    return value / h.slice(row, row + 6).reduce((a, b) => a + b);
  });
  await assertEveryLevel(model, { x: { shape: [2, 4], data: x } }, expected, 0);
});

Deno.test("exportOnnx() residual Add of two quantized branches", async () => {
  const graph = graphOf(
    [
      node("relu", "Relu", ["x"], ["branch"]),
      node("add", "Add", ["x", "branch"], ["sum"]),
      node("out", "Identity", ["sum"], ["y"]),
    ],
    {},
    ["N", 10],
    ["N", 10],
  );
  const model = quantized(graph, {}, {}, { x: S8, branch: X8, sum: S5 });
  const x = randomInput(5, [2, 10]);
  const xq = quantize(x, S8);
  const branch = quantize(xq.map((value) => Math.max(value, 0)), X8);
  const expected = quantize(xq.map((value, i) => value + branch[i]!), S5);
  await assertEveryLevel(model, { x: { shape: [2, 10], data: x } }, expected, S5.scale);
});

Deno.test("exportOnnx() saturates at the ends of every narrow grid and rounds ties to even", async () => {
  for (const bits of [2, 3, 4, 5, 6, 7, 8]) {
    for (const quantMin of [0, -(2 ** (bits - 1))]) {
      const quantMax = quantMin + 2 ** bits - 1;
      const qparams = { scale: 0.25, zeroPoint: quantMin + 1, quantMin, quantMax, bits };
      const graph = graphOf([node("id", "Identity", ["x"], ["y"])], {}, ["N"], ["N"]);
      const model = quantized(graph, {}, {}, { x: qparams });
      // Every half step, so that ties and both ends are met.
      const x = Float32Array.from({ length: 1200 }, (_, i) => (i - 600) * 0.125);
      const expected = quantize(x, qparams);
      assert.equal(new Set(expected).size, 2 ** bits);
      await assertEveryLevel(model, { x: { shape: [1200], data: x } }, expected, 0);
    }
  }
});

/** Lowest codes of a 4-bit grid: symmetric, mirrored, and offset to either end. */
const LOWEST = [-8, -7, 0, -15];

for (const blockSize of [undefined, 2, 3]) {
  for (const kernel of [[], [2, 2]]) {
    const what = `${kernel.length === 0 ? "Gemm" : "Conv"}, ${
      blockSize === undefined ? "a scale a channel" : `blocks of ${blockSize}`
    }`;
    Deno.test(`exportOnnx() stores 4-bit weights as INT4 beside float activations: ${what}`, async () => {
      const shape = [4, 5, ...kernel];
      const taps = sizeOf(kernel), inputs = 5 * taps;
      const rng = new Rng(21);
      const codes = Int8Array.from({ length: 4 * inputs }, (_, i) => {
        const lowest = LOWEST[Math.floor(i / inputs)]!;
        // The first codes of a channel are the ends of its grid.
        return lowest + (i % inputs < 2 ? 15 * (i % inputs) : rng.integer(16));
      });
      const count = 4 * (blockSize === undefined ? 1 : Math.ceil(5 / blockSize) * taps);
      const weight: QTensor = {
        values: ndArray("int8", shape, codes),
        scale: Float32Array.from({ length: count }, () => 0.01 + 0.02 * rng.uniform()),
        zeroPoint: new Int32Array(count),
        axis: blockSize === undefined ? 0 : 1,
        ...(blockSize !== undefined && { blockSize }),
        bits: 4,
      };
      const scaleOf = (o: number, i: number, tap: number) =>
        weight.scale[
          blockSize === undefined
            ? o
            : (o * Math.ceil(5 / blockSize) + Math.floor(i / blockSize)) * taps + tap
        ]!;
      const layer = kernel.length === 0
        ? node("fc", "Gemm", ["x", "w"], ["y"], { transB: 1 })
        : node("conv", "Conv", ["x", "w"], ["y"]);
      const one = kernel.map(() => 1);
      const graph = graphOf([layer], { w: weight }, ["N", 5, ...kernel], ["N", 4, ...one]);
      const model = quantized(graph, { w: weight }, {}, {});
      const x = randomInput(8, [2, 5, ...kernel]);
      const expected = Array.from({ length: 8 }, (_, at) => {
        const [n, o] = [Math.floor(at / 4), at % 4];
        let sum = 0;
        for (let k = 0; k < inputs; k++) {
          const scale = scaleOf(o, Math.floor(k / taps), k % taps);
          sum += codes[o * inputs + k]! * scale * x[n * inputs + k]!;
        }
        return sum;
      });
      await assertEveryLevel(model, { x: { shape: [2, 5, ...kernel], data: x } }, expected, 0);

      const { graph: proto, opsetImport } = fromBinary(ModelProtoSchema, exportOnnx(model));
      assert.equal(opsetImport[0]?.version, 21n);
      const stored = proto!.initializer.find(({ name }) => name === "w_quantized")!;
      assert.equal(stored.dataType, TensorProto_DataType.INT4);
      assert.equal(stored.rawData.length, codes.length / 2);
      // Read back, codes and zero points are int8 and stand for the same weights.
      const { initializers } = importOnnx(exportOnnx(model));
      const [read, zeroPoint] = ["w_quantized", "w_zero_point"].map((name) =>
        initializers.get(name)!
      );
      assert.equal(read!.dtype, "int8");
      const perScale = (i: number) => {
        const [o, k] = [Math.floor(i / inputs), i % inputs];
        return weight.scale.indexOf(scaleOf(o, Math.floor(k / taps), k % taps));
      };
      codes.forEach((code, i) =>
        assert.equal(Number(read!.data[i]) - Number(zeroPoint!.data[perScale(i)]), code)
      );
    });
  }
}

Deno.test("exportOnnx() keeps int8 and opset 13 for wider codes, and beside quantized activations", () => {
  const options = { channels: 3, outChannels: 5, group: 1 };
  const few = (model: QuantizedGraph, bits: number): QuantizedGraph => {
    const w = { ...randomCodes(1, [5, 3, 3, 3], 0, bits), bits };
    return { ...model, weights: new Map([["w", w]]) };
  };
  const float = convolution({ ...options, activations: {} });
  const both = convolution({ ...options, activations: { x: X8 } });
  const odd = few(float, 4);
  odd.weights.get("w")!.values.data.set([-15, 15]);
  for (const model of [few(float, 5), few(both, 4), odd]) {
    const { graph, opsetImport } = fromBinary(ModelProtoSchema, exportOnnx(model));
    assert.equal(opsetImport[0]?.version, 13n);
    const stored = graph!.initializer.find(({ name }) => name === "w_quantized")!;
    assert.equal(stored.dataType, TensorProto_DataType.INT8);
  }
});

Deno.test("insertQdq() keeps the names of nodes, inputs and outputs and drops unread weights", () => {
  const model = convolution({
    channels: 3,
    outChannels: 5,
    group: 1,
    activations: { x: X8, y: X4 },
  });
  const graph = insertQdq(model);
  assert.deepEqual(graph.inputs, model.graph.inputs);
  assert.deepEqual(graph.outputs, model.graph.outputs);
  const conv = graph.nodes.find(({ name }) => name === "conv");
  assert.deepEqual(conv?.inputs, ["x_dequantized", "w", "b"]);
  assert.equal(graph.nodes.at(-1)?.opType, "DequantizeLinear");
  assert.deepEqual(graph.nodes.at(-1)?.outputs, ["y"]);
  assert.deepEqual([...graph.initializers.keys()].sort(), [
    ...["b_quantized", "b_scale", "w_quantized", "w_scale", "w_zero_point"],
    ...["x_scale", "x_zero_point", "y_max", "y_min", "y_scale", "y_zero_point"],
  ]);
  assert.equal(graph.initializers.get("w_quantized")?.dtype, "int8");
  assert.equal(graph.initializers.get("b_quantized")?.dtype, "int32");
});

Deno.test("insertQdq() does not take names the network has", () => {
  const weight = randomCodes(3, [4, 4], 1, 8);
  const graph = graphOf(
    [
      node("w_DequantizeLinear", "MatMul", ["x", "w"], ["w_scale"]),
      node("id", "Identity", ["w_scale"], ["y"]),
    ],
    { w: weight },
    ["N", 4],
    ["N", 4],
  );
  const written = insertQdq(quantized(graph, { w: weight }, {}, { x: S8 }));
  const names = written.nodes.map(({ name }) => name);
  assert.equal(new Set(names).size, names.length);
  const tensors = [
    ...written.nodes.flatMap(({ outputs }) => outputs),
    ...written.initializers.keys(),
  ];
  assert.equal(new Set(tensors).size, tensors.length);
  assert.deepEqual(importOnnx(exportOnnx(written)).nodes.length, written.nodes.length);
});

Deno.test("insertQdq() refuses quantizers that do not fit the graph", () => {
  const model = convolution({ channels: 3, outChannels: 5, group: 1, activations: {} });
  const w = model.weights.get("w")!;
  const withActivation = (name: string, changes: Partial<ActivationQParams>) => () =>
    insertQdq({ ...model, activations: new Map([[name, { ...X8, ...changes }]]) });
  assert.throws(withActivation("z", {}), /Cannot quantize "z": no such activation/);
  assert.throws(withActivation("x", { scale: 0 }), /scale 0/);
  assert.throws(withActivation("x", { scale: NaN }), /scale NaN/);
  assert.throws(withActivation("x", { quantMax: 256 }), /range 0 to 256/);
  assert.throws(withActivation("x", { quantMin: -1 }), /range -1 to 255/);
  assert.throws(withActivation("x", { zeroPoint: 0.5 }), /zero point 0.5/);
  for (const thresholds of [[0, 1], [0, 2, 1], [0, 1, NaN]].map((t) => Float32Array.from(t))) {
    assert.throws(
      withActivation("x", { quantMax: 3, thresholds }),
      /thresholds .*, expected 3 finite numbers that rise/,
    );
  }
  const withWeight = (name: string, tensor: QTensor) => () =>
    insertQdq({ ...model, weights: new Map([[name, tensor]]) });
  assert.throws(
    withWeight("w", { ...w, axis: 1, blockSize: 2 }),
    /5 scales and 5 zero points, expected 90 along axis 1/,
  );
  assert.throws(withWeight("v", w), /no such initializer/);
  assert.throws(withWeight("w", { ...w, axis: 1 }), /5 scales .* expected 3 along axis 1/);
  assert.throws(withWeight("w", randomCodes(1, [5, 3], 0, 8)), /initializer has \[5, 3, 3, 3\]/);
});
