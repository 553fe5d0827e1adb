import { advanceSchedule, finishStep, STATE_SIZE } from "../../kernels/schedule.ts";
import { assertClose, forEachTarget } from "../_gpu.ts";

forEachTarget(
  'advanceSchedule() "step" falls to a tenth twice, behind the warm-up',
  async (device) => {
    const steps = 20;
    const advance = advanceSchedule({
      steps,
      warmupSteps: 4,
      schedule: "step",
      beta1: 0.9,
      beta2: 0.99,
      batchNormLiveSteps: 0,
      roundingWarmup: 0.2,
      roundingBetaStart: 20,
      roundingBetaEnd: 2,
    }, device.target);
    const state = device.tensor([STATE_SIZE]);
    const factors: number[] = [];
    for (let step = 0; step < steps; step++) {
      device.run(advance, { state });
      factors.push((await device.read(state))[1]!);
      device.run(finishStep(device.target), { state });
    }
    const part = (count: number, factor: number) => Array<number>(count).fill(factor);
    const expected = [0.25, 0.5, 0.75, ...part(7, 1), ...part(5, 0.1), ...part(5, 0.01)];
    assertClose(factors, expected, { rtol: 1e-6, atol: 0 }, "factors"); // float32 products
    device.release(state);
  },
);
