// Students with layers that stay float, from distillation to ONNX Runtime: at 3 bits, where a layer that is quantized
// although it should not be moves every logit.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { distill } from "../../src/distill/distill.ts";
import { predict } from "../../src/distill/evaluate.ts";
import { NetworkValues } from "../../src/distill/inference.ts";
import { IntegerNetwork } from "../../src/distill/integer_network.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import { recogniseImages } from "../../src/data/image_set.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { decodeWeightBundle, encodeWeightBundle } from "../../src/formats/weight_bundle.ts";
import { foldBatchNorm } from "../../src/graph/fold_batch_norm.ts";
import { LEVELS, runOrt } from "../formats/_ort.ts";
import { randomArray, testDevice } from "../_gpu.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "../graph/_graphs.ts";

const IMAGES = 32, SIZE = 4, CLASSES = 5;
const MODEL = makeGraph(["N", 3, SIZE, SIZE], [
  node("Conv", "x one.weight", "a", {}, "one"),
  node("BatchNormalization", batchNormInputs("a", "one"), "b"),
  node("Relu", "b", "c"),
  node("Conv", "c two.weight", "d", {}, "two"),
  node("BatchNormalization", batchNormInputs("d", "two"), "e"),
  node("Relu", "e", "f"),
  node("Conv", "f three.weight", "g", {}, "three"),
  node("BatchNormalization", batchNormInputs("g", "three"), "h"),
  node("Relu", "h", "i"),
  node("GlobalAveragePool", "i", "j"),
  node("Flatten", "j", "k"),
  node("Gemm", "k fc.weight", "y", { transB: 1 }, "fc"),
], {
  ...convBatchNorm("one", [8, 3, 1, 1]),
  ...convBatchNorm("two", [8, 8, 1, 1]),
  ...convBatchNorm("three", [8, 8, 1, 1]),
  "fc.weight": [CLASSES, 8],
});
const FOLDED = foldBatchNorm(MODEL);
const IMAGE_DATA = Float32Array.from(randomArray(7, IMAGES * 3 * SIZE * SIZE));
const SHAPE = [IMAGES, 3, SIZE, SIZE];

const CASES: readonly (readonly [skipped: string, float: string, recipe: Partial<Recipe>])[] = [
  ["two", "c", { method: "blockwise", batchNorm: "live", steps: 10 }],
  ["fc", "k", { method: "ptq", weightRounding: "gptq" }],
  ["one", "x", { method: "joint", batchNorm: "live", steps: 10 }],
];

for (const [skipped, float, changes] of CASES) {
  Deno.test(`distill() ${changes.method} leaves "${skipped}" float, and ONNX Runtime agrees`, async () => {
    const device = await testDevice();
    const images = recogniseImages(
      ndArray("float32", SHAPE, IMAGE_DATA),
      { channels: 3, height: SIZE, width: SIZE },
      "images",
    );
    const start = device.liveBytes;
    const recipe: Partial<Recipe> = {
      weightBits: 3,
      activationBits: 3,
      firstLastBits: 3,
      skipLayers: [skipped],
      augment: { copies: 1, shift: 0, flip: false },
      ...changes,
    };
    const { student, report } = await distill(MODEL, { calibration: images }, recipe, { device });
    assert.equal(device.liveBytes, start);
    const weight = `${skipped}.weight`;
    assert.deepEqual(student.graph.initializers.get(weight), FOLDED.initializers.get(weight));
    assert.ok(!student.weights.has(weight) && student.weights.size === 3);
    assert.ok(!student.activations.has(float));
    assert.deepEqual(
      report.layers.map(({ name, weightBits }) => [name, weightBits]),
      ["one", "two", "three", "fc"].map((name) => [name, name === skipped ? null : 3]),
    );
    const bundle = decodeWeightBundle(encodeWeightBundle(student));
    assert.deepEqual(bundle.constants.get(weight), FOLDED.initializers.get(weight));

    const file = exportOnnx(student);
    const written = importOnnx(file);
    const layer = written.nodes.find(({ name }) => name === skipped)!;
    assert.deepEqual(layer.inputs.slice(0, 2), [float, weight]);
    assert.equal(written.initializers.get(weight)?.dtype, "float32");

    const normalization = parseRecipe({});
    const network = prepareNetwork(student.graph, normalization, false);
    using values = new NetworkValues(
      device,
      network.teacher.graph.initializers,
      student.activations,
    );
    const simulated = await predict(device, network, values, images, normalization);
    using integers = new IntegerNetwork(device, student);
    const computed = await integers.predict(images);
    assertRows(computed, simulated, "integers");
    const inputs = { x: { shape: SHAPE, data: IMAGE_DATA } };
    for (const level of LEVELS) {
      assertRows((await runOrt(file, inputs, level)).y!, simulated, level);
    }
  });
}

/** Logits of at least 30 of the 32 images are equal: a value between two codes may fall to either side. */
function assertRows(found: Float32Array, expected: Float32Array, label: string): void {
  assert.equal(found.length, expected.length);
  let moved = 0;
  for (let row = 0; row < IMAGES; row++) {
    // float32 sums of at most 16 products, logits of size 10
    const isEqual = (value: number, i: number) =>
      Math.abs(value - expected[row * CLASSES + i]!) <= 1e-4;
    if (!found.subarray(row * CLASSES, (row + 1) * CLASSES).every(isEqual)) moved++;
  }
  assert.ok(moved <= 2, `${label}: ${moved} of ${IMAGES} rows differ`);
}
