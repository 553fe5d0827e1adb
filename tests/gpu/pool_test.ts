import assert from "node:assert/strict";
import { testDevice } from "../_gpu.ts";

Deno.test("BufferPool recycles buffers and counts live bytes", async () => {
  const device = await testDevice();
  device.trim();
  const start = device.liveBytes, peak = device.peakBytes;
  const first = device.fromArray([1000], new Float32Array(1000).fill(7));
  assert(device.liveBytes - start >= 4000);
  device.release(first);
  assert.equal(device.liveBytes, start);
  const second = device.tensor([1001], { zeroed: false });
  assert.equal(second.buffer, first.buffer, "one size class");
  device.release(second);
  assert(device.peakBytes - peak <= 4352, "no second buffer was made");
});

Deno.test("Device.tensor() is zero even on a recycled buffer", async () => {
  const device = await testDevice();
  for (const size of [4, 63, 1000]) {
    const dirty = device.fromArray([size], new Float32Array(size).fill(NaN));
    device.release(dirty);
    const clean = device.tensor([size]);
    assert.equal(clean.buffer, dirty.buffer);
    assert((await device.readRaw(clean)).every((value) => value === 0), `size ${size}`);
    device.release(clean);
  }
});

Deno.test("Device.fromArray() pads a recycled buffer with zeros", async () => {
  const device = await testDevice();
  const dirty = device.fromArray([4, 4], new Float32Array(16).fill(NaN));
  device.release(dirty);
  const x = device.fromArray([4, 3], new Float32Array(12).fill(1));
  assert.deepEqual((await device.readRaw(x)).slice(0, 8), Float32Array.of(1, 1, 1, 0, 1, 1, 1, 0));
  device.release(x);
});

Deno.test("BufferPool.trim() destroys what nobody uses", async () => {
  const device = await testDevice();
  const kept = device.fromArray([4], [1, 2, 3, 4]);
  const freed = device.tensor([4096]);
  device.release(freed);
  device.trim();
  const next = device.tensor([4096]);
  assert.notEqual(next.buffer, freed.buffer);
  assert.deepEqual([...await device.read(kept)], [1, 2, 3, 4]);
  device.release(next);
  device.release(kept);
});
