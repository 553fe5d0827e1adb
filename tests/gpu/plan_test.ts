import assert from "node:assert/strict";
import { Plan } from "../../src/gpu/plan.ts";
import { randomArray, testDevice } from "../_gpu.ts";
import { accumulate, doubleAndAdd, twice } from "./_kernels.ts";

const SHAPE = [5, 6], VECTORS = 10;

Deno.test("Plan.replay() gives the bits of running at once", async () => {
  const device = await testDevice();
  const x = device.fromArray(SHAPE, randomArray(1, 30));
  const middle = device.tensor(SHAPE), expected = device.tensor(SHAPE);
  device.run(doubleAndAdd(VECTORS), { x, y: middle });
  device.run(twice(VECTORS), { x: middle, y: expected });
  const start = device.liveBytes;
  {
    using plan = new Plan(device);
    const a = plan.tensor(SHAPE, "a"), y = plan.tensor(SHAPE, "y");
    plan.run(doubleAndAdd(VECTORS), { x, y: a });
    plan.run(twice(VECTORS), { x: a, y });
    assert.equal(plan.length, 3);
    plan.replay();
    assert.deepEqual(await device.read(y), await device.read(expected));
    device.upload(x, new Float32Array(30).fill(1));
    plan.replay();
    assert.deepEqual(await device.read(y), new Float32Array(30).fill(15), "new inputs");
  }
  assert.equal(device.liveBytes, start, "the plan gives its memory back");
  for (const tensor of [x, middle, expected]) device.release(tensor);
});

Deno.test("Plan.replay() runs as often as asked, whatever shares a submit", async () => {
  const device = await testDevice();
  const x = device.fromArray([4], [1, 2, 3, 4]);
  for (const [times, timesPerSubmit] of [[1, 1], [7, 1], [7, 3], [7, 7], [7, 20]] as const) {
    using plan = new Plan(device);
    const y = device.tensor([4]);
    plan.run(accumulate(1), { x, y });
    plan.replay(times, timesPerSubmit);
    assert.deepEqual([...await device.read(y)], [1, 2, 3, 4].map((v) => v * times));
    device.release(y);
  }
  device.release(x);
});

Deno.test("Plan.copy() chooses its ranges for each replay, in order with the kernels", async () => {
  const device = await testDevice();
  const x = device.fromArray([12], Array.from({ length: 12 }, (_, i) => i));
  const part = device.tensor([4]), sum = device.tensor([4]);
  using plan = new Plan(device);
  plan.copy("part", (replay) => [
    { from: x, fromByte: 16 * replay, to: part, toByte: 0, byteLength: 12 },
    { from: x, fromByte: 0, to: part, toByte: 12, byteLength: 4 },
  ]);
  plan.run(accumulate(1), { x: part, y: sum });
  assert.equal(plan.length, 2);
  plan.replay(2, 2);
  assert.deepEqual([...await device.read(part)], [4, 5, 6, 0]);
  assert.deepEqual([...await device.read(sum)], [0 + 4, 1 + 5, 2 + 6, 0]);
  plan.replay();
  assert.deepEqual([...await device.read(sum)], [0 + 4 + 8, 1 + 5 + 9, 2 + 6 + 10, 0]);
  for (const tensor of [x, part, sum]) device.release(tensor);
});

Deno.test("Plan reuses released memory in order", async () => {
  const device = await testDevice();
  const x = device.fromArray(SHAPE, randomArray(2, 30));
  using plan = new Plan(device);
  const results = [];
  let from = x;
  for (let i = 0; i < 6; i++) {
    const y = plan.tensor(SHAPE, `y${i}`);
    plan.run(doubleAndAdd(VECTORS), { x: from, y });
    plan.release(from);
    plan.release(from); // twice is as once
    results.push(y);
    from = y;
  }
  assert.equal(new Set(results.map((tensor) => tensor.buffer)).size, 2, "two buffers take turns");
  assert(results.every((tensor) => tensor.buffer !== x.buffer), "x is not the plan's to reuse");
  plan.replay();
  const host = (await device.read(x)).map((value) => {
    for (let i = 0; i < 6; i++) value = Math.fround(Math.fround(2 * value) + 1);
    return value;
  });
  assert.deepEqual(await device.read(from), host);
  device.release(x);
});

Deno.test("Plan.tensor() does not waste a big buffer on a small tensor", async () => {
  const device = await testDevice();
  using plan = new Plan(device);
  const big = plan.tensor([1 << 16], "big");
  plan.release(big);
  assert.notEqual(plan.tensor([4], "small").buffer, big.buffer);
  assert.equal(plan.tensor([1 << 15], "half").buffer, big.buffer);
});

Deno.test("Plan.run() shares temporaries between sequences", async () => {
  const device = await testDevice();
  const x = device.fromArray(SHAPE, randomArray(3, 30)), y = device.tensor(SHAPE);
  const start = device.liveBytes;
  using plan = new Plan(device);
  plan.run(twice(VECTORS), { x, y });
  const once = device.liveBytes - start;
  plan.run(twice(VECTORS), { x, y });
  assert(once > 0);
  assert.equal(device.liveBytes - start, once);
  for (const tensor of [x, y]) device.release(tensor);
});
