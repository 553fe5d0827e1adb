import assert from "node:assert/strict";
import { paddedSize } from "../../kernels/kernel.ts";
import { RowSet } from "../../src/distill/frontier.ts";
import { MiniBatches } from "../../src/distill/mini_batches.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { randomArray, testDevice } from "../_gpu.ts";

const ROWS = 11, SHAPE = [2, 3], SIZE = 6;

Deno.test("RowSet moves rows across chunks", async () => {
  const device = await testDevice();
  const start = device.liveBytes;
  const data = Float32Array.from(randomArray(1, ROWS * SIZE));
  {
    using set = new RowSet(narrow(device, 4 * 32), ROWS, SHAPE, "set");
    set.upload(0, data.slice(0, 5 * SIZE));
    set.upload(5, data.slice(5 * SIZE));
    const some = device.tensor([6, ...SHAPE]);
    for (const first of [0, 3, 5]) {
      set.copyOut(first, 6, some);
      const expected = data.slice(first * SIZE, (first + 6) * SIZE);
      assert.deepEqual(await device.read(some), expected, `rows from ${first}`);
    }
    device.upload(some, new Float32Array(6 * SIZE).fill(9));
    set.copyIn(some, 2, 6);
    const all = device.tensor([ROWS, ...SHAPE]);
    set.copyOut(0, ROWS, all);
    assert.deepEqual(await device.read(all), data.slice().fill(9, 2 * SIZE, 8 * SIZE));
    device.release(some);
    device.release(all);
  }
  assert.equal(device.liveBytes, start);
});

// The rows of the second are long enough to be copied instead of gathered by a kernel.
for (const shape of [SHAPE, [32, 32, 4]]) {
  Deno.test(`RowSet.recordGather() collects rows [${shape}] from several chunks`, async () => {
    const device = await testDevice();
    const size = shape.reduce((product, n) => product * n, 1);
    const data = Float32Array.from(randomArray(2, ROWS * size));
    const rowBytes = paddedSize([1, ...shape]) * 4;
    using set = new RowSet(narrow(device, 4 * rowBytes), ROWS, shape, "set");
    set.upload(0, data);
    using plan = new Plan(device);
    using batches = new MiniBatches(device, ROWS, 4, 2, 7);
    const state = device.tensor([16]);
    const batch = set.recordGather(plan, batches, state, "batch");
    for (const step of [0, 1, 2]) {
      device.upload(state, Float32Array.from({ length: 16 }, (_, i) => i === 0 ? step : 0));
      plan.replay();
      const expected = Array.from(batches.rowsOf(step)).flatMap((row) => [
        ...data.subarray(row * size, (row + 1) * size),
      ]);
      assert.deepEqual([...await device.read(batch)], expected, `step ${step}`);
    }
    assert.notDeepEqual(batches.rowsOf(0), batches.rowsOf(1));
    device.release(state);
  });
}

/** The device, as if it could bind so many bytes at most. */
function narrow(device: Device, bytes: number): Device {
  return new Proxy(device, {
    get(target, name) {
      if (name === "maxTensorBytes") return bytes;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
