import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { rootMeanSquare } from "../../src/quant/student.ts";
import { assertClose, forEachTarget, randomArray, testDevice } from "../_gpu.ts";
import {
  codes,
  coveringScales,
  hostWeights,
  makeStudent,
  NO_RATES,
  withParameters,
} from "./_training_student.ts";

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

forEachTarget(
  "TrainingParameters takes absolute rates in units of each parameter",
  async (device) => {
    const student = makeStudent(), before = makeStudent();
    const rate = 2 ** -10;
    const rates = {
      weights: rate,
      weightScales: rate,
      activationScales: rate,
      biases: rate,
      absolute: true,
      weightDecay: 0.5,
    };
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
    // Adam's first step is the rate, behind a decay by rate * 0.5 of the value
    const close = { rtol: 2e-3, atol: 0 }; // in float32, of values a thousand times as large
    const largestStep = (now: ArrayLike<number>, then: ArrayLike<number>, decay = 0) =>
      Math.max(...Array.from(then, (value, i) => Math.abs(now[i]! - value * (1 - rate * decay))));
    for (const [name, layer] of student.layers) {
      const old = before.layers.get(name)!;
      const scale = old.logScale.reduce((sum, log) => sum + Math.exp(log) / old.logScale.length, 0);
      const shift = layer.batchNorm?.beta ?? layer.bias!,
        oldShift = old.batchNorm?.beta ?? old.bias!;
      const steps = [
        largestStep(layer.latent.data, old.latent.data, 0.5),
        largestStep(layer.logScale, old.logScale) * scale,
        largestStep(shift, oldShift, 0.5),
        ...(layer.batchNorm ? [largestStep(layer.batchNorm.gamma, old.batchNorm!.gamma)] : []),
      ];
      assertClose(steps, steps.map(() => rate), close, name);
    }
    const [now, then] = [student, before].map((one) => one.activations.get("r")!.scale) as [
      number,
      number,
    ];
    assertClose([Math.log(then / now) * then], [rate], close, "scale of r");
  },
);

forEachTarget("TrainingParameters leaves the schedule out of constant rates", async (device) => {
  const half = [0, 0.5, 0.1, 0.01, 1, 2, 0]; // factor 1/2
  const stepOf = async (constantWeights: boolean) => {
    const student = makeStudent(), before = makeStudent();
    const rates = { ...NO_RATES, weights: 2 ** -6, absolute: true, constantWeights };
    await withParameters(device, student, { rates, state: half }, async (run) => {
      run.forward();
      run.fill();
      run.step();
      await run.parameters.store();
    });
    const old = before.layers.get("gemm")!.latent.data;
    const moved = student.layers.get("gemm")!.latent.data.map((v, i) => Math.abs(v - old[i]!));
    return Math.max(...moved);
  };
  const steps = [await stepOf(false), await stepOf(true)];
  assertClose(steps, [2 ** -7, 2 ** -6], { rtol: 1e-3, atol: 0 }, "steps"); // float32 differences
});

forEachTarget(
  "TrainingParameters covers latent weights that nothing overwrites",
  async (device) => {
    const student = makeStudent(), before = makeStudent();
    const rates = { ...NO_RATES, weights: 0.1, absolute: true };
    const options = { rates, weightQuantizer: "minMax" as const };
    await withParameters(device, student, options, async ({ parameters, forward, step, fill }) => {
      forward();
      for (const layer of before.layers.values()) {
        const w = await device.read(parameters.parameter(layer.weight)!.value);
        const covered = hostWeights({ ...layer, logScale: coveringScales(layer) });
        // two logarithms and exponentials in float32 may put a weight on the other side of a tie
        const step = Math.max(...coveringScales(layer).map(Math.exp));
        assertClose(w, covered, { rtol: 0, atol: 1.01 * step }, layer.node);
        const apart = w.filter((value, i) => Math.abs(value - covered[i]!) > 1e-5).length;
        assert.ok(apart <= 1, `${layer.node}: ${apart} apart`);
      }
      await parameters.store();
      for (const layer of student.layers.values()) {
        assert.deepEqual(layer.latent, before.layers.get(layer.node)!.latent, layer.node);
      }
      fill();
      step();
      await parameters.store();
    });
    for (const layer of student.layers.values()) {
      assert.notDeepEqual(layer.latent, before.layers.get(layer.node)!.latent, layer.node);
      // the scales belong to the weights that are stored; a float32 logarithm
      assertClose(layer.logScale, coveringScales(layer), { rtol: 1e-6, atol: 1e-6 }, layer.node);
    }
  },
);

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

Deno.test("TrainingParameters weights the rounding regulariser by layer", async () => {
  const device = await testDevice();
  const student = makeStudent();
  // Beta 2, regulariser on: without a gradient of the loss each weight goes to the nearer code.
  const options = {
    weightQuantizer: "softRounding" as const,
    rates: { ...NO_RATES, weights: 0.25 },
    state: [0, 1, 0.1, 0.01, 1, 2, 1],
    roundingRegularizer: 1,
    roundingWeights: new Map([["conv", 0], ["depthwise", 0.5]]), // gemm: 1
  };
  const moved = new Map<string, number>();
  await withParameters(device, student, options, async ({ parameters, forward, step }) => {
    const read = () =>
      Promise.all(
        Array.from(student.layers.values(), async ({ node, weight }) =>
          [node, await device.read(parameters.parameter(weight)!.value)] as const),
      );
    forward();
    const before = new Map(await read());
    step();
    forward();
    for (const [node, now] of await read()) {
      const then = before.get(node)!;
      moved.set(node, now.filter((value, i) => value !== then[i]).length / now.length);
    }
  });
  assert.equal(moved.get("conv"), 0);
  assert.ok(moved.get("depthwise")! > 0.5 && moved.get("gemm")! > 0.5, `${[...moved]}`);
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
