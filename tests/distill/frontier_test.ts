import assert from "node:assert/strict";
import { RowSet } from "../../src/distill/frontier.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { randomArray, testDevice } from "../_gpu.ts";

const ROWS = 11, SHAPE = [2, 3], SIZE = 6;

Deno.test("RowSet moves rows across chunks", async () => {
  const device = await testDevice();
  const start = device.liveBytes;
  const data = Float32Array.from(randomArray(1, ROWS * SIZE));
  {
    using set = new RowSet(narrow(device, 4), ROWS, SHAPE, "set");
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

Deno.test("RowSet.recordGather() collects a mini-batch from several chunks", async () => {
  const device = await testDevice();
  const data = Float32Array.from(randomArray(2, ROWS * SIZE));
  using set = new RowSet(narrow(device, 4), ROWS, SHAPE, "set");
  set.upload(0, data);
  using plan = new Plan(device);
  const table = Uint32Array.of(10, 0, 4, 3, 3, 8, 7, 1);
  const indices = device.uint32(table), state = device.tensor([16]);
  const batch = set.recordGather(plan, indices, state, 4, "batch");
  for (const step of [0, 1, 2]) {
    device.upload(state, Float32Array.from({ length: 16 }, (_, i) => i === 0 ? step : 0));
    plan.replay();
    const rows = [...table.subarray(step % 2 * 4, step % 2 * 4 + 4)];
    const expected = rows.flatMap((row) => [...data.subarray(row * SIZE, (row + 1) * SIZE)]);
    assert.deepEqual([...await device.read(batch)], expected, `step ${step}`);
  }
  device.release(indices);
  device.release(state);
});

/** The device, as if it could bind `rows` rows at most. */
function narrow(device: Device, rows: number): Device {
  return new Proxy(device, {
    get(target, name) {
      if (name === "maxTensorBytes") return rows * 2 * 4 * 4;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
