import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { recogniseImages } from "../../src/data/image_set.ts";
import { describeRun, planRun, type RunPlan } from "../../src/distill/dry_run.ts";
import { planText } from "../../src/distill/plan_text.ts";
import { type PlannedStage, plannedStages } from "../../src/distill/planned_stages.ts";
import { prepareRun } from "../../src/distill/prepare_run.ts";
import { parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import { testDevice } from "../_gpu.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "../graph/_graphs.ts";

const MODEL = makeGraph(["N", 3, 8, 8], [
  node("Conv", "x one.weight", "a", {}, "one"),
  node("BatchNormalization", batchNormInputs("a", "one"), "b"),
  node("Relu", "b", "c"),
  node("Conv", "c two.weight", "d", {}, "two"),
  node("Relu", "d", "e"),
  node("GlobalAveragePool", "e", "f", {}, "pool"),
  node("Flatten", "f", "g"),
  node("Gemm", "g v", "y", { transB: 1 }, "fc"),
], { ...convBatchNorm("one", [4, 3, 1, 1]), "two.weight": [8, 4, 1, 1], v: [2, 8] });
const DEVICE = {
  limits: { maxBufferSize: 2 ** 30 } as GPUSupportedLimits,
  maxTensorBytes: 2 ** 27,
  adapterName: "none",
  hasFloat16Tiles: false,
  target: { family: "software", subgroupSize: 8 } as const,
};
/** 875 to train on, twice with augmentation, and 125 held out. */
const SAMPLES = 1000;

function prepare(changes: Partial<Recipe>, model = MODEL) {
  const recipe = parseRecipe({ ...changes, calibration: "x", calibrationLabels: "y" });
  const prepared = prepareRun(DEVICE, model, SAMPLES, recipe);
  return { recipe, prepared, stages: plannedStages(DEVICE, prepared, recipe) };
}

/** Whatever forward pass was measured: 16 inputs took 16 ms. */
function plan(
  changes: Partial<Recipe>,
  evaluate = 0,
  seconds = 0.016,
  model = MODEL,
): RunPlan {
  const { recipe, prepared, stages } = prepare(changes, model);
  const measured = { adapter: "none\n", batch: 16, seconds };
  return describeRun(recipe, prepared, stages, evaluate, measured);
}

Deno.test("plannedStages() tells each method's units, steps and batch", () => {
  const stages = (changes: Partial<Recipe>) =>
    prepare(changes).stages.map(({ stage, unit, whole, steps, batch }: PlannedStage) =>
      [stage, whole ? "all" : unit.name, steps, batch].join(" ")
    );
  assert.deepEqual(stages({}), [
    "blockwise one 300 16",
    "blockwise two 300 16",
    "blockwise fc 300 16",
  ]);
  assert.deepEqual(stages({ activationBits: 2, steps: 7, batchSize: 5 }), [
    "blockwise one 7 5",
    "blockwise two 7 5",
    "blockwise fc 7 5",
    "network all 4900 5",
  ]);
  assert.deepEqual(stages({ method: "layerwise" })[0], "layerwise one 300 16");
  assert.deepEqual(stages({ method: "joint" }), ["joint all 400 64"]);
  assert.deepEqual(stages({ method: "qat" }).slice(2), ["blockwise fc 300 16", "qat all 200 64"]);
  assert.deepEqual(stages({ method: "qat", steps: 50, networkSteps: 90 }), [
    "blockwise one 50 16",
    "blockwise two 50 16",
    "blockwise fc 50 16",
    "qat all 90 64",
  ]);
  assert.deepEqual(stages({ method: "ptq" }), []);
  assert.deepEqual(stages({ method: "ptq", weightRounding: "gptq" })[0], "ptq one 0 16");
});

Deno.test("prepareRun() refuses float16 tiles on a device without them", () => {
  assert.throws(() => prepare({ tileStorage: "float16" }), {
    name: "GpuError",
    message: /Cannot store tiles as float16 on "none": it is a CPU adapter/,
  });
});

Deno.test("plannedStages() expects fewer steps of units with many bits", () => {
  const likely = (changes: Partial<Recipe>) =>
    prepare(changes).stages.map(({ likelySteps }) => likelySteps);
  assert.deepEqual(likely({}), [50, 50, 50]);
  assert.deepEqual(likely({ weightBits: 4, firstLastBits: 8 }), [50, 200, 50]);
  const overrides = [{ layers: "fc", weightBits: 3 }];
  assert.deepEqual(likely({ overrides }), [50, 50, 300]);
  assert.deepEqual(likely({ steps: 50 }), [50, 50, 50]);
  assert.deepEqual(likely({ heldOut: 0 }), [300, 300, 300]);
});

Deno.test("describeRun() shows bits, units and what trains, with overrides and float layers", () => {
  const { layers, units } = plan({
    weightBits: 4,
    activationBits: 3,
    overrides: [{ layers: "fc", activationBits: 6 }],
    skipLayers: ["two"],
  });
  assert.deepEqual(
    layers.map(({ name, unit, macs, weights, weightBits, activationBits }) =>
      [name, unit, macs, weights, weightBits, activationBits].join(" ")
    ),
    ["one one 768 12 8 8", "two two 2048 32  ", "pool fc    6", "fc fc 16 16 8 6"],
  );
  assert.deepEqual(units.map(({ trains, steps }) => [trains, steps]), [
    ["weights, weight scales, activation scales, biases", 300],
    ["", 0],
    ["weights, weight scales, activation scales, biases", 300],
  ]);
  const trains = (changes: Partial<Recipe>) => plan(changes).units.map((unit) => unit.trains);
  assert.equal(
    trains({ batchNorm: "live" })[0],
    "weights, weight scales, activation scales, batch norm (live)",
  );
  assert.equal(trains({ weightQuantizer: "ste" })[1], "weights, activation scales, biases");
  assert.equal(
    trains({ weightQuantizer: "ewgs", activationQuantizer: "lsqPlus" })[1],
    "weights, weight scales, activation scales and zero points, biases",
  );
  assert.equal(trains({ activationQuantizer: "dorefa" })[1], "weights, weight scales, biases");
  assert.deepEqual(trains({ method: "ptq" }), []);
});

Deno.test("describeRun() counts the inputs that go forward, and a training step as four of them", () => {
  const { seconds, memory } = plan({}, 5000);
  // 256 calibration inputs twice, 128 of them through the teacher and five students; both on 125 held-out ones; 1 ms each
  assert.ok(Math.abs(seconds.calibrate - (2 * 0.256 + 6 * 0.128 + 0.25)) < 1e-9);
  const fixed = plan({ activationExponent: 2 }).seconds.calibrate;
  assert.ok(Math.abs(fixed - (2 * 0.256 + 0.25)) < 1e-9);
  // However many calibrate, 128 at most choose the exponent.
  const many = plan({ calibrationSamples: 500 }).seconds.calibrate;
  assert.ok(Math.abs(many - (2 * 0.5 + 6 * 0.128 + 0.25)) < 1e-9);
  // three units of 50 likely steps share the network; 2 x 1750 rows, 3 x 125 held out, judged again
  assert.ok(
    Math.abs(seconds.distill - (4 * 0.8 + 3.5 + 0.375 + 0.25)) < 1e-9,
    `${seconds.distill}`,
  );
  assert.ok(Math.abs(seconds.evaluate - 10) < 1e-9);
  assert.equal(seconds.total, seconds.calibrate + seconds.distill + seconds.evaluate);
  assert.ok(Math.abs(plan({}, 5000, 0.032).seconds.total / seconds.total - 2) < 1e-9);
  // 1875 rows: x and one image of [8, 8, 8] or two of [8, 8, 4] for teacher and student, as float32
  assert.equal(memory.activations, 1875 * 4 * 64 * (4 + 2 * (4 + 8)));
  const host = plan({ memoryBudget: 1 }).memory;
  assert.deepEqual(host.place, { residence: "host", compact: true });
  assert.ok(host.activations < memory.activations);
  const small = plan({ batchSize: 8 }).memory.step;
  assert.ok(small > 8 * 4 * 64 * (4 + 8) && small < memory.step, `${small} < ${memory.step}`);
});

Deno.test("planText() is lines of plain text, one for each layer and each unit", () => {
  const text = planText(plan({ weightBits: 4, skipLayers: ["two"] }, 5000));
  const lines = text.split("\n");
  assert.equal(lines[0], "blockwise W4A8, a dry run: nothing is made");
  assert.equal(
    lines[1],
    "network      3 layers, 1 of them float, 2,832 multiply-accumulates an input, 60 weights",
  );
  assert.equal(
    lines[2],
    "samples      875 to train on, 2 versions of each; 125 held out; 5,000 to evaluate",
  );
  const words = (start: string) =>
    lines.filter((line) => line.startsWith(start)).map((line) => line.split(/ {2,}/).join("|"));
  assert.deepEqual(words("two"), [
    "two|Conv|two|2,048|32|float|float",
    "two|blockwise|1|2,048|0|0|16|nothing trains",
  ]);
  assert.deepEqual(words("pool"), ["pool|GlobalAveragePool|fc|-|-|-|8"]);
  assert.match(
    text,
    /\nmemory +activations of all samples at most \d+ MiB, float32 on the GPU; a tr/,
  );
  assert.match(text, /\ntime +about 17 s: calibration 2 s, training 6 s, evaluation 10 s\n/);
  assert.match(text, /16 inputs went forward in 16\.0 ms on none\\u\{a\}; kernels/);
  const host = planText(plan({ memoryBudget: 1 }));
  assert.match(host, /\nmemory .* at most \d MiB, float16 and codes in host memory; a tr/);
  assert.match(planText(plan({ method: "ptq" })), /\nnothing is trained\n/);
});

Deno.test("describeRun() of ranges at run time: 8 bits where layers read, nothing to calibrate", () => {
  const dynamic = plan({ method: "ptq", activationRanges: "dynamic", firstLastBits: 4 });
  assert.deepEqual(
    dynamic.layers.map((
      { name, weightBits, activationBits },
    ) => [name, weightBits, activationBits]),
    [["one", 4, 8], ["two", 8, 8], ["fc", 4, 8]],
  );
  // teacher and student on 125 held-out inputs; 1 ms each
  assert.ok(Math.abs(dynamic.seconds.calibrate - 0.25) < 1e-9);
  const squeezed = makeGraph(["N", 4, 8, 8], [
    node("GlobalAveragePool", "x", "a", {}, "pool"),
    node("Conv", "a v", "b", {}, "gate"),
    node("Conv", "x w", "c", {}, "conv"),
    node("Mul", "c b", "y"),
  ], { v: [4, 4, 1, 1], w: [4, 4, 1, 1] });
  const shared = plan({ method: "ptq", activationRanges: "dynamic" }, 0, 1, squeezed);
  assert.deepEqual(shared.layers.map(({ name }) => name), ["gate", "conv"], "pools stay float");
  const text = planText(dynamic);
  assert.match(text, /^ptq W8A8-dynamic, a dry run: nothing is made\n/);
  assert.match(
    text,
    /\nranges +of activations at run time, of what each layer reads: none is cali/,
  );
});

Deno.test("planRun() measures a forward pass, trains nothing and leaves no memory behind", async () => {
  const device = await testDevice();
  const before = device.liveBytes;
  const images = recogniseImages(
    ndArray("uint8", [40, 3, 8, 8], new Uint8Array(40 * 192)),
    { channels: 3, height: 8, width: 8 },
    "images",
  );
  const recipe = parseRecipe({});
  const { measured, seconds, samples } = await planRun(MODEL, { calibration: images }, recipe, {
    device,
  });
  assert.equal(device.liveBytes, before);
  assert.equal(measured.batch, 16);
  assert.ok(measured.seconds > 0 && measured.seconds < 10 && seconds.total > 0);
  assert.deepEqual(samples, { train: 35, copies: 2, heldOut: 5, evaluate: 0 });
  const aborted = planRun(MODEL, { calibration: images }, recipe, {
    device,
    signal: AbortSignal.abort(),
  });
  await assert.rejects(aborted, { name: "AbortError" });
});
