import assert from "node:assert/strict";
import { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { Profiler } from "../../src/gpu/profiler.ts";
import { doubleAndAdd } from "./_kernels.ts";

Deno.test("a profiled device counts every dispatch by stage and label, and computes the same", async () => {
  const profiler = new Profiler();
  using device = await Device.open({ profiler });
  const x = device.fromArray([4], [1, 2, 3, 4]);
  const y = device.tensor([4]);
  const kernel = doubleAndAdd(1);
  using plan = new Plan(device);
  plan.run(kernel, { x, y });
  profiler.stage = "first";
  plan.replay(3, 2);
  profiler.stage = "second";
  device.run(kernel, { x, y });
  assert.deepEqual([...await device.read(y)], [3, 5, 7, 9]);
  assert.deepEqual(
    profiler.times.map(({ stage, label, dispatches }) => [stage, label, dispatches]),
    [["first", kernel.label, 3], ["second", kernel.label, 1]],
  );
  for (const { nanoseconds } of profiler.times) assert.ok(nanoseconds > 0);
});

Deno.test("a profile counts copies as well", async () => {
  const profiler = new Profiler();
  using device = await Device.open({ profiler });
  const from = device.fromArray([4096], new Float32Array(4096).fill(2));
  const to = device.tensor([4096]), y = device.tensor([4]);
  using plan = new Plan(device);
  plan.copy("moved", () => [{ from, fromByte: 0, to, toByte: 0, byteLength: 16384 }]);
  plan.run(doubleAndAdd(1), { x: to, y });
  plan.replay(2);
  assert.deepEqual([...await device.read(y)], [5, 5, 5, 5]);
  const [copies, kernel] = profiler.times;
  assert.deepEqual([copies?.label, copies?.dispatches, kernel?.dispatches], ["moved", 2, 2]);
  assert.ok(copies!.nanoseconds > 0);
});

Deno.test("a profile takes more dispatches than a query set holds", async () => {
  const profiler = new Profiler();
  using device = await Device.open({ profiler });
  const x = device.fromArray([4], [1, 2, 3, 4]);
  const y = device.tensor([4]);
  const kernel = doubleAndAdd(1);
  device.submit(Array.from({ length: 2050 }, () => device.prepare(kernel, { x, y })));
  await device.synchronize();
  assert.equal(profiler.times[0]?.dispatches, 2050);
});
