import assert from "node:assert/strict";
import { STATE_SIZE } from "../../kernels/schedule.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { convLayout, linearLayout } from "../../src/graph/weight_layout.ts";
import { fakeQuantizeArray } from "../../src/quant/fake_quantize.ts";
import { type LayerState, rootMeanSquare, Student } from "../../src/quant/student.ts";
import {
  type LearningRates,
  TrainingParameters,
  type WeightQuantizer,
} from "../../src/quant/training_parameters.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";
import { awayFromThresholds } from "../_reference_quant.ts";

const NAMES = ["conv", "depthwise", "gemm"] as const;
const NO_RATES: LearningRates = { weights: 0, weightScales: 0, activationScales: 0, biases: 0 };
/** Adam's first step at rate factor 1: m / (1 - beta1) is the gradient itself. */
const FIRST_STEP = [0, 1, 0.1, 0.01, 1, 2, 0];

forEachTarget("TrainingParameters quantizes weights as the host does", async (device) => {
  const student = makeStudent();
  await withParameters(device, student, {}, async ({ parameters, forward }) => {
    forward();
    for (const layer of student.layers.values()) {
      const w = await device.read(parameters.parameter(layer.weight)!.value);
      // the scale is exp of a float32 on either side: a few units in the last place
      const tolerance = { rtol: 1e-6, atol: 0 };
      assertClose(w, hostWeights(layer), tolerance, layer.node);
    }
  });
});

forEachTarget("TrainingParameters.store() returns what was loaded", async (device) => {
  for (const weightQuantizer of ["lsq", "ste"] as const) {
    const student = makeStudent(), before = makeStudent();
    await withParameters(device, student, { weightQuantizer }, async ({ parameters, forward }) => {
      forward();
      await parameters.store();
    });
    assert.deepEqual([...student.layers.values()], [...before.layers.values()]);
    for (const [tensor, state] of before.activations) {
      const after = student.activations.get(tensor)!;
      // exp(log(scale)) in float32
      assert(Math.abs(after.scale / state.scale - 1) < 1e-6, tensor);
      assert.deepEqual({ ...after, scale: 0 }, { ...state, scale: 0 });
    }
    assert.equal(student.activations.get("x")!.scale, before.activations.get("x")!.scale);
  }
});

const GROUPS = ["weights", "weightScales", "activationScales", "biases"] as const;

for (const group of GROUPS) {
  forEachTarget(
    `TrainingParameters steps only the ${group} when the rest has rate 0`,
    async (device) => {
      const student = makeStudent(), before = makeStudent();
      const rate = 2 ** -10;
      const rates = { ...NO_RATES, [group]: rate };
      await withParameters(
        device,
        student,
        { rates },
        async ({ parameters, forward, step, fill }) => {
          forward();
          fill();
          step();
          await parameters.store();
        },
      );
      const moved = (a: ArrayLike<number>, b: ArrayLike<number>) =>
        Array.from(a).filter((value, i) => value !== b[i]).length;
      for (const [name, layer] of student.layers) {
        const old = before.layers.get(name)!;
        const latent = moved(layer.latent.data, old.latent.data);
        const scales = moved(layer.logScale, old.logScale);
        const { bias, batchNorm } = layer;
        const shift = batchNorm
          ? moved(batchNorm.beta, old.batchNorm!.beta) +
            moved(batchNorm.gamma, old.batchNorm!.gamma)
          : moved(bias!, old.bias!);
        assert.deepEqual(
          [latent > 0, scales > 0, shift > 0],
          [group === "weights", group === "weightScales", group === "biases"],
          name,
        );
        if (group === "weights") {
          // Adam's first step is the rate, here in units of the weights' root mean square
          const expected = rate * rootMeanSquare(old.latent.data);
          const steps = layer.latent.data.map((value, i) => Math.abs(value - old.latent.data[i]!));
          const largest = Math.max(...steps);
          assertClose([largest], [expected], { rtol: 1e-3, atol: 0 }, `step of ${name}`);
        }
      }
      const changed = student.activations.get("r")!.scale !== before.activations.get("r")!.scale;
      assert.equal(changed || group !== "activationScales", true);
      if (group === "activationScales") {
        // the gradient is positive, so the scale shrinks by exp(-rate)
        const ratio = student.activations.get("r")!.scale / before.activations.get("r")!.scale;
        assertClose([ratio], [Math.exp(-rate)], { rtol: 1e-5, atol: 0 }, "scale");
      }
      assert.equal(
        student.activations.get("x")!.scale,
        before.activations.get("x")!.scale,
        "fixed",
      );
    },
  );
}

forEachTarget("TrainingParameters learns rounding", async (device) => {
  const student = makeStudent(), before = makeStudent();
  const options = {
    weightQuantizer: "softRounding" as const,
    rates: { weights: 0.5, weightScales: 1, activationScales: 0, biases: 0 },
  };
  const pushes = new Map<string, Float64Array>();
  await withParameters(device, student, options, async ({ parameters, forward, step }) => {
    forward();
    for (const layer of before.layers.values()) {
      const { value, gradient } = parameters.parameter(layer.weight)!;
      const w = await device.read(value);
      const clipped = codes(layer).map(({ code, scale, low, high }) =>
        Math.min(Math.max(code, low), high) * scale
      );
      // h starts at the fraction: float32 logarithm, exponential and quotient
      assertClose(w, clipped, { rtol: 1e-5, atol: 1e-6 }, `${layer.node} at the start`);
      const push = randomArray(9, w.length).map((v) => v > 0 ? 1 : -1);
      pushes.set(layer.node, push);
      device.upload(gradient!, push);
    }
    step();
    for (let i = 0; i < 30; i++) {
      forward();
      step();
    }
    await parameters.store();
    await parameters.store(); // storing twice is as once
  });
  for (const layer of student.layers.values()) {
    const old = before.layers.get(layer.node)!;
    assert.deepEqual(layer.logScale, old.logScale, "scales stay");
    const push = pushes.get(layer.node)!;
    const expected = codes(old).map(({ code, scale, low, high }, i) =>
      // a weight beyond the grid has no gradient, and ends at its bound
      Math.min(Math.max(Math.floor(code) + (push[i]! < 0 ? 1 : 0), low), high) * scale
    );
    const stored = codes(layer).map(({ code, scale, low, high }) =>
      Math.min(Math.max(Math.round(code), low), high) * scale
    );
    assertClose(stored, expected, { rtol: 1e-6, atol: 0 }, layer.node);
  }
});

forEachTarget("TrainingParameters.store() keeps learned rounding on the grid", async (device) => {
  const grid = makeStudent();
  // weights that are multiples of their scale but for the rounding to float32
  for (const layer of makeStudent().layers.values()) {
    const latent = ndArray("float32", layer.latent.shape, hostWeights(layer));
    grid.setLayer({ ...layer, latent });
  }
  const before = new Map(grid.layers);
  await withParameters(device, grid, { weightQuantizer: "softRounding" }, async (run) => {
    run.forward();
    await run.parameters.store();
  });
  for (const layer of grid.layers.values()) {
    const expected = before.get(layer.node)!.latent.data;
    assertClose(layer.latent.data, expected, { rtol: 1e-6, atol: 0 }, layer.node);
  }
});

forEachTarget("TrainingParameters gives its memory back", async (device) => {
  const start = device.liveBytes;
  await withParameters(device, makeStudent(), {}, async ({ forward, step }) => {
    forward();
    step();
    await device.synchronize();
  });
  assert.equal(device.liveBytes, start);
});

interface Run {
  readonly parameters: TrainingParameters;
  /** Quantizes. */
  readonly forward: () => void;
  /** Steps the optimizer. */
  readonly step: () => void;
  /** Gives every parameter a gradient. */
  readonly fill: () => void;
}

async function withParameters(
  device: Device,
  student: Student,
  { weightQuantizer = "lsq", rates = NO_RATES }: {
    weightQuantizer?: WeightQuantizer;
    rates?: LearningRates;
  },
  test: (run: Run) => Promise<void>,
): Promise<void> {
  const values = [...FIRST_STEP, ...Array(STATE_SIZE - FIRST_STEP.length).fill(0)];
  const state = device.fromArray([STATE_SIZE], values);
  {
    using parameters = new TrainingParameters(
      device,
      student,
      NAMES,
      new Map([["r", 5], ["x", 3]]),
      state,
      {
        rates,
        weightQuantizer,
        batchNormMomentum: 0.1,
        roundingRegularizer: 0,
        beta1: 0.9,
        beta2: 0.99,
      },
    );
    using forward = new Plan(device);
    parameters.recordForward(forward);
    using step = new Plan(device);
    parameters.recordStep(step);
    const fill = () => {
      for (const layer of student.layers.values()) {
        const batchNorm = layer.batchNorm && parameters.batchNorm(layer.batchNorm.node);
        const bias = layer.batchNorm ? undefined : parameters.parameter(layer.biasName!);
        const all = [parameters.parameter(layer.weight), bias, batchNorm?.gamma, batchNorm?.beta];
        all.forEach((trainable, i) => {
          if (trainable === undefined) return;
          const size = trainable.value.shape.reduce((product, n) => product * n, 1);
          device.upload(trainable.gradient!, randomArray(20 + i, size));
        });
      }
      const terms = parameters.quantizer("r")!.scaleSums;
      if (terms) device.upload(terms, [1, 2, 3, -1, 0]);
      assert.equal(parameters.quantizer("x")!.scaleSums, undefined, "x does not learn");
    };
    await test({ parameters, forward: () => forward.replay(), step: () => step.replay(), fill });
  }
  device.release(state);
}

/** A convolution with batch norm, a depthwise one with a grid for each channel, a linear layer with bias. */
function makeStudent(): Student {
  const conv = layer("conv", [5, 2, 3, 3], 0, { batchNorm: true });
  const depthwise = layer("depthwise", [3, 3, 6], 2, {});
  const gemm = layer("gemm", [3, 7], 0, {});
  const quantizer = { zeroPoint: 0, quantMin: 0, quantMax: 15, bits: 4 };
  return new Student([conv, depthwise, gemm], [
    { tensor: "r", scale: Math.fround(0.37), learned: true, ...quantizer },
    { tensor: "x", scale: Math.fround(0.11), learned: false, ...quantizer },
  ]);
}

function layer(
  node: string,
  shape: readonly number[],
  axis: number,
  { batchNorm = false }: { batchNorm?: boolean },
): LayerState {
  const channels = shape[axis]!;
  const size = shape.reduce((product, n) => product * n, 1);
  const logScale = Float32Array.from(randomArray(3, channels), (v) => -2 + 0.2 * v);
  const drawn = randomArray(size, size, { scale: 0.8 });
  const inner = axis === 0 ? size / channels : 1;
  const latent = Float32Array.from(drawn, (value, i) => {
    const c = Math.floor(i / inner) % channels;
    return awayFromThresholds([value], Math.exp(logScale[c]!))[0]!;
  });
  const vector = (seed: number) => Float32Array.from(randomArray(seed, channels));
  return {
    node,
    weight: `${node}.weight`,
    biasName: `${node}.bias`,
    input: "x",
    latent: ndArray("float32", shape, latent),
    layout: shape.length === 2 ? linearLayout(shape) : convLayout([channels, 2, 3, 3], 1),
    axis,
    bits: 4,
    logScale,
    // every third channel has mirrored codes
    quantMin: Int32Array.from({ length: channels }, (_, c) => c % 3 === 0 ? -7 : -8),
    quantMax: Int32Array.from({ length: channels }, (_, c) => c % 3 === 0 ? 8 : 7),
    ...(batchNorm
      ? {
        batchNorm: {
          node: `${node}.bn`,
          gamma: vector(5),
          beta: vector(6),
          mean: vector(7),
          variance: vector(8).map((v) => v * v + 0.5),
          epsilon: 1e-5,
        },
      }
      : { bias: vector(4) }),
  };
}

function hostWeights(layer: LayerState): Float32Array<ArrayBuffer> {
  const { logScale, quantMin, quantMax, latent, axis } = layer;
  const zeroPoint = new Int32Array(logScale.length);
  const scale = logScale.map(Math.exp);
  return fakeQuantizeArray(latent, { scale, zeroPoint, quantMin, quantMax }, axis).data;
}

/** latent / scale of every weight, with its grid. */
function codes({ latent, logScale, axis, quantMin, quantMax }: LayerState) {
  const channels = logScale.length;
  const inner = axis === 0 ? latent.data.length / channels : 1;
  return Array.from(latent.data, (value, i) => {
    const c = Math.floor(i / inner) % channels;
    const scale = Math.exp(logScale[c]!);
    return { code: value / scale, scale, low: quantMin[c]!, high: quantMax[c]! };
  });
}
