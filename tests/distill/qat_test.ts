// Training with labels on a small network with batch norm and a skip connection: what is trained is what is exported,
// bits fall in stages, and statistics are measured anew.
import assert from "node:assert/strict";
import type { Kernel } from "../../kernels/kernel.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import { calibrate, observerOf } from "../../src/distill/calibrate.ts";
import { createStudent } from "../../src/distill/create_student.ts";
import { distill } from "../../src/distill/distill.ts";
import { predict } from "../../src/distill/evaluate.ts";
import { RowSet } from "../../src/distill/frontier.ts";
import { NetworkValues, teacherValues } from "../../src/distill/inference.ts";
import { qatPlan } from "../../src/distill/methods/qat.ts";
import { IntegerNetwork } from "../../src/distill/integer_network.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { lowerBits, startAtBits } from "../../src/distill/progressive.ts";
import { parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import { reestimateBatchNorm } from "../../src/distill/reestimate_batch_norm.ts";
import type { Session } from "../../src/distill/session.ts";
import { BLOCKWISE, stagesFor } from "../../src/distill/stage.ts";
import { recogniseImages } from "../../src/data/image_set.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { fakeQuantizeArray } from "../../src/quant/fake_quantize.ts";
import { weightsOnGrid } from "../../src/quant/student.ts";
import { onTanhGrid } from "../../src/quant/tanh_weights.ts";
import { searchWeightQParams } from "../../src/quant/weight_search.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";
import { columnStatistics } from "../_reference_quant.ts";
import { runOrt } from "../formats/_ort.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "../graph/_graphs.ts";

const FILTER = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };
const NETWORK = makeGraph(["N", 3, 6, 6], [
  node("Conv", "x wa", "a", FILTER),
  node("Relu", "a", "u"),
  node("Conv", "u b.weight", "b", FILTER),
  node("BatchNormalization", batchNormInputs("b", "b"), "n"),
  node("Add", "n u", "s"),
  node("Relu", "s", "v"),
  node("Conv", "v c.weight", "c", FILTER),
  node("BatchNormalization", batchNormInputs("c", "c"), "m"),
  node("Relu", "m", "t"),
  node("GlobalAveragePool", "t", "p"),
  node("Flatten", "p", "f"),
  node("Gemm", "f wd", "y", { transB: 1 }),
], {
  wa: [4, 3, 3, 3],
  ...convBatchNorm("b", [4, 4, 3, 3]),
  ...convBatchNorm("c", [6, 4, 3, 3]),
  wd: [5, 6],
});
const COUNT = 24;
const IMAGES = ndArray("float32", [COUNT, 3, 6, 6], Float32Array.from(randomArray(1, COUNT * 108)));
const LABELS = Uint32Array.from({ length: COUNT }, (_, i) => i % 5);
const SMALL = {
  steps: 0,
  heldOut: 0,
  samples: COUNT,
  batchSize: 8,
  augment: { copies: 1, shift: 1, flip: true },
};

async function trained(recipe: Partial<Recipe>) {
  const seen: string[] = [], losses: number[] = [], kernels = new Set<string>();
  const device = new Proxy(await testDevice(), {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target);
      if (name === "prepare") {
        return (kernel: Kernel, bindings: Record<string, Tensor>) => {
          kernels.add(kernel.label);
          return target.prepare(kernel, bindings);
        };
      }
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const data = { calibration: IMAGES, calibrationLabels: LABELS };
  const { student } = await distill(NETWORK, data, { ...SMALL, method: "qat", ...recipe }, {
    device,
    onProgress: ({ stage, done, total, loss }) => {
      if (done === total) seen.push(`${stage} ${total}`);
      if (stage === "qat" && loss !== undefined) losses.push(loss);
    },
  });
  return { student, seen, losses, kernels };
}

const QUANTIZERS = [
  ["dorefa", "pact", 2],
  ["ewgs", "lsqPlus", 4],
  ["n2uq", "n2uq", 2],
] as const;

for (const [weightQuantizer, activationQuantizer, bits] of QUANTIZERS) {
  Deno.test(`distill() qat exports what it trained: ${weightQuantizer}, ${activationQuantizer}, ${bits} bits`, async () => {
    const width = { weightBits: bits, activationBits: bits };
    const { student, seen } = await trained({
      ...width,
      weightQuantizer,
      activationQuantizer,
      steps: 0,
      networkSteps: 10,
    });
    assert.deepEqual(seen.filter((stage) => stage.startsWith("qat")), ["qat 10"]);
    assert.ok(!seen.some((stage) => stage.startsWith("blockwise")));
    const { values } = student.weights.get("b.weight")!;
    const codes = new Set(values.data as Int8Array);
    // of each channel 2^bits; those that are mirrored have one of their own
    assert.ok(codes.size > 2 && codes.size <= 2 ** bits + 1, `${codes.size} codes`);
    if (weightQuantizer !== "ewgs") {
      const most = 2 ** bits - 1;
      assert.ok(
        [...codes].every((code) => code % 2 !== 0 && Math.abs(code) <= most),
        `${[...codes]}`,
      );
    }
    const thresholds = Array.from(student.activations, ([tensor, qparams]) => {
      const steps = qparams.thresholds?.map((value, i, all) => value - (all[i - 1] ?? 0)).slice(1);
      return `${tensor} ${steps === undefined ? "rounds" : new Set(steps).size > 1}`;
    });
    const learned = activationQuantizer === "n2uq" ? "true" : "rounds";
    const inner = ["u", "v", "t"].filter((tensor) =>
      student.activations.get(tensor)?.bits === bits
    );
    assert.ok(inner.length > 0 && thresholds.includes("x rounds"), `${thresholds}`);
    for (const tensor of inner) assert.ok(thresholds.includes(`${tensor} ${learned}`), tensor);
    const device = await testDevice();
    if (activationQuantizer === "n2uq") {
      assert.throws(() => new IntegerNetwork(device, student), /uniform grids/);
    }
    const network = prepareNetwork(student.graph, { ...width, firstLastBits: 8 }, false);
    const { initializers } = network.teacher.graph;
    using deployed = new NetworkValues(device, initializers, student.activations);
    const set = recogniseImages(IMAGES, { channels: 3, height: 6, width: 6 }, "images");
    const plain = { mean: [0], std: [1], scale: 1 };
    const simulated = await predict(device, network, deployed, set, plain);
    const { y } = await runOrt(exportOnnx(student), {
      x: { shape: IMAGES.shape, data: IMAGES.data },
    });
    // A value between two codes may go either way: such an image may differ in a code, the others by float32 sums.
    const far = y!.filter((value, i) => Math.abs(value - simulated[i]!) > 1e-4);
    assert.ok(far.length <= 5, `${far.length} of ${y!.length} logits differ`);
  });
}

Deno.test("distill() qat lets bits fall, shares the steps out, and ends at the recipe's", async () => {
  const recipe = { weightBits: 2, activationBits: 3, steps: 4, networkSteps: 10 };
  const { student, seen } = await trained({ ...recipe, progressive: [5, 4] });
  assert.deepEqual(seen.filter((stage) => stage.startsWith("qat")), ["qat 4", "qat 4", "qat 4"]);
  assert.deepEqual(
    seen.filter((stage) => /^blockwise/.test(stage)).length,
    3,
    "the blocks of each stage",
  );
  const bits = Array.from(student.weights.values(), (weight) => weight.bits);
  assert.deepEqual(bits, [8, 2, 2, 8]);
  assert.deepEqual(student.activations.get("u")!.quantMax, 7);
  assert.deepEqual(student.activations.get("x")!.quantMax, 255);
  const other = await trained({ ...recipe, progressive: [5, 3] });
  assert.notDeepEqual(other.student.weights, student.weights, "every bit width leaves its mark");
});

Deno.test("distill() qat learns with SGD", async () => {
  const recipe = {
    schedule: "step",
    warmup: 0.1,
    teacherWeight: 0,
    learningRate: 0.005,
    networkSteps: 60,
    weightBits: 4,
    activationBits: 4,
  } as const;
  const { losses, kernels } = await trained({ ...recipe, optimizer: "sgd" });
  assert.equal(losses.length, 6);
  assert.ok(losses.at(-1)! < 0.8 * losses[0]!, `${losses}`); // 0.5 when written
  const optimizers = [...kernels].filter((label) => /^(sgd|adam) /.test(label));
  assert.match(optimizers.join(), /^sgd \d+$/);
});

Deno.test("distill() qat: the recipe's learning rate is the network's, not the blocks'", async () => {
  const recipe = { weightBits: 4, activationBits: 4, steps: 5 } as const;
  const student = async (changes: Partial<Recipe>) =>
    (await trained({ ...recipe, ...changes })).student.weights;
  const blocks = await student({ networkSteps: 0 });
  assert.deepEqual(await student({ networkSteps: 0, learningRate: 0.5 }), blocks);
  assert.notDeepEqual(
    await student({ networkSteps: 5, learningRate: 0.5 }),
    await student({ networkSteps: 5 }),
  );
});

Deno.test("qatPlan() shares the recipe's steps out, and takes its own where there are none", () => {
  const bits = { method: "qat", weightBits: 2, activationBits: 2 } as const;
  const plan = (changes: Partial<Recipe>) => {
    const { blocks, networkSteps } = qatPlan(
      parseRecipe({ ...bits, ...changes }),
      4375,
      64,
    );
    return [blocks.steps, networkSteps];
  };
  assert.deepEqual(plan({ steps: 7, networkSteps: 10, progressive: [4, 3] }), [3, 4]);
  assert.deepEqual(plan({}), [300, 1915]);
  assert.deepEqual(plan({ weightBits: 4, activationBits: 4 }), [300, 958]);
  assert.deepEqual(plan({ weightBits: 8, activationBits: 8 }), [300, 342]);
  assert.deepEqual(plan({ steps: 50, networkSteps: 0 }), [50, 0]);
});

Deno.test("startAtBits() and lowerBits() search weights anew and keep what scales have learnt", async () => {
  await withSession({ weightBits: 2, activationBits: 3, progressive: [4] }, async (session) => {
    const { student, device, network, teacher, samples, recipe } = session;
    const scaleAt = async (activationBits: number) => {
      const bits = prepareNetwork(
        NETWORK,
        { weightBits: 8, activationBits, firstLastBits: 8 },
        true,
      );
      const options = { batch: 8, samples: COUNT, ...observerOf(recipe) };
      const { states } = await calibrate(device, bits, teacher, samples.train, options);
      return states.find(({ tensor }) => tensor === "u")!.scale;
    };
    const layer = "Conv_b";
    const grids = (bits: number) => {
      const { latent, axis } = student.layers.get(layer)!;
      return searchWeightQParams(latent, axis, { bits, grid: "flip" }).scale.map(Math.log);
    };
    const stage = await startAtBits(session, 4);
    assert.deepEqual([stage.recipe.weightBits, stage.recipe.activationBits], [4, 4]);
    assert.equal(student.layers.get(layer)!.bits, 4);
    assert.deepEqual(student.layers.get(layer)!.logScale, grids(4));
    const u = student.activations.get("u")!;
    assert.deepEqual([u.bits, u.quantMax, u.scale], [4, 15, await scaleAt(4)]);
    student.setActivation({ ...u, scale: u.scale * 1.5 });
    const old = student.layers.get(layer)!;
    const doubled = ndArray("float32", old.latent.shape, old.latent.data.map((w) => 2 * w));
    student.setLayer({ ...old, latent: doubled, oddCodes: true });
    const last = await lowerBits(session);
    const after = student.activations.get("u")!;
    assert.deepEqual([after.bits, after.quantMax], [3, 7]);
    assertClose([after.scale], [1.5 * await scaleAt(3)], { rtol: 1e-6, atol: 0 }, "scale");
    const lower = student.layers.get(layer)!;
    assert.deepEqual([lower.bits, lower.oddCodes], [2, false]);
    assert.deepEqual(lower.logScale, grids(2));
    assert.equal(student.layers.get("Conv_a")!.bits, 8, "the first layer stays");
    assert.equal(last.recipe.batchNorm, "live");
    assert.deepEqual(last.network.activationBits, network.activationBits);
  });
});

Deno.test("reestimateBatchNorm() gives the statistics behind the quantized layers before", async () => {
  const bits = { weightBits: 3, activationBits: 8, firstLastBits: 3 };
  await withSession(bits, async (session) => {
    const { student } = session;
    const before = student.layers.get("Conv_c")!;
    // odd codes, which the grid alone does not tell
    student.setLayer(onTanhGrid(student.layers.get("Conv_z")!));
    await reestimateBatchNorm(session);
    // A first layer of one tap: its statistics follow from the inputs alone.
    const { batchNorm, latent } = student.layers.get("Conv_z")!;
    const { scale, zeroPoint, quantMin, quantMax } = student.activations.get("x")!;
    const input = fakeQuantizeArray(
      ndArray("float32", [COUNT * 36, 3], channelsLast()),
      {
        scale: Float32Array.of(scale),
        zeroPoint: Int32Array.of(zeroPoint),
        quantMin: Int32Array.of(quantMin),
        quantMax: Int32Array.of(quantMax),
      },
    );
    const weights = weightsOnGrid(student.layers.get("Conv_z")!).data;
    const rows = COUNT * 36;
    const z = Float64Array.from({ length: rows * 5 }, (_, i) => {
      const row = Math.floor(i / 5), o = i % 5;
      return [0, 1, 2].reduce((sum, k) => sum + input.data[row * 3 + k]! * weights[o * 3 + k]!, 0);
    });
    const { mean, variance } = columnStatistics(z, rows, 5);
    assertClose(batchNorm!.mean, mean, { rtol: 1e-4, atol: 1e-5 }, "mean"); // float32 sums
    // the variance within a batch is unbiased
    const unbiased = variance.map((v) => v * 288 / 287);
    assertClose(batchNorm!.variance, unbiased, { rtol: 1e-3, atol: 0 }, "variance");
    assert.equal(latent.shape[0], 5);
    const after = student.layers.get("Conv_c")!;
    assert.notDeepEqual(after.batchNorm!.mean, before.batchNorm!.mean);
    assert.deepEqual(
      { ...after, batchNorm: undefined, logScale: [...after.logScale] },
      { ...before, batchNorm: undefined, logScale: [...before.logScale] },
      "nothing but statistics changes",
    );
    assert.deepEqual(after.batchNorm!.gamma, before.batchNorm!.gamma);
  }, ONE_TAP);
});

Deno.test("distill() measures batch norm anew where the recipe says so", async () => {
  const recipe = {
    weightBits: 3,
    activationBits: 8,
    steps: 0,
    networkSteps: 3,
    batchNorm: "live",
  } as const;
  const plain = await trained(recipe),
    again = await trained({ ...recipe, reestimateBatchNorm: true });
  assert.deepEqual(
    again.student.weights.get("b.weight")!.values,
    plain.student.weights.get("b.weight")!.values,
  );
  assert.notDeepEqual(
    again.student.weights.get("b.weight")!.scale,
    plain.student.weights.get("b.weight")!.scale,
  );
});

Deno.test("stagesFor() takes the recipe's warm-up and schedule", () => {
  const [stage] = stagesFor([BLOCKWISE], parseRecipe({ warmup: 0.25, schedule: "step" }));
  assert.deepEqual([stage!.optimization.warmup, stage!.optimization.schedule], [0.25, "step"]);
  const [own] = stagesFor([BLOCKWISE], parseRecipe({ warmup: null }));
  assert.equal(own!.optimization.warmup, BLOCKWISE.optimization.warmup);
});

/** As NETWORK, with a first layer of one tap and a batch norm. */
const ONE_TAP = makeGraph(["N", 3, 6, 6], [
  node("Conv", "x z.weight", "z", { kernel_shape: [1, 1] }),
  node("BatchNormalization", batchNormInputs("z", "z"), "zn"),
  node("Relu", "zn", "zr"),
  node("Conv", "zr wa", "a", FILTER),
  node("Relu", "a", "u"),
  node("Conv", "u c.weight", "c", FILTER),
  node("BatchNormalization", batchNormInputs("c", "c"), "m"),
  node("Relu", "m", "t"),
  node("GlobalAveragePool", "t", "p"),
  node("Flatten", "p", "f"),
  node("Gemm", "f wd", "y", { transB: 1 }),
], {
  ...convBatchNorm("z", [5, 3, 1, 1]),
  wa: [4, 5, 3, 3],
  ...convBatchNorm("c", [6, 4, 3, 3]),
  wd: [5, 6],
});

/** A session on the images, with a calibrated student. */
async function withSession(
  changes: Partial<Recipe>,
  test: (session: Session) => Promise<void>,
  model = NETWORK,
): Promise<void> {
  const device = await testDevice();
  const recipe = parseRecipe({ ...SMALL, method: "qat", ...changes });
  const network = prepareNetwork(model, recipe, true);
  using teacher = teacherValues(device, network);
  using train = new RowSet(device, COUNT, [6, 6, 3], "inputs");
  train.upload(0, channelsLast());
  using heldOut = new RowSet(device, 0, [6, 6, 3], "held out");
  const options = { batch: 8, samples: COUNT, ...observerOf(recipe) };
  const { states: activations } = await calibrate(device, network, teacher, train, options);
  await test({
    device,
    network,
    student: createStudent(network, activations, recipe),
    teacher,
    samples: { train, clean: COUNT, heldOut, black: new Float32Array(3), labels: LABELS },
    recipe,
    batch: 8,
    frontier: { residence: "gpu", compact: false },
    report: () => {},
    compiling: {},
    rolledBack: new Set(),
  });
}

function channelsLast(): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: COUNT * 108 }, (_, i) => {
    const c = i % 3, p = Math.floor(i / 3) % 36, n = Math.floor(i / 108);
    return IMAGES.data[n * 108 + c * 36 + p]!;
  });
}
