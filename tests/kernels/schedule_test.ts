import assert from "node:assert/strict";
import {
  advanceSchedule,
  finishStep,
  type ScheduleSpec,
  STATE_SIZE,
} from "../../kernels/schedule.ts";
import { assertClose, forEachTarget } from "../_gpu.ts";
import { scheduleState } from "../_reference_quant.ts";

const RECIPE: ScheduleSpec = {
  steps: 100,
  warmupSteps: 5,
  schedule: "cosine",
  beta1: 0.9,
  beta2: 0.999,
  batchNormLiveSteps: 70,
  roundingWarmup: 0.2,
  roundingBetaStart: 20,
  roundingBetaEnd: 2,
};

const COURSES = [
  { schedule: "cosine" },
  { schedule: "step", roundingBetaDecay: "linear" },
  { schedule: "constant", roundingBetaDecay: "cosine" },
] as const;

for (const course of COURSES) {
  forEachTarget(
    `advanceSchedule() follows the ${course.schedule} schedule step by step`,
    async (device) => {
      const spec = { ...RECIPE, ...course };
      const advance = advanceSchedule(spec, device.target), finish = finishStep(device.target);
      const state = device.tensor([STATE_SIZE]);
      for (let step = 0; step < spec.steps; step++) {
        device.run(advance, { state });
        const actual = (await device.read(state)).slice(0, 7);
        // exp near 1 and a degree-11 sine in float32; the smallest factor is 2.5e-4
        assertClose(actual, scheduleState(spec, step), { rtol: 3e-6, atol: 0 }, `step ${step}`);
        device.run(finish, { state });
      }
      device.release(state);
    },
  );
}

forEachTarget("advanceSchedule() takes no warm-up and beta 0", async (device) => {
  const spec = { ...RECIPE, steps: 3, warmupSteps: 0, beta1: 0 };
  const state = device.fromArray([STATE_SIZE], [2, ...Array(STATE_SIZE - 1).fill(NaN)]);
  device.run(advanceSchedule(spec, device.target), { state });
  const actual = (await device.read(state)).slice(0, 7);
  assertClose(actual, scheduleState(spec, 2), { rtol: 3e-6, atol: 0 }, "state");
  device.release(state);
});

forEachTarget("finishStep() counts up and leaves the rest", async (device) => {
  const before = Array.from({ length: STATE_SIZE }, (_, i) => 7 + i);
  const state = device.fromArray([STATE_SIZE], before);
  device.run(finishStep(device.target), { state });
  assert.deepEqual([...await device.read(state)], [8, ...before.slice(1)]);
  device.release(state);
});
