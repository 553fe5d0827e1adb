import assert from "node:assert/strict";
import { mixTensors } from "../../kernels/mix.ts";
import type { Device } from "../../src/gpu/device.ts";
import { forEachTarget, randomArray, runKernel } from "../_gpu.ts";

const SHAPE = [7, 5, 13];
const SIZE = 7 * 5 * 13;

async function mix(
  device: Device,
  probability: number,
  { step = 0, stream = 1, seed = 3 } = {},
): Promise<boolean[]> {
  const a = { shape: SHAPE, data: randomArray(1, SIZE) };
  const b = { shape: SHAPE, data: randomArray(2, SIZE) };
  const words = [step, 0, 0, 0, 0, 0, 0, seed, ...Array<number>(8).fill(NaN)];
  const state = { shape: [16], data: words };
  const kernel = mixTensors({ shape: SHAPE, probability, stream });
  const { y } = await runKernel(device, kernel, { a, b, state }, { y: SHAPE });
  return Array.from(y!, (value, i) => {
    assert.ok(value === a.data[i] || value === b.data[i], `element ${i} is neither a nor b`);
    return value === a.data[i];
  });
}

forEachTarget("mixTensors() takes either tensor with the given probability", async (device) => {
  const share = (await mix(device, 0.5)).filter(Boolean).length / SIZE;
  // 455 fair choices: five standard deviations are 0.117.
  assert.ok(Math.abs(share - 0.5) < 0.117, `share is ${share}`);
  assert.ok((await mix(device, 1)).filter(Boolean).length >= SIZE - 1);
  assert.ok(!(await mix(device, 0)).includes(true));
});

forEachTarget(
  "mixTensors() chooses anew by step, stream and seed, else the same",
  async (device) => {
    const base = await mix(device, 0.5, { step: 4 });
    assert.deepEqual(await mix(device, 0.5, { step: 4 }), base);
    for (const other of [{ step: 5 }, { step: 4, stream: 2 }, { step: 4, seed: 9 }]) {
      const same = (await mix(device, 0.5, other)).filter((choice, i) => choice === base[i]).length;
      assert.ok(
        Math.abs(same / SIZE - 0.5) < 0.117,
        `${same} of ${SIZE}: ${JSON.stringify(other)}`,
      );
    }
  },
);
