// The exported student in ONNX Runtime beside stilla's own simulation of it. With graph optimizations disabled the
// runtime executes the file literally, so both compute the same thing and differ by float32 rounding at most, which may
// move a value that lies between two codes to the other one.
import assert from "node:assert/strict";
import type { NdArray } from "../../src/core/nd_array.ts";
import { agreement, topClasses } from "../../src/distill/evaluate.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { decodeWeightBundle, encodeWeightBundle } from "../../src/formats/weight_bundle.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { LEVELS } from "../formats/_ort.ts";
import { type NetworkName, runtimeLogits } from "./_networks.ts";
import { type MadeStudent, ptqStudent, simulatedLogits } from "./_students.ts";

async function simulatedClasses(made: MadeStudent): Promise<Uint32Array> {
  return topClasses(await simulatedLogits(made), made.real.images.count);
}

async function runtimeClasses({ onnx, real }: MadeStudent): Promise<Uint32Array> {
  return topClasses(await runtimeLogits(onnx, real), real.images.count);
}

function studentTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ignore: sharedDataMissing, fn });
}

type Bits = Pick<Recipe, "weightBits" | "activationBits">;

/** Students, inputs to compare on, calibration inputs. */
const STUDENTS: readonly (readonly [NetworkName, Bits, count: number, calibrated: number])[] = [
  ["resnet20", { weightBits: 4, activationBits: 4 }, 10_000, 250],
  ["resnet20", { weightBits: 8, activationBits: 8 }, 500, 250],
  ["resnet8", { weightBits: 8, activationBits: 4 }, 64, 64],
  ["dscnn", { weightBits: 8, activationBits: 8 }, 500, 250],
  ["dscnn", { weightBits: 4, activationBits: 4 }, 500, 250],
  ["lenet", { weightBits: 3, activationBits: 5 }, 500, 250],
  ["squeezenet", { weightBits: 8, activationBits: 8 }, 4, 4],
];

for (const [name, bits, count, calibrated] of STUDENTS) {
  const width = `W${bits.weightBits}A${bits.activationBits}`;
  studentTest(
    `exportOnnx() ${name} ${width}: ONNX Runtime gives the simulation's class`,
    async () => {
      const evaluate = count < 10_000;
      const made = await ptqStudent(name, count, { recipe: bits, calibrated, evaluate });
      const simulated = await simulatedClasses(made);
      const found = await runtimeClasses(made);
      const right = agreement(simulated, made.real.labels);
      assert.ok(new Set(found).size > 1);
      // 99.9 %; of fewer than 1000 inputs, one may lie between two codes.
      const different = found.filter((value, i) => value !== simulated[i]).length;
      assert.ok(different <= Math.max(1, count / 1000), `${different} of ${count} differ`);
      // The report's top-1 is that of the very student that was exported.
      if (evaluate) assert.equal(right, made.report.network.top1Student);
    },
  );
}

studentTest(
  "exportOnnx() W8A8 ResNet-20: size, int8 weights, names, dynamic batch, every level",
  async () => {
    const made = await ptqStudent("resnet20", 16, { calibrated: 16 });
    const { onnx, real, student } = made;
    assert.ok(onnx.length <= 0.30 * real.bytes.length, `${onnx.length} of ${real.bytes.length}`);
    const file = importOnnx(onnx);
    assert.deepEqual(file.inputs, real.graph.inputs);
    assert.deepEqual(file.outputs, real.graph.outputs);
    assert.equal(file.inputs[0]!.shape[0], "N");
    const tensors = new Set(file.nodes.flatMap(({ inputs, outputs }) => [...inputs, ...outputs]));
    const layers = real.graph.nodes.filter(({ opType }) => opType === "Conv" || opType === "Gemm");
    assert.equal(layers.length, 20);
    for (const { inputs } of layers) {
      const weight = inputs[1]!;
      assert.ok(tensors.has(weight), weight);
      assert.equal(file.initializers.get(`${weight}_quantized`)?.dtype, "int8");
      assert.equal(file.initializers.has(weight), false, "no float copy");
    }
    const relus = real.graph.nodes.filter(({ opType }) => opType === "Relu");
    for (const { outputs } of relus) assert.ok(tensors.has(outputs[0]!), outputs[0]);
    // Every float array left is a scale.
    for (const [name, { dtype }] of file.initializers) {
      if (dtype === "float32") assert.match(name, /_scale$/);
    }
    const simulated = await simulatedClasses(made);
    for (const level of LEVELS) {
      for (const batch of [1, 7]) {
        const logits = await runtimeLogits(onnx, real, { level, batch });
        // Integer kernels round elsewhere; the classes of these clear images do not depend on it.
        assert.ok(agreement(topClasses(logits, 16), simulated) >= 15 / 16, level);
      }
    }
    const bundle = decodeWeightBundle(encodeWeightBundle(student));
    assert.equal(bundle.weights.size, 20);
    for (const [name, { values, scale }] of [...bundle.weights, ...bundle.biases]) {
      assert.deepEqual(values, file.initializers.get(`${name}_quantized`), name);
      const scales: NdArray | undefined = file.initializers.get(`${name}_scale`);
      assert.deepEqual(scale, scales?.data, name);
    }
  },
);
