// Students whose activations have their ranges at run time, from distillation to ONNX Runtime, which takes the range of a
// whole batch: it runs one input at a time.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { type ImageSet, recogniseImages } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import { predict, topClasses } from "../../src/distill/evaluate.ts";
import { NetworkValues } from "../../src/distill/inference.ts";
import { IntegerNetwork } from "../../src/distill/integer_network.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { decodeWeightBundle, encodeWeightBundle } from "../../src/formats/weight_bundle.ts";
import type { Graph } from "../../src/graph/graph.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { runOrt } from "../formats/_ort.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "../graph/_graphs.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { runtimeLogits } from "./_networks.ts";
import { ptqStudent, simulatedLogits } from "./_students.ts";

const IMAGES = 16, SIZE = 4, ELEMENTS = 3 * SIZE * SIZE;
/** A full and a depthwise convolution, an addition that reads what a layer quantizes, a Gemm of a flattened image. */
const MODEL = makeGraph(["N", 3, SIZE, SIZE], [
  node("Conv", "x one.weight", "a", { pads: [1, 1, 1, 1] }, "one"),
  node("BatchNormalization", batchNormInputs("a", "one"), "b"),
  node("Relu", "b", "c"),
  node("Conv", "c two.weight", "d", { group: 6, pads: [1, 1, 1, 1] }, "two"),
  node("Add", "d c", "e"),
  node("AveragePool", "e", "f", { kernel_shape: [2, 2], strides: [2, 2] }),
  node("Flatten", "f", "g"),
  node("Gemm", "g fc.weight fc.bias", "y", { transB: 1 }, "fc"),
], {
  ...convBatchNorm("one", [6, 3, 3, 3]),
  "two.weight": [6, 1, 3, 3],
  "fc.weight": [5, 24],
  "fc.bias": [5],
});
// Inputs of very different ranges: that of a batch would be wrong for most.
const DATA = Float32Array.from(
  randomArray(7, IMAGES * ELEMENTS),
  (value, i) => value * 2 ** (Math.floor(i / ELEMENTS) % 5 - 2),
);

function images(): ImageSet {
  const size = { channels: 3, height: SIZE, width: SIZE };
  return recogniseImages(ndArray("float32", [IMAGES, 3, SIZE, SIZE], DATA), size, "images");
}

async function student(recipe: Partial<Recipe>) {
  const device = await testDevice();
  const start = device.liveBytes;
  const made = await distill(MODEL, { calibration: images() }, {
    method: "ptq",
    activationRanges: "dynamic",
    heldOut: 0,
    ...recipe,
  }, { device });
  assert.equal(device.liveBytes, start);
  return made;
}

async function simulated(frozen: QuantizedGraph, set: ImageSet): Promise<Float32Array> {
  const device = await testDevice();
  const network = prepareNetwork(frozen.graph, parseRecipe({}), false);
  const { initializers } = network.teacher.graph;
  const { activations, dynamicLayers } = frozen;
  using values = new NetworkValues(device, initializers, activations, dynamicLayers);
  return await predict(device, network, values, set, parseRecipe({}));
}

async function assertRuntimeAgrees(
  frozen: QuantizedGraph,
  expected: Float32Array,
  shape: readonly number[],
  data: Float32Array,
): Promise<void> {
  const file = exportOnnx(frozen);
  const size = data.length / IMAGES, classes = expected.length / IMAGES;
  const largest = Math.max(...expected.map(Math.abs));
  for (const level of ["disabled", "all"] as const) {
    let moved = 0;
    for (let n = 0; n < IMAGES; n++) {
      const one = { shape: [1, ...shape], data: data.slice(n * size, (n + 1) * size) };
      const { y } = await runOrt(file, { x: one }, level);
      const wanted = expected.slice(n * classes, (n + 1) * classes);
      const scale = Math.max(...wanted.map(Math.abs));
      // float32 sums; a value between two codes may become either, which moves a logit by less than a hundredth.
      assertClose(y!, wanted, { rtol: 0, atol: 1e-2 * scale }, `${level} ${n}`);
      if (y!.some((value, i) => Math.abs(value - wanted[i]!) > 1e-5 * largest)) moved++;
    }
    assert.ok(moved <= 1, `${level}: ${moved} of ${IMAGES} inputs moved`);
  }
}

Deno.test("distill() dynamic: layers read their own ranges, and ONNX Runtime agrees", async () => {
  const { student: frozen, report } = await student({ firstLastBits: 4 });
  assert.deepEqual([...frozen.dynamicLayers!], ["one", "two", "fc"]);
  assert.equal(frozen.activations.size + frozen.biases.size, 0);
  assert.equal(report.activationRanges, "dynamic");
  assert.equal(report.activationExponent, null);
  assert.deepEqual(
    report.layers.map(({ name, weightBits, activationBits }) => [name, weightBits, activationBits]),
    // what the pooling reads, and the logits, stay float
    [["one", 4, 8], ["two", 8, null], ["fc", 4, null]],
  );
  const expected = await simulated(frozen, images());
  const { dynamicLayers: _, ...float } = frozen;
  assert.notDeepEqual(await simulated(float, images()), expected, "inputs are quantized");
  await assertRuntimeAgrees(frozen, expected, [3, SIZE, SIZE], DATA);

  const bundle = decodeWeightBundle(encodeWeightBundle(frozen));
  assert.deepEqual(bundle.dynamicLayers, frozen.dynamicLayers);
  const device = await testDevice();
  assert.throws(
    () => new IntegerNetwork(device, frozen),
    /node "one" \(DynamicQuantizeLinear\): IntegerNetwork needs ranges of activations/,
  );
});

Deno.test("distill() dynamic: layers that an override or a skip list leaves alone read floats", async () => {
  const overrides = [{ layers: "two", activationBits: null }];
  const { student: frozen } = await student({ overrides, skipLayers: ["fc"] });
  assert.deepEqual([...frozen.dynamicLayers!], ["one"]);
  assert.deepEqual([...frozen.weights.keys()], ["one.weight", "two.weight"]);
  await assertRuntimeAgrees(frozen, await simulated(frozen, images()), [3, SIZE, SIZE], DATA);
});

Deno.test("distill() dynamic: empirical bias correction sees the quantized inputs, GPTQ goes with it", async () => {
  const { student: frozen } = await student({
    weightBits: 4,
    firstLastBits: 4,
    weightRounding: "gptq",
    biasCorrection: "empirical",
  });
  const mean = (logits: Float32Array) =>
    Array.from({ length: 5 }, (_, c) => {
      let sum = 0;
      for (let n = 0; n < IMAGES; n++) sum += logits[n * 5 + c]!;
      return sum / IMAGES;
    });
  const weights: Graph = { ...MODEL };
  const teacher = { ...frozen, graph: weights };
  const { dynamicLayers: _, ...float } = teacher;
  const target = mean(await simulated(float, images()));
  // The last layer's mean is put right for what it reads; means of float32 logits of size 10.
  assertClose(mean(await simulated(frozen, images())), target, { rtol: 0, atol: 1e-4 }, "means");
});

Deno.test("distill() dynamic: a network of MatMul and Add", async () => {
  const model = makeGraph(["N", 9], [
    node("MatMul", "x v", "a", {}, "first"),
    node("Add", "a b", "c"),
    node("Relu", "c", "d"),
    node("MatMul", "d w", "y", {}, "second"),
  ], { v: [9, 12], b: [12], w: [12, 4] });
  const device = await testDevice();
  const data = DATA.slice(0, IMAGES * 9), array = ndArray("float32", [IMAGES, 9], data);
  const recipe = { method: "ptq", activationRanges: "dynamic", heldOut: 0 } as const;
  const { student: frozen } = await distill(model, { calibration: array }, recipe, { device });
  const operators = importOnnx(exportOnnx(frozen)).nodes.map(({ opType }) => opType);
  assert.equal(operators.filter((opType) => opType === "MatMulInteger").length, 2);
  const set = recogniseImages(array, { channels: 9, height: 1, width: 1 }, "inputs");
  await assertRuntimeAgrees(frozen, await simulated(frozen, set), [9], data);
});

Deno.test({
  name: "exportOnnx() lenet dynamic W8A8: ONNX Runtime gives the simulation's logits",
  ignore: sharedDataMissing,
  fn: async () => {
    const count = 32;
    const recipe = { activationRanges: "dynamic" } as const;
    const made = await ptqStudent("lenet", count, { recipe, calibrated: count, evaluate: true });
    const expected = await simulatedLogits(made);
    const found = await runtimeLogits(made.onnx, made.real, { batch: 1 });
    assert.deepEqual(topClasses(found, count), topClasses(expected, count));
    // Logits of size 10; a value between two codes moves some by a step of a few thousandths.
    assertClose(found, expected, { rtol: 0, atol: 0.05 }, "logits");
    assert.ok(made.report.network.top1Student! >= made.report.network.top1Teacher! - 0.05);
  },
});
