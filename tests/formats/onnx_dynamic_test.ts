// Layers with dynamic inputs against a host calculation in float64, at every optimization level of ONNX Runtime.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { assertClose } from "../_gpu.ts";
import { lstmReference } from "../_reference_lstm.ts";
import { LEVELS, runOrt } from "./_ort.ts";
import {
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

/** What DynamicQuantizeLinear and DequantizeLinear make of x. */
function dynamic(x: Float32Array): number[] {
  const min = Math.min(0, ...x), max = Math.max(0, ...x);
  const scale = Math.fround((max - min) / 255);
  const zeroPoint = Math.round(-min / scale);
  return quantize(x, { scale, zeroPoint, quantMin: 0, quantMax: 255, bits: 8 });
}

async function assertRuntimeGives(
  file: Uint8Array,
  shape: readonly number[],
  data: Float32Array,
  expected: Readonly<Record<string, readonly number[]>>,
): Promise<void> {
  for (const level of LEVELS) {
    const found = await runOrt(file, { x: { shape, data } }, level);
    for (const [name, values] of Object.entries(expected)) {
      // float32 sums of at most 27 products
      assertClose(found[name]!, values, { rtol: 1e-5, atol: 1e-5 }, `${level} ${name}`);
    }
  }
}

for (const group of [1, 2, 4]) {
  Deno.test(`exportOnnx() dynamic input of a convolution of ${group} groups`, async () => {
    const model = convolution({ channels: 4, outChannels: 8, group, activations: {} });
    const shape = [1, 4, 4, 4], x = randomInput(3, shape);
    const expected = convolve(dynamic(x), shape, model, group).map((value) => Math.max(value, 0));
    const file = exportOnnx({
      ...model,
      biases: new Map(),
      dynamicLayers: new Set(["conv"]),
    });
    const { nodes, initializers } = importOnnx(file);
    assert.deepEqual(
      nodes.map(({ opType }) => opType),
      ["DynamicQuantizeLinear", "ConvInteger", "Cast", "Mul", "Mul", "Add", "Relu"],
    );
    assert.equal(initializers.get("w_quantized")!.dtype, "uint8");
    assert.ok(!initializers.has("w"));
    await assertRuntimeGives(file, shape, x, { y: expected });
  });
}

/** Two matrix products that read x, one with a scale a channel and a bias, one with a single scale and neither. */
function twoProducts(): QuantizedGraph {
  const first = randomCodes(5, [3, 6], 0, 8);
  const second = { ...randomCodes(6, [2, 6], 0, 4), ...oneScale(0.03), axis: -1 };
  const graph = graphOf(
    [
      node("first", "Gemm", ["x", "v", "b"], ["y"], { transB: 1 }),
      node("second", "Gemm", ["x", "w"], ["z"], { transB: 1 }),
    ],
    { v: first, w: second },
    [1, 6],
    [1, 3],
  );
  const bias = ndArray("float32", [3], Float32Array.of(0.3, -1, 2));
  const outputs = [...graph.outputs, { name: "z", dtype: "float32", shape: [1, 2] } as const];
  const initializers = new Map([...graph.initializers, ["b", bias] as const]);
  const model = quantized({ ...graph, outputs, initializers }, { v: first, w: second }, {}, {});
  return { ...model, dynamicLayers: new Set(["first", "second"]) };
}

Deno.test("exportOnnx() dynamic input that two matrix products share", async () => {
  const model = twoProducts();
  const x = randomInput(4, [1, 6]), read = dynamic(x);
  const product = (name: string, outputs: number, bias: readonly number[]) => {
    const w = dequantize(model.weights.get(name)!);
    return Array.from(
      { length: outputs },
      (_, o) => read.reduce((sum, value, i) => sum + value * w[o * 6 + i]!, bias[o] ?? 0),
    );
  };
  const file = exportOnnx(model);
  const { nodes, opset } = importOnnx(file);
  assert.equal(opset, 13, "4 bits are no INT4 where integers are multiplied");
  assert.equal(nodes.filter(({ opType }) => opType === "DynamicQuantizeLinear").length, 1);
  await assertRuntimeGives(file, [1, 6], x, {
    y: product("v", 3, [0.3, -1, 2]),
    z: product("w", 2, []),
  });
});

for (const granularity of ["channel", "tensor"] as const) {
  for (const direction of ["forward", "reverse"] as const) {
    Deno.test(`exportOnnx() LSTM with a dynamic input and states, a scale a ${granularity}, ${direction}`, async () => {
      const [steps, inputs, hidden] = [5, 3, 4];
      const codes = randomCodes(8, [4 * hidden, inputs + hidden], 0, 8);
      const weight = granularity === "channel"
        ? codes
        : { ...codes, ...oneScale(codes.scale[0]!), axis: -1 };
      const lstm = node("lstm", "LSTM", ["x", "w", "b"], ["y"], { direction, layout: 1 });
      const shape = [1, steps, inputs];
      const graph = graphOf([lstm], { w: weight }, shape, [1, steps, hidden]);
      const bias = Float32Array.from({ length: 4 * hidden }, (_, i) => Math.sin(i));
      const initializers = new Map(graph.initializers)
        .set("b", ndArray("float32", [bias.length], bias));
      const model = {
        ...quantized({ ...graph, initializers }, { w: weight }, {}, {}),
        dynamicLayers: new Set(["lstm"]),
      };
      const x = randomInput(9, shape), read = dynamic(x), w = dequantize(weight);
      const columns = inputs + hidden;
      const { y: [y] } = lstmReference(
        { samples: 1, steps, inputs, hidden, reverse: direction === "reverse" },
        (_, t, i) => read[t * inputs + i]!,
        (row, i) => w[row * columns + i]!,
        (row, k) => w[row * columns + inputs + k]!,
        (row) => bias[row]!,
        (state) => state.some((h) => h !== 0) ? dynamic(Float32Array.from(state)) : state,
      );
      await assertRuntimeGives(exportOnnx(model), shape, x, { y: y!.flat() });
    });
  }
}

Deno.test("exportOnnx() refuses dynamic layers that it cannot write, by name", () => {
  const model = twoProducts();
  const refused = (changes: Partial<QuantizedGraph>, message: RegExp) =>
    assert.throws(() => exportOnnx({ ...model, ...changes }), { name: "RangeError", message });
  refused({ dynamicLayers: new Set(["third"]) }, /input of "third": the graph has no such node/);
  refused({ weights: new Map() }, /"first" at run time: its weights are not quantized/);
  const weight = model.weights.get("v")!;
  refused(
    {
      weights: new Map([...model.weights, ["v", { ...weight, zeroPoint: Int32Array.of(1, 0, 0) }]]),
    },
    /"first" \(Gemm\) at run time: expected .* zero point 0/,
  );
});
