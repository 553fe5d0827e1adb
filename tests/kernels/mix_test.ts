import assert from "node:assert/strict";
import { mixTensors } from "../../kernels/mix.ts";
import { randomArray, runKernel, testDevice } from "../_gpu.ts";

const SHAPE = [7, 5, 13];
const SIZE = 7 * 5 * 13;

async function mix(probability: number, step: number, seed = 3): Promise<boolean[]> {
  const device = await testDevice();
  const a = { shape: SHAPE, data: randomArray(1, SIZE) };
  const b = { shape: SHAPE, data: randomArray(2, SIZE) };
  const state = { shape: [16], data: [step, ...new Array<number>(15).fill(0)] };
  const kernel = mixTensors({ shape: SHAPE, probability, seed });
  const { y } = await runKernel(device, kernel, { a, b, state }, { y: SHAPE });
  return Array.from(y!, (value, i) => {
    assert.ok(value === a.data[i] || value === b.data[i], `element ${i} is neither a nor b`);
    return value === a.data[i];
  });
}

Deno.test("mixTensors() takes either tensor with the given probability", async () => {
  const share = (await mix(0.5, 0)).filter(Boolean).length / SIZE;
  // 455 fair choices: five standard deviations are 0.117.
  assert.ok(Math.abs(share - 0.5) < 0.117, `share is ${share}`);
  assert.ok((await mix(1, 0)).filter(Boolean).length >= SIZE - 1);
  assert.ok(!(await mix(0, 0)).includes(true));
});

Deno.test("mixTensors() chooses anew in every step and the same for one seed and step", async () => {
  assert.deepEqual(await mix(0.5, 4), await mix(0.5, 4));
  assert.notDeepEqual(await mix(0.5, 4), await mix(0.5, 5));
  assert.notDeepEqual(await mix(0.5, 4), await mix(0.5, 4, 9));
});
