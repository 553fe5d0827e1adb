// The exported student's layers in exact integer arithmetic beside ONNX Runtime: from the codes that the runtime has at
// a layer's input, the integer reference gives the codes that the runtime has at its output.
import assert from "node:assert/strict";
import * as ort from "onnxruntime-node";
import { ndArray } from "../../src/core/nd_array.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { insertQdq } from "../../src/formats/onnx_qdq.ts";
import { numberAttribute, numbersAttribute } from "../../src/graph/attributes.ts";
import type { Node } from "../../src/graph/graph.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { consumers } from "../../src/graph/topology.ts";
import { integerConv2d } from "../../src/quant/integer_reference.ts";
import { requantize } from "../../src/quant/requantize.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { channelsFirst, type NetworkName } from "./_networks.ts";
import { type MadeStudent, ptqStudent } from "./_students.ts";

const IMAGES = 2;

type Codes = ReadonlyMap<
  string,
  { readonly shape: readonly number[]; readonly codes: Int32Array<ArrayBuffer> }
>;

/** Codes of every quantized activation, as ONNX Runtime computes them. */
async function runtimeCodes({ real, student }: MadeStudent): Promise<Codes> {
  const graph = insertQdq(student);
  const names = [...student.activations.keys()];
  const outputs = names.map((name) => ({
    name: `${name}_quantized`,
    dtype: student.activations.get(name)!.quantMin >= 0 ? "uint8" as const : "int8" as const,
    shape: [],
  }));
  const session = await ort.InferenceSession.create(exportOnnx({ ...graph, outputs }), {
    graphOptimizationLevel: "disabled",
    logSeverityLevel: 3,
  });
  try {
    const { shape, data } = channelsFirst(real.images, real.preprocessing, 0, IMAGES);
    const x = new ort.Tensor("float32", data, shape);
    const results = await session.run({ [session.inputNames[0]!]: x });
    return new Map(names.map((name) => {
      const { dims, data } = results[`${name}_quantized`]!;
      return [name, { shape: dims, codes: Int32Array.from(data as Uint8Array) }];
    }));
  } finally {
    await session.release();
  }
}

/** The quantized tensor behind a convolution, and whether a ReLU lies between; undefined where more happens there. */
function outputOf(
  { graph, activations }: QuantizedGraph,
  conv: Node,
): readonly [string, boolean] | undefined {
  const tensor = conv.outputs[0]!;
  if (activations.has(tensor)) return [tensor, false];
  const [next, other] = consumers(graph).get(tensor) ?? [];
  const after = next?.outputs[0] ?? "";
  const isRelu = other === undefined && next?.opType === "Relu" && activations.has(after);
  return isRelu ? [after, true] : undefined;
}

/** Codes of a convolution's output from the codes of its input. */
function layerCodes(
  { weights, biases, activations }: QuantizedGraph,
  conv: Node,
  all: Codes,
  relu: boolean,
  output: string,
): Int32Array {
  const [input, weightName, biasName = ""] = conv.inputs as readonly [string, string, string?];
  const weight = weights.get(weightName)!, bias = biases.get(biasName);
  const { shape, codes } = all.get(input)!;
  const inputQuantizer = activations.get(input)!;
  const [top = 0, left = 0, bottom = 0, right = 0] = numbersAttribute(conv, "pads") ?? [];
  const [strideY = 1, strideX = 1] = numbersAttribute(conv, "strides") ?? [];
  const accumulators = integerConv2d({
    x: { codes: ndArray("int32", shape, codes), zeroPoint: inputQuantizer.zeroPoint },
    weight,
    ...(bias && { bias }),
    strides: [strideY, strideX],
    pads: [top, left, bottom, right],
    group: numberAttribute(conv, "group", 1),
  });
  const scale = weight.scale.map((step) => Math.fround(inputQuantizer.scale) * step);
  return requantize({ accumulators, scale, axis: 1 }, activations.get(output)!, { relu }).data;
}

/** Network, and how many of its convolutions end in a quantizer right behind themselves or their ReLU. */
const CASES: readonly (readonly [NetworkName, layers: number])[] = [["resnet20", 10], ["dscnn", 9]];

for (const [name, layers] of CASES) {
  Deno.test({
    name: `integerConv2d() and requantize() give ONNX Runtime's codes on ${name}`,
    ignore: sharedDataMissing,
    fn: async () => {
      const made = await ptqStudent(name, 8, { calibrated: 8 });
      const { student } = made;
      const all = await runtimeCodes(made);
      let compared = 0;
      for (const conv of student.graph.nodes.filter(({ opType }) => opType === "Conv")) {
        const output = outputOf(student, conv);
        if (output === undefined) continue;
        compared++;
        const actual = layerCodes(student, conv, all, output[1], output[0]);
        const expected = all.get(output[0])!.codes;
        const differing = actual.filter((code, i) => code !== expected[i]).length;
        const far = actual.filter((code, i) => Math.abs(code - expected[i]!) > 1).length;
        assert.ok(new Set(expected).size > 50, "the codes spread");
        // The runtime sums float32 products: a sum between two codes may go to the other one.
        assert.equal(far, 0, conv.name);
        assert.ok(
          differing <= actual.length * 1e-4,
          `${conv.name}: ${differing} of ${actual.length}`,
        );
      }
      assert.equal(compared, layers);
    },
  });
}
