import assert from "node:assert/strict";
import { STATE_SIZE } from "../../kernels/schedule.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { FlatLayout } from "../../src/optim/flat_parameters.ts";
import {
  ActivationParameters,
  type ActivationTraining,
} from "../../src/quant/activation_parameters.ts";
import { type ActivationState, Student } from "../../src/quant/student.ts";
import { assertClose, forEachTarget, testDevice } from "../_gpu.ts";

const SIGNED = { quantMin: -8, quantMax: 7, bits: 4 },
  UNSIGNED = { quantMin: 0, quantMax: 15, bits: 4 };
/** The input, which does not learn; behind a ReLU; with values below 0. */
const STATES: readonly ActivationState[] = [
  { tensor: "x", scale: Math.fround(0.11), zeroPoint: 0, learned: false, ...SIGNED },
  { tensor: "r", scale: Math.fround(0.37), zeroPoint: 0, learned: true, ...UNSIGNED },
  { tensor: "a", scale: Math.fround(0.2), zeroPoint: -3, learned: true, ...SIGNED },
];
const CHANNELS = new Map([["x", 3], ["r", 70], ["a", 5]]);

forEachTarget(
  "ActivationParameters start from the student's grids, and give them back",
  async (device) => {
    for (const activationQuantizer of ["lsq", "range"] as const) {
      const student = new Student([], STATES);
      await withParameters(device, student, { activationQuantizer, rate: 1 }, async (run) => {
        for (const [tensor, { scale, zeroPoint, quantMin, quantMax }] of student.activations) {
          const found = await run.qparams(tensor);
          // exp(log(scale)), or a quotient, in float32
          const expected = [scale, zeroPoint, quantMin, quantMax];
          assertClose(found, expected, { rtol: 1e-6, atol: 0 }, `${activationQuantizer} ${tensor}`);
        }
        run.parameters.store(run.flat, student);
      });
      for (const state of STATES) {
        const after = student.activations.get(state.tensor)!;
        assert(Math.abs(after.scale / state.scale - 1) < 1e-6, state.tensor);
        assert.deepEqual({ ...after, scale: 0 }, { ...state, scale: 0 });
      }
      assert.equal(student.activations.get("x"), STATES[0], "a fixed grid is as it was");
    }
  },
);

forEachTarget(
  "ActivationParameters.store() makes the grids that the kernels made",
  async (device) => {
    const student = new Student([], STATES);
    const training = { activationQuantizer: "range", rate: 1 } as const;
    await withParameters(device, student, training, async (run) => {
      const { r, a } = run.starts;
      run.flat[r!] = 3;
      run.flat.set([-0.5, 2.2], a);
      run.upload();
      run.parameters.store(run.flat, student);
      for (const tensor of ["r", "a"]) {
        const { scale, zeroPoint } = student.activations.get(tensor)!;
        // a float32 quotient
        const found = (await run.qparams(tensor)).slice(0, 2);
        assertClose([...found], [scale, zeroPoint], { rtol: 1e-6, atol: 0 }, tensor);
      }
    });
    const grid = (tensor: string) => {
      const { scale, zeroPoint } = student.activations.get(tensor)!;
      return [scale, zeroPoint];
    };
    assertClose(grid("r"), [3 / 15, 0], { rtol: 1e-6, atol: 0 }, "r"); // float32
    // -8 + 0.5 / 0.18 is -5.2, and a file stores integers
    assertClose(grid("a"), [2.7 / 15, -5], { rtol: 1e-6, atol: 0 }, "a");
  },
);

Deno.test("ActivationParameters step scales and bounds in their own units, or relative to them", async () => {
  const device = await testDevice();
  const rates = async (training: ActivationTraining) => {
    let found: number[] = [];
    await withParameters(device, new Student([], STATES), training, (run) => {
      found = Object.values(run.starts).map((start) => run.rates[start / 64 * 4]!);
      return Promise.resolve();
    });
    return found;
  };
  const [, { scale: r }, { scale: a }] = STATES as [unknown, ActivationState, ActivationState];
  const close = (actual: number[], expected: number[]) =>
    assertClose(actual, expected, { rtol: 1e-6, atol: 0 }, "rates"); // float32
  close(await rates({ rate: 0.5 }), [0, 0.5, 0.5]);
  close(await rates({ rate: 0.5, absolute: true }), [0, 0.5 / r, 0.5 / a]);
  close(await rates({ rate: 0.1, absolute: true, activationQuantizer: "range" }), [0, 0.1, 0.1]);
  close(await rates({ rate: 0.1, activationQuantizer: "range" }), [0, 0.1 * 15 * r, 0.1 * 15 * a]);
  close(await rates({ rate: 0 }), [0, 0, 0]);
});

Deno.test("ActivationParameters.quantizer() says what is learned, and of which part", async () => {
  const device = await testDevice();
  const look = async (training: ActivationTraining) => {
    const result: unknown[] = [];
    await withParameters(device, new Student([], STATES), training, ({ parameters }) => {
      for (const { tensor } of STATES) {
        const quantizer = parameters.quantizer(tensor);
        result.push(
          quantizer && [
            quantizer.scaleSums !== undefined,
            quantizer.zeroPointSums !== undefined,
            quantizer.partial?.share ?? null,
          ],
        );
      }
      return Promise.resolve();
    });
    return result;
  };
  const fixed = [false, false, null];
  assert.deepEqual(await look({ rate: 1 }), [fixed, [true, false, null], [true, false, null]]);
  assert.deepEqual(await look({ rate: 0 }), [fixed, fixed, fixed]);
  const range = { activationQuantizer: "range", rate: 1 } as const;
  assert.deepEqual(await look(range), [fixed, [true, false, null], [true, true, null]]);
  assert.deepEqual(await look({ rate: 1, quantizedShare: null }), [
    undefined,
    undefined,
    undefined,
  ]);
  const random = { kind: "random", probability: 0.5 } as const;
  const dropped = await look({ rate: 1, quantizedShare: random });
  const streams = [1, 2, 3].map((stream) => ({ ...random, stream }));
  assert.deepEqual(dropped.map((found) => (found as unknown[])[2]), streams);
});

interface Run {
  readonly parameters: ActivationParameters;
  readonly flat: Float32Array<ArrayBuffer>;
  /** Where the parameters of a tensor start. */
  readonly starts: Readonly<Record<string, number>>;
  /** The layout's learning rates. */
  readonly rates: Float32Array;
  /** Hands `flat` to the kernels. */
  readonly upload: () => void;
  readonly qparams: (tensor: string) => Promise<Float32Array>;
}

async function withParameters(
  device: Device,
  student: Student,
  training: ActivationTraining,
  test: (run: Run) => Promise<void>,
): Promise<void> {
  const before = device.liveBytes;
  const state = device.tensor([STATE_SIZE]);
  {
    const layout = new FlatLayout();
    layout.take(3, 7); // another parameter before them
    using parameters = new ActivationParameters(device, student, CHANNELS, layout, state, training);
    const flat = new Float32Array(layout.size);
    parameters.writeStart(flat);
    const values = device.tensor([layout.size]);
    const upload = () => device.uploadRaw(values, flat);
    upload();
    {
      using plan = new Plan(device);
      parameters.recordForward(plan, values);
      const qparams = (tensor: string) => {
        plan.replay();
        return device.read(parameters.quantizer(tensor)!.qparams);
      };
      const rates = layout.learningRates();
      const starts = { x: 64, r: 128, a: 192 };
      await test({ parameters, flat, starts, rates, upload, qparams });
    }
    device.release(values);
  }
  device.release(state);
  assert.equal(device.liveBytes, before, "memory is given back");
}
