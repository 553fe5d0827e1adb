// Students whose activations stay float, from distillation to ONNX Runtime: nothing but the weights differs from the
// teacher, so both engines compute the same float32 sums.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { recogniseImages } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import { predict } from "../../src/distill/evaluate.ts";
import { NetworkValues } from "../../src/distill/inference.ts";
import { IntegerNetwork } from "../../src/distill/integer_network.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { decodeWeightBundle, encodeWeightBundle } from "../../src/formats/weight_bundle.ts";
import { LEVELS, runOrt } from "../formats/_ort.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "../graph/_graphs.ts";

const IMAGES = 32, SIZE = 4, CLASSES = 5;
/** Full, depthwise and pointwise convolutions, and a Gemm that reads a flattened image. */
const MODEL = makeGraph(["N", 3, SIZE, SIZE], [
  node("Conv", "x one.weight", "a", {}, "one"),
  node("BatchNormalization", batchNormInputs("a", "one"), "b"),
  node("Relu", "b", "c"),
  node("Conv", "c two.weight", "d", { pads: [1, 1, 1, 1] }, "two"),
  node("BatchNormalization", batchNormInputs("d", "two"), "e"),
  node("Relu", "e", "f"),
  node("Conv", "f three.weight", "g", { group: 10, pads: [1, 1, 1, 1] }, "three"),
  node("BatchNormalization", batchNormInputs("g", "three"), "h"),
  node("Relu", "h", "i"),
  node("AveragePool", "i", "j", { kernel_shape: [2, 2], strides: [2, 2] }),
  node("Flatten", "j", "k"),
  node("Gemm", "k fc.weight", "y", { transB: 1 }, "fc"),
], {
  ...convBatchNorm("one", [8, 3, 1, 1]),
  ...convBatchNorm("two", [10, 8, 3, 3]),
  ...convBatchNorm("three", [10, 1, 3, 3]),
  "fc.weight": [CLASSES, 40],
});
const LAYERS = ["one", "two", "three", "fc"];
const IMAGE_DATA = Float32Array.from(randomArray(7, IMAGES * 3 * SIZE * SIZE));
const SHAPE = [IMAGES, 3, SIZE, SIZE];

interface Case {
  readonly recipe: Partial<Recipe>;
  /** Layers with scales of groups. */
  readonly grouped?: readonly string[];
  /** Layers whose codes are INT4 in the file. */
  readonly int4: readonly string[];
}

const CASES: Readonly<Record<string, Case>> = {
  "blockwise W3 with a live batch norm": {
    recipe: { method: "blockwise", weightBits: 3, batchNorm: "live", steps: 4 },
    int4: ["two", "three"],
  },
  "ptq W8": { recipe: { method: "ptq" }, int4: [] },
  "ptq W4, offset grids of groups of 3": {
    // 8 channels make groups of 3, 3 and 2; three channels of an image and one of a depthwise kernel make none.
    recipe: {
      method: "ptq",
      weightBits: 4,
      firstLastBits: 4,
      weightGroup: 3,
      weightGrid: "offset",
      weightObserver: "hessian",
    },
    grouped: ["two", "fc"],
    int4: LAYERS,
  },
  "gptq W4, last layer 8 bits, groups of 4": {
    recipe: { method: "ptq", weightBits: 4, weightGroup: 4, weightRounding: "gptq" },
    grouped: ["two", "fc"],
    int4: ["two", "three"],
  },
};

for (const [name, { recipe: changes, grouped = [], int4 }] of Object.entries(CASES)) {
  Deno.test(`distill() ${name}: activations stay float, and ONNX Runtime agrees`, async () => {
    const device = await testDevice();
    const size = { channels: 3, height: SIZE, width: SIZE };
    const images = recogniseImages(ndArray("float32", SHAPE, IMAGE_DATA), size, "images");
    const start = device.liveBytes;
    const augment = { copies: 1, shift: 0, flip: false };
    const recipe = { activationBits: null, augment, ...changes };
    const { student, report } = await distill(MODEL, { calibration: images }, recipe, { device });
    assert.equal(device.liveBytes, start);
    assert.equal(student.activations.size, 0);
    assert.equal(student.biases.size, 0);
    assert.equal(report.activationBits, null);
    assert.ok(report.layers.every(({ activationBits }) => activationBits === null));
    assert.deepEqual([...student.weights.keys()], LAYERS.map((layer) => `${layer}.weight`));
    const blocked = LAYERS.filter((layer) => student.weights.get(`${layer}.weight`)!.blockSize);
    assert.deepEqual(blocked, grouped);

    const bundle = decodeWeightBundle(encodeWeightBundle(student));
    assert.deepEqual(bundle.weights, student.weights);
    assert.equal(bundle.constants.get("one.bias")?.dtype, "float32");

    const network = prepareNetwork(student.graph, parseRecipe({}), false);
    const { initializers } = network.teacher.graph;
    using values = new NetworkValues(device, initializers, student.activations);
    const simulated = await predict(device, network, values, images, parseRecipe({}));
    using integers = new IntegerNetwork(device, student);
    assertSame(await integers.predict(images), simulated, "IntegerNetwork");

    const file = exportOnnx(student);
    assert.deepEqual(int4Tensors(file), int4.map((layer) => `${layer}.weight`));
    for (const level of LEVELS) {
      const { y } = await runOrt(file, { x: { shape: SHAPE, data: IMAGE_DATA } }, level);
      assertSame(y!, simulated, level);
    }
  });
}

Deno.test("IntegerNetwork computes a layer in float32 whose weights have scales of groups", async () => {
  const device = await testDevice();
  const size = { channels: 3, height: SIZE, width: SIZE };
  const images = recogniseImages(ndArray("float32", SHAPE, IMAGE_DATA), size, "images");
  const { student } = await distill(MODEL, { calibration: images }, {
    method: "ptq",
    weightBits: 4,
    activationBits: null,
    weightGroup: 4,
    overrides: [{ layers: "fc", activationBits: 8 }],
  }, { device });
  assert.ok(student.activations.has("j"));
  assert.equal(student.weights.get("fc.weight")!.blockSize, 4);
  const network = prepareNetwork(student.graph, parseRecipe({}), false);
  const { initializers } = network.teacher.graph;
  using values = new NetworkValues(device, initializers, student.activations);
  using integers = new IntegerNetwork(device, student);
  const simulated = await predict(device, network, values, images, parseRecipe({}));
  assertSame(await integers.predict(images), simulated, "IntegerNetwork");
});

function assertSame(found: Float32Array, expected: Float32Array, label: string): void {
  // float32 sums of at most 90 products, logits of size 10
  assertClose(found, expected, { rtol: 1e-5, atol: 5e-5 }, label);
}

/** Weights whose codes fit INT4, in a file of an opset that has it. */
function int4Tensors(file: Uint8Array<ArrayBuffer>): string[] {
  const { opset, initializers, nodes } = importOnnx(file);
  const quantizers = nodes.filter(({ opType }) => opType === "DequantizeLinear");
  const fitting = quantizers.filter(({ inputs }) => {
    const codes = initializers.get(inputs[0]!)!.data as Int8Array;
    return codes.every((code) => code >= -8 && code <= 7);
  });
  assert.equal(quantizers.length, LAYERS.length);
  return opset === 21 ? fitting.map(({ outputs }) => outputs[0]!) : [];
}
