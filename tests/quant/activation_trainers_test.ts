import assert from "node:assert/strict";
import { STATE_SIZE } from "../../kernels/schedule.ts";
import { padded } from "../../kernels/kernel.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { linearLayout } from "../../src/graph/weight_layout.ts";
import { FlatLayout, FlatParameters } from "../../src/optim/flat_parameters.ts";
import {
  ActivationParameters,
  type ActivationTraining,
} from "../../src/quant/activation_parameters.ts";
import { type ActivationState, Student } from "../../src/quant/student.ts";
import { TrainingParameters } from "../../src/quant/training_parameters.ts";
import { assertClose, forEachTarget, testDevice } from "../_gpu.ts";
import { quantizedWeight } from "../_reference_quant.ts";

/** Behind a ReLU, and with values below 0. */
const ONE_SIDED = quantizer("relu", 0), TWO_SIDED = quantizer("sum", 6);
/** Sums of the gradients of scale and zero point: the scale falls, the zero point rises. */
const SCALE_TERMS = [2, 3, -1], ZERO_POINT_TERMS = [-1, -1, -1];
/** Factor 1, and Adam's corrections for its first step. */
const FIRST_STEP = [0, 1, 0.1, 0.01, ...Array<number>(STATE_SIZE - 4).fill(0)];
const RATE = 2 ** -6;

forEachTarget("ActivationParameters move what each quantizer learns, once", async (device) => {
  const step = (training: Parameters<typeof stepOnce>[1]) => stepOnce(device, training);
  const tolerance = { rtol: 1e-5, atol: 0 }; // float32 exp and log
  const still = { scale: ONE_SIDED.scale, zeroPoint: 0 };
  for (const activationQuantizer of ["lsq", "ewgs"] as const) {
    for (const { scale, zeroPoint } of (await step({ activationQuantizer })).states) {
      assertClose([scale], [still.scale * Math.exp(-RATE)], tolerance, activationQuantizer);
      assert.ok(zeroPoint === 0 || zeroPoint === 6);
    }
  }
  // 40 steps of the first step's size: the zero point has moved by more than a half, the scale by 40 rates
  const plus = await step({ activationQuantizer: "lsqPlus", steps: 40 });
  assert.deepEqual(plus.states.map(({ zeroPoint }) => zeroPoint), [1, 7]);
  assert.ok(plus.states.every(({ scale }) => scale < still.scale));
  const pact = await step({ activationQuantizer: "pact" });
  // the bound, 3, falls by RATE of the range; decay takes 5e-4 of that rate times the bound
  const bound = 1 - 3 * RATE * 5e-4 - RATE;
  assertClose([pact.states[0]!.scale], [still.scale * bound], tolerance, "pact, upper bound");
  assertClose(
    [pact.states[1]!.scale],
    [still.scale * Math.exp(-RATE)],
    tolerance,
    "pact, both bounds",
  );
  assert.deepEqual(pact.states.map(({ zeroPoint }) => zeroPoint), [0, 6]);
  // decay in units of the rate: 0.5 of the upper bound, of each bound of a range, and of no scale
  const weightDecay = 0.5, absolute = true;
  const decayed = await step({ activationQuantizer: "range", absolute, weightDecay });
  const free = await step({ activationQuantizer: "range", absolute });
  for (const [i, { scale }] of decayed.states.entries()) {
    const bounds = i === 0 ? [3] : [-1.2, 1.8]; // 0.2 * (quantMin - zeroPoint), 0.2 * (quantMax - zeroPoint)
    const width = Math.max(...bounds) - Math.min(0, ...bounds);
    const lost = RATE * weightDecay * width / 15;
    assertClose([free.states[i]!.scale - scale], [lost], { rtol: 1e-3, atol: 0 }, `decay ${i}`);
  }
  assert.deepEqual(
    (await step({ activationQuantizer: "lsq", absolute, weightDecay })).states,
    (await step({ activationQuantizer: "lsq", absolute })).states,
  );
  const dorefa = await step({ activationQuantizer: "dorefa" });
  assertClose(
    dorefa.states.map(({ scale }) => scale),
    [still.scale, still.scale],
    tolerance,
    "fixed",
  );
  assert.deepEqual(dorefa.gradients, [undefined, undefined]);
  assert.deepEqual(pact.gradients.map((gradient) => gradient?.kind), ["clipped", "clipped"]);
  assert.equal((await step({ activationQuantizer: "ewgs" })).gradients[0]?.kind, "scaled");
});

forEachTarget(
  "ActivationParameters learn thresholds where a grid has few levels",
  async (device) => {
    const wide = { ...quantizer("wide", 0), quantMax: 31, bits: 5 };
    const input = { ...quantizer("input", 0), learned: false };
    const student = new Student([], [ONE_SIDED, TWO_SIDED, wide, input]);
    const layout = new FlatLayout();
    const state = device.fromArray([STATE_SIZE], FIRST_STEP);
    const tensors = ["relu", "sum", "wide", "input"];
    const channels = new Map(tensors.map((tensor) => [tensor, 3]));
    const train = async (
      activationQuantizer: ActivationTraining["activationQuantizer"],
      { rate = RATE, apart = 1 } = {},
    ) => {
      using activations = new ActivationParameters(device, student, channels, layout, state, {
        rate,
        ...(activationQuantizer && { activationQuantizer }),
      });
      const start = new Float32Array(layout.size);
      activations.writeStart(start);
      using parameters = new FlatParameters(device, layout, start);
      const quantizers = tensors.map((tensor) => activations.quantizer(tensor)!);
      for (const { thresholds } of quantizers) {
        if (!thresholds?.sums) continue;
        // the scale falls; the second knot wants to move away from the first
        const terms = new Float32Array(17 * 4);
        terms.set([5], 0);
        terms.set([apart], 4);
        terms.set([-apart], 8);
        device.uploadRaw(thresholds.sums, terms);
      }
      using plan = new Plan(device);
      activations.recordForward(plan, parameters.values);
      activations.recordBackward(plan, parameters.values, parameters.gradients);
      parameters.recordStep(plan, state, { beta1: 0.9, beta2: 0.99 });
      plan.replay();
      activations.store(await parameters.read(), student);
      return quantizers.map(({ thresholds }) => thresholds && thresholds.sums !== undefined);
    };
    assert.deepEqual(await train("n2uq"), [true, true, undefined, undefined]);
    const scale = ONE_SIDED.scale;
    const tolerance = { rtol: 1e-5, atol: 1e-6 }; // float32 exp, log and sums
    for (const before of [ONE_SIDED, TWO_SIDED]) {
      const { tensor, zeroPoint } = before;
      const after = student.activations.get(tensor)!;
      assertClose([after.scale], [scale * Math.exp(-RATE)], tolerance, tensor);
      // the start has gradient 0; the first interval, in front of the second knot, grows by a rate of the old scale
      const moved = (i: number) => (i - zeroPoint) * scale + (i > 0 ? RATE * scale : 0);
      const knots = Array.from({ length: 16 }, (_, i) => moved(i));
      assertClose(after.knots!, knots, tolerance, `knots of ${tensor}`);
      const middles = knots.slice(1).map((knot, i) => (knot + knots[i]!) / 2);
      assertClose(after.thresholds!, middles, tolerance, `thresholds of ${tensor}`);
    }
    for (const tensor of ["wide", "input"]) {
      assert.equal(student.activations.get(tensor)!.thresholds, undefined);
    }
    // another quantizer later on leaves them as they are
    const learned = student.activations.get("sum")!;
    assert.deepEqual(await train(undefined), [false, false, undefined, undefined]);
    const { knots, thresholds, scale: kept } = student.activations.get("sum")!;
    assertClose(knots!, learned.knots!, tolerance, "knots stay");
    assertClose(thresholds!, learned.thresholds!, tolerance, "thresholds stay");
    assertClose([kept], [learned.scale], tolerance, "the scale stays");
    // a step of more than the interval: it stays open by 1e-3 of half the range
    await train("n2uq", { rate: 3, apart: -1 });
    const [first, second] = student.activations.get("sum")!.knots!;
    assertClose([second! - first!], [5e-4 * 15 * kept], { rtol: 1e-3, atol: 0 }, "shortest");
    device.release(state);
  },
);

Deno.test("ActivationParameters and weights step scales by SGD as LSQ does", async () => {
  const device = await testDevice();
  const sgd = { activationQuantizer: "lsq", optimizer: "sgd", absolute: true } as const;
  const { states } = await stepOnce(device, { ...sgd, features: new Map([["relu", 300]]) });
  // momentum of the first step: 1 + 0.9; ds = rate * gradient / sqrt(features * quantMax)
  const step = RATE * 1.9 * 4 / Math.sqrt(300 * 15) / ONE_SIDED.scale;
  assertClose(
    [Math.log(states[0]!.scale / ONE_SIDED.scale)],
    [-step],
    { rtol: 1e-4, atol: 0 },
    "step",
  );

  const latent = Float32Array.of(0.1, -0.3, 0.62, 0.9), dw = [1, -2, 0.5, 3], scale = 0.25;
  const layer = {
    node: "gemm",
    weight: "w",
    input: "x",
    latent: ndArray("float32", [1, 4], latent),
    layout: linearLayout([1, 4]),
    axis: 0,
    bits: 3,
    logScale: Float32Array.of(Math.log(scale)),
    quantMin: Int32Array.of(-4),
    quantMax: Int32Array.of(3),
  };
  const student = new Student([layer], []);
  const state = device.fromArray([STATE_SIZE], FIRST_STEP);
  {
    using parameters = new TrainingParameters(device, student, ["gemm"], new Map(), state, {
      rates: { weights: 0, weightScales: RATE, activationScales: 0, biases: 0, absolute: true },
      weightQuantizer: "lsq",
      optimizer: "sgd",
      batchNormMomentum: 0.1,
      roundingRegularizer: 0,
      beta1: 0.9,
      beta2: 0.99,
    });
    using plan = new Plan(device);
    parameters.recordStep(plan);
    device.upload(parameters.parameter("w")!.gradient!, dw);
    plan.replay();
    await parameters.store();
  }
  let gradient = 0;
  latent.forEach((value, i) => {
    const { q, v, inside } = quantizedWeight(value, scale, -4, 3);
    gradient += dw[i]! * (q - (inside ? v : 0));
  });
  const moved = student.layers.get("gemm")!.logScale[0]! - Math.log(scale);
  const expected = -RATE * 1.9 * gradient / Math.sqrt(4 * 3) / scale;
  assertClose([moved], [expected], { rtol: 1e-4, atol: 1e-7 }, "log-scale");
  device.release(state);
});

/** Steps the quantizers with the gradients above, once or as often as `steps` says. */
async function stepOnce(
  device: Device,
  { steps = 1, ...training }: Partial<ActivationTraining> & { readonly steps?: number },
) {
  const student = new Student([], [ONE_SIDED, TWO_SIDED]);
  const layout = new FlatLayout();
  const state = device.fromArray([STATE_SIZE], FIRST_STEP);
  const channels = new Map([["relu", 3], ["sum", 3]]);
  using activations = new ActivationParameters(device, student, channels, layout, state, {
    rate: RATE,
    ...training,
  });
  const start = new Float32Array(layout.size);
  activations.writeStart(start);
  using parameters = new FlatParameters(device, layout, start);
  const quantizers = ["relu", "sum"].map((tensor) => activations.quantizer(tensor)!);
  for (const { scaleSums, zeroPointSums } of quantizers) {
    if (scaleSums) device.uploadRaw(scaleSums, padTo(SCALE_TERMS));
    if (zeroPointSums) device.uploadRaw(zeroPointSums, padTo(ZERO_POINT_TERMS));
  }
  using plan = new Plan(device);
  activations.recordForward(plan, parameters.values);
  activations.recordBackward(plan, parameters.values, parameters.gradients);
  const { optimizer = "adam" } = training;
  parameters.recordStep(plan, state, { optimizer, beta1: 0.9, beta2: 0.99 });
  for (let i = 0; i < steps; i++) plan.replay();
  activations.store(await parameters.read(), student);
  device.release(state);
  return {
    states: ["relu", "sum"].map((tensor) => student.activations.get(tensor)!),
    gradients: quantizers.map(({ gradient }) => gradient),
  };
}

function quantizer(tensor: string, zeroPoint: number): ActivationState {
  const grid = { quantMin: 0, quantMax: 15, bits: 4 };
  return { tensor, learned: true, scale: Math.fround(0.2), zeroPoint, ...grid };
}

function padTo(values: readonly number[]): Float32Array<ArrayBuffer> {
  const result = new Float32Array(padded(values.length));
  result.set(values);
  return result;
}
