import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { convLayout, linearLayout } from "../../src/graph/weight_layout.ts";
import { fakeQuantizeArray } from "../../src/quant/fake_quantize.ts";
import { type LayerState, rootMeanSquare, Student } from "../../src/quant/student.ts";
import { assertClose, randomArray } from "../_gpu.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const INPUT_SCALE = Math.fround(0.037);
const OUTPUTS = 6, INPUTS = 9;

Deno.test("Student.freezeLayer() folds batch norm: float64 outputs agree", () => {
  const layer = linear(true);
  const { gamma, beta, mean, variance, epsilon } = layer.batchNorm!;
  assert(gamma.some((g) => g < 0) && gamma.some((g) => g > 0) && gamma[2] === 0);
  const frozen = studentOf(layer).freezeLayer("fc");
  const scale = layer.logScale.map(Math.exp);
  const zeroPoint = new Int32Array(OUTPUTS);
  const grid = { scale, zeroPoint, quantMin: layer.quantMin, quantMax: layer.quantMax };
  const w = fakeQuantizeArray(layer.latent, grid, 0).data;
  for (let sample = 0; sample < 5; sample++) {
    // codes of the input times its scale
    const x = randomArray(sample, INPUTS).map((v) => Math.round(20 * v) * INPUT_SCALE);
    for (let o = 0; o < OUTPUTS; o++) {
      const dot = (weights: ArrayLike<number>) =>
        x.reduce((sum, value, i) => sum + value * weights[o * INPUTS + i]!, 0);
      const deviation = Math.sqrt(variance[o]! + epsilon);
      const expected = gamma[o]! * (dot(w) - mean[o]!) / deviation + beta[o]!;
      const actual = dot(frozen.weightValues.data) + frozen.biasValues!.data[o]!;
      // half a step of the int32 bias, and float32 scales
      const step = INPUT_SCALE * frozen.weight.scale[o]!;
      assertClose([actual], [expected], { rtol: 1e-6, atol: 0.5 * step + 1e-6 }, `channel ${o}`);
    }
  }
});

Deno.test("Student.freezeLayer() makes an int32 bias at scale input * weight", () => {
  for (const batchNorm of [true, false]) {
    const { weight, bias, biasValues } = studentOf(linear(batchNorm)).freezeLayer("fc");
    assert.equal(weight.values.dtype, "int8");
    assert(weight.values.data.every((code) => code >= -8 && code <= 8));
    assert(weight.scale.every((scale) => scale > 0));
    assert.equal(bias!.values.dtype, "int32");
    assert.equal(bias!.bits, 32);
    weight.scale.forEach((scale, c) => {
      assert.equal(bias!.scale[c], Math.fround(INPUT_SCALE * scale));
      assert.equal(
        biasValues!.data[c],
        Math.fround(Number(bias!.values.data[c]) * bias!.scale[c]!),
      );
    });
  }
});

Deno.test("Student.freezeLayer() without bias has none", () => {
  const { bias: _, ...layer } = linear(false);
  const frozen = studentOf(layer).freezeLayer("fc");
  assert.equal(frozen.bias, undefined);
  assert.equal(frozen.biasValues, undefined);
});

Deno.test("Student.freezeLayer() keeps a float bias where the input has no quantizer", () => {
  for (const batchNorm of [true, false]) {
    const layer = linear(batchNorm);
    const { bias, biasValues, weight } = new Student([layer], []).freezeLayer("fc");
    const quantized = studentOf(layer).freezeLayer("fc");
    assert.equal(bias, undefined);
    assert.deepEqual(weight.values, quantized.weight.values);
    const { gamma = [], beta = [], mean = [], variance = [], epsilon = 0 } = layer.batchNorm ?? {};
    const expected = layer.bias ?? Array.from(gamma, (g, c) => {
      return beta[c]! - g * mean[c]! / Math.sqrt(variance[c]! + epsilon);
    });
    // float32 of a float64 sum
    assertClose(biasValues!.data, expected, { rtol: 1e-7, atol: 1e-12 }, `batchNorm ${batchNorm}`);
  }
});

Deno.test("Student.freezeLayer() names what is missing", () => {
  const student = new Student([linear(false)], []);
  assert.throws(() => student.freezeLayer("other"), {
    name: "TypeError",
    message: 'The student has no layer "other"',
  });
});

Deno.test("Student.freeze() puts codes and values back into the file's layout", () => {
  const shape = [4, 1, 3, 2], layout = convLayout(shape, 4); // depthwise: [3, 2, 4] on the GPU
  const graph = makeGraph(["N", 4, 5, 5], [node("Conv", "x w b", "y", { group: 4 })], {
    w: shape,
    b: [4],
  });
  const latent = ndArray("float32", [3, 2, 4], Float32Array.from(randomArray(1, 24)));
  const layer: LayerState = {
    ...linear(false),
    node: "Conv_y",
    weight: "w",
    biasName: "b",
    latent,
    layout,
    axis: 2,
    ...gridOf(4),
    bias: Float32Array.from(randomArray(2, 4)),
  };
  const quantized = studentOf(layer).freeze(graph);
  const codes = quantized.weights.get("w")!, bias = quantized.biases.get("b")!;
  assert.deepEqual(codes.values.shape, shape);
  assert.equal(codes.axis, 0);
  const values = quantized.graph.initializers.get("w")!;
  assert.deepEqual(values.shape, shape);
  for (let c = 0; c < 4; c++) {
    for (let i = 0; i < 6; i++) {
      const at = c * 6 + i;
      assert.equal(values.data[at], Math.fround(codes.values.data[at]! * codes.scale[c]!));
      const scale = Math.exp(layer.logScale[c]!);
      const wanted = Math.min(Math.max(latent.data[i * 4 + c]! / scale, -8), 7);
      assert(Math.abs(codes.values.data[at]! - wanted) <= 0.501, `${c}, ${i}`);
    }
  }
  assert.deepEqual(quantized.graph.initializers.get("b")!.shape, [4]);
  assert.equal(bias.scale.length, 4);
  assert.notEqual(quantized.graph.initializers, graph.initializers, "the graph is not changed");
  assert.equal(graph.initializers.get("w")!.dtype, "float32");
  const { scale, bits } = quantized.activations.get("x")!;
  assert.deepEqual({ scale, bits }, { scale: INPUT_SCALE, bits: 8 });
  assert.equal((quantized.graph satisfies Graph).nodes, graph.nodes);
});

Deno.test("rootMeanSquare() of zeros is 1", () => {
  assert.equal(rootMeanSquare(new Float32Array(3)), 1);
  assert.equal(rootMeanSquare(Float32Array.of(3, 4, 0, 0)), 2.5);
});

function studentOf(layer: LayerState): Student {
  const quantizer = { scale: INPUT_SCALE, zeroPoint: 0, quantMin: -128, quantMax: 127, bits: 8 };
  return new Student([layer], [{ tensor: "x", learned: false, ...quantizer }]);
}

function gridOf(channels: number): Pick<LayerState, "logScale" | "quantMin" | "quantMax"> {
  return {
    logScale: Float32Array.from(randomArray(3, channels), (v) => -1.5 + 0.3 * v),
    quantMin: new Int32Array(channels).fill(-8),
    quantMax: new Int32Array(channels).fill(7),
  };
}

function linear(batchNorm: boolean): LayerState {
  const vector = (seed: number) => Float32Array.from(randomArray(seed, OUTPUTS));
  return {
    node: "fc",
    weight: "fc.weight",
    biasName: "fc.bias",
    input: "x",
    latent: ndArray(
      "float32",
      [OUTPUTS, INPUTS],
      Float32Array.from(randomArray(1, OUTPUTS * INPUTS)),
    ),
    layout: linearLayout([OUTPUTS, INPUTS]),
    axis: 0,
    bits: 4,
    ...gridOf(OUTPUTS),
    ...(batchNorm
      ? {
        batchNorm: {
          node: "bn",
          gamma: vector(5).with(0, -1.25).with(1, 0.75).with(2, 0),
          beta: vector(6),
          mean: vector(7),
          variance: vector(8).map((v) => v * v + 0.2),
          epsilon: 1e-5,
        },
      }
      : { bias: vector(4) }),
  };
}
