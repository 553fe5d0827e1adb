import assert from "node:assert/strict";
import type { Kernel } from "../../kernels/kernel.ts";
import { createStudent } from "../../src/distill/create_student.ts";
import { partBetween, teacherValues } from "../../src/distill/inference.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { DivergedError, stepKernels, train, type TrainingRun } from "../../src/distill/training.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import type { Student } from "../../src/quant/student.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";
import { batchNormInputs, convBatchNorm, makeGraph, node } from "../graph/_graphs.ts";

const MODEL = makeGraph(["N", 4, 3, 3], [
  node("Conv", "x bn.weight", "c"),
  node("BatchNormalization", batchNormInputs("c", "bn"), "n"),
  node("Relu", "n", "y"),
], convBatchNorm("bn", [5, 4, 1, 1]));
const BITS = { weightBits: 3, activationBits: 8, firstLastBits: 3 };

Deno.test("train() lowers the loss, the same way twice", async () => {
  const first = await run(), second = await run();
  const mean = (values: Float32Array) => values.reduce((a, b) => a + b, 0) / values.length;
  const before = mean(first.losses.slice(0, 5)), after = mean(first.losses.slice(-5));
  assert.equal(first.losses.length, 60);
  assert(after < 0.7 * before, `${before} to ${after}`);
  assert.deepEqual(second.losses, first.losses);
  assert.deepEqual([...second.student.layers], [...first.student.layers]);
  assert.deepEqual(first.seen, [10, 20, 30, 40, 50, 60]);
});

for (const batchNorm of ["live", "folded"] as const) {
  Deno.test(`train() learns the same from an error fused into the layer, batch norm ${batchNorm}`, async () => {
    const fused = await run({}, 0.25, batchNorm);
    // with other losses, here none, the layer makes its tensor and the error is a pass of its own
    const apart = await run({ recordLosses: () => {} }, 0.25, batchNorm);
    // 60 steps of float32 sums in another order
    assertClose(fused.losses, apart.losses, { rtol: 1e-3, atol: 0 }, "losses");
  });
}

for (const weightQuantizer of ["lsq", "softRounding"] as const) {
  Deno.test(`stepKernels() gives the kernels that train() runs, ${weightQuantizer}`, async () => {
    const ran = new Set<string>();
    const device = new Proxy(await testDevice(), {
      get(target, name) {
        const value: unknown = Reflect.get(target, name, target);
        if (name === "prepare") {
          return (kernel: Kernel, bindings: Record<string, Tensor>) => {
            ran.add(kernel.code);
            return target.prepare(kernel, bindings);
          };
        }
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
    let kernels: readonly Kernel[] = [];
    await run({ device, weightQuantizer }, 0.25, "live", (one) => kernels = stepKernels(one));
    assert.ok(ran.size > 5);
    assert.deepEqual(new Set(kernels.map(({ code }) => code)), ran);
  });
}

Deno.test("train() leaves the student alone in 0 steps", async () => {
  const { student, start, losses } = await run({ steps: 0 });
  assert.deepEqual([...student.layers], start);
  assert.equal(losses.length, 0);
});

Deno.test("train() stops when the loss is not finite, and when asked to", async () => {
  await assert.rejects(
    () => run({}, NaN),
    (error) =>
      error instanceof DivergedError && /loss of "y" is NaN at step 10/.test(error.message),
  );
  await assert.rejects(() => run({ signal: AbortSignal.abort() }), { name: "AbortError" });
});

Deno.test("train() shows who watches the student as it is then, and ends when told to", async () => {
  let student: Student | undefined;
  const seen: [number, unknown][] = [];
  const latent = () => Array.from(student!.layers.values(), (layer) => layer.latent.data);
  const every = 15;
  const watch = (last: number) => ({
    every,
    stops: (done: number) => {
      seen.push([done, latent()]);
      return Promise.resolve(done >= last);
    },
  });
  const look = (one: TrainingRun) => student = one.student;
  const ended = await run({ watch: watch(40) }, 0.25, "live", look);
  // in whole looks of ten steps
  assert.deepEqual(seen.map(([done]) => done), [20, 40]);
  assert.equal(ended.losses.length, 40);
  assert.deepEqual(seen[1]![1], latent(), "the last that was seen is what is kept");
  assert.notDeepEqual(seen[0]![1], seen[1]![1]);
  const whole = await run({}, 0.25, "live");
  assert.deepEqual(ended.losses, whole.losses.slice(0, 40), "watching changes nothing");
  seen.length = 0;
  const watched = await run({ watch: watch(99) }, 0.25, "live", look);
  assert.deepEqual([...watched.student.layers], [...whole.student.layers]);
  assert.deepEqual(seen.map(([done]) => done), [20, 40], "not at the end, where all is done");
});

/** Trains a copy of the network's only layer towards what it gave before it was quantized. */
async function run(
  changes: Partial<TrainingRun> = {},
  target = 0.25,
  batchNorm: "live" | "folded" = "live",
  look: (run: TrainingRun) => void = () => {},
): Promise<{
  losses: Float32Array;
  student: Student;
  start: unknown;
  seen: number[];
}> {
  const device: Device = await testDevice();
  const network = prepareNetwork(MODEL, BITS, batchNorm === "live");
  const quantizer = { scale: 0.05, zeroPoint: 0, quantMin: 0, quantMax: 255, bits: 8 };
  const student = createStudent(
    network,
    ["x", "y"].map((tensor) => ({ tensor, learned: true, ...quantizer })),
    { method: "blockwise", weightGrid: "auto", weightObserver: "mse" },
  );
  const start = [...student.layers];
  const batch = 8, seen: number[] = [];
  const x = device.fromArray([batch, 3, 3, 4], randomArray(1, batch * 36));
  const aim = randomArray(2, batch * 45).map((v) => Math.abs(v) * target);
  const teacher = device.fromArray([batch, 3, 3, 5], aim);
  const weight = device.fromArray([1], [1]);
  const steps = changes.steps ?? 60;
  using constants = teacherValues(device, network);
  try {
    const run: TrainingRun = {
      device,
      student,
      part: partBetween(network.trained, ["x"], ["y"]),
      layers: ["Conv_c"],
      constants,
      steps,
      batch,
      rates: { weights: 0.05, weightScales: 0.005, activationScales: 0.005, biases: 0.02 },
      weightQuantizer: "lsq",
      batchNormLiveSteps: 30,
      keep: new Set(["y"]),
      terms: 1,
      onStep: (done) => seen.push(done),
      inputs: () => new Map<string, Tensor>([["x", x]]),
      tensorErrors: () => new Map([["y", { teacher, weight, term: 0 }]]),
      ...changes,
    };
    look(run);
    const losses = await train(run);
    return { losses, student, start, seen };
  } finally {
    for (const tensor of [x, teacher, weight]) device.release(tensor);
  }
}
