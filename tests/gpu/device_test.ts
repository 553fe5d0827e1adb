import assert from "node:assert/strict";
import { GpuError } from "../../src/core/errors.ts";
import { Device } from "../../src/gpu/device.ts";
import { testDevice } from "../_gpu.ts";
import { doubleAndAdd, twice } from "./_kernels.ts";

Deno.test("Device.run() runs a kernel and a sequence with a temporary", async () => {
  const device = await testDevice();
  const start = device.liveBytes;
  const x = device.fromArray([2, 3], [1, 2, 3, 4, 5, 6]), y = device.tensor([2, 3]);
  device.run(doubleAndAdd(2), { x, y });
  assert.deepEqual([...await device.read(y)], [3, 5, 7, 9, 11, 13]);
  device.run(twice(2), { x, y });
  assert.deepEqual([...await device.read(y)], [7, 11, 15, 19, 23, 27]);
  device.release(x);
  device.release(y);
  assert.equal(device.liveBytes, start, "the temporary was given back");
});

Deno.test("Device.read() throws what is wrong with a shader, by the kernel's label", async () => {
  const device = await testDevice();
  const x = device.tensor([4]), y = device.tensor([4]);
  const kernel = doubleAndAdd(1, "broken_kernel 1");
  const broken = { ...kernel, code: kernel.code.replace("2.0 *", "2.0 * nothing *") };
  for (const attempt of ["first", "cached"]) {
    device.run(broken, { x, y });
    const error = await device.read(y).then(() => undefined, (reason) => reason);
    assert(error instanceof GpuError, `${attempt}: ${error}`);
    assert.match(error.message, /broken_kernel 1/, attempt);
  }
  device.run(doubleAndAdd(1), { x, y });
  assert.deepEqual([...await device.read(y)], [1, 1, 1, 1], "the device still works");
  device.release(x);
  device.release(y);
});

Deno.test("Device.run() names the kernel of a wrong or missing binding", async () => {
  const device = await testDevice();
  const x = device.tensor([4]), y = device.tensor([4]);
  const kernel = doubleAndAdd(1);
  assert.throws(() => device.run(kernel, { x, y, bias: x }), {
    name: "TypeError",
    message: 'Kernel "double_and_add 1" has no binding "bias"',
  });
  assert.throws(() => device.run(kernel, { x }), {
    name: "TypeError",
    message: 'Kernel "double_and_add 1" needs a tensor for binding "y"',
  });
  device.release(x);
  device.release(y);
});

Deno.test("Device.run() of a sequence refuses a binding that none of its kernels has", async () => {
  const device = await testDevice();
  const start = device.liveBytes;
  const x = device.tensor([4]), y = device.tensor([4]);
  assert.throws(() => device.run(twice(1), { x, y, bias: x }), {
    name: "TypeError",
    message: /"bias"/,
  });
  device.release(x);
  device.release(y);
  assert.equal(device.liveBytes, start);
});

Deno.test("Device.run() refuses a buffer that is read and written by one kernel", async () => {
  const device = await testDevice();
  const x = device.tensor([4], { label: "activations" });
  assert.throws(() => device.run(doubleAndAdd(1), { x, y: x }), {
    name: "TypeError",
    message: 'Kernel "double_and_add 1" reads and writes one buffer, "activations": ' +
      'bindings "x" and "y"',
  });
  device.release(x);
});

Deno.test("Device.run() refuses a grid over the limit", async () => {
  const device = await testDevice();
  const x = device.tensor([4]), y = device.tensor([4]);
  const wide = { ...doubleAndAdd(1), grid: [70000, 1, 1] as const };
  assert.throws(() => device.run(wide, { x, y }), {
    name: "RangeError",
    message: 'Kernel "double_and_add 1" has a grid of [70000, 1, 1], the adapter takes 65535',
  });
  device.release(x);
  device.release(y);
});

Deno.test("Device.read() names the kernel whose tensors cannot be bound", async () => {
  const device = await testDevice();
  const x = device.tensor([4]), y = device.tensor([4]);
  for (const wrong of [{ ...x, offset: 4 }, { ...x, byteLength: 1 << 20 }]) {
    device.run(doubleAndAdd(1), { x: wrong, y });
    await assert.rejects(() => device.read(y), { name: "GpuError", message: /double_and_add 1/ });
  }
  device.release(x);
  device.release(y);
});

Deno.test("Device.tensor() refuses more than the adapter binds", async () => {
  const device = await testDevice();
  const floats = device.maxTensorBytes / 4;
  assert.throws(() => device.tensor([floats + 4], { label: "giant" }), {
    name: "RangeError",
    message: /"giant".*adapter binds at most/,
  });
});

Deno.test("Device.read() throws when a buffer is destroyed or written past its end", async () => {
  const device = await testDevice();
  const gone = device.tensor([4]), full = device.tensor([4]);
  gone.buffer.destroy();
  await assert.rejects(() => device.read(gone), GpuError);
  device.uploadRaw(full, new Float32Array(1000));
  await assert.rejects(() => device.read(full), GpuError);
  assert.deepEqual([...await device.read(full)], [0, 0, 0, 0], "an error is reported once");
  device.release(full);
  const other = device.fromArray([2], [1, 2]);
  assert.deepEqual([...await device.read(other)], [1, 2]);
  device.release(other);
});

Deno.test("Device.upload() refuses data that does not fill the shape", async () => {
  const device = await testDevice();
  const x = device.tensor([2, 3], { label: "x" });
  assert.throws(() => device.upload(x, [1, 2, 3, 4]), {
    name: "RangeError",
    message: 'Cannot upload 4 elements to "x": its shape [2, 3] has 6',
  });
  device.release(x);
});

Deno.test("Device.readRaw() shows zeros in padded channels, read() hides them", async () => {
  const device = await testDevice();
  const x = device.fromArray([2, 3], [1, 2, 3, 4, 5, 6]);
  assert.deepEqual([...await device.readRaw(x)], [1, 2, 3, 0, 4, 5, 6, 0]);
  assert.deepEqual([...await device.read(x)], [1, 2, 3, 4, 5, 6]);
  device.release(x);
});

Deno.test("Device.uint32() keeps its words", async () => {
  const device = await testDevice();
  const words = Uint32Array.of(0, 1, 0x7fc00001, 0xffffffff, 5);
  const table = device.uint32(words);
  assert.deepEqual((await device.readUint32(table)).slice(0, 5), words);
  device.release(table);
});

Deno.test("Device.copy() moves a range of bytes", async () => {
  const device = await testDevice();
  const from = device.fromArray([8], [1, 2, 3, 4, 5, 6, 7, 8]), to = device.tensor([8]);
  device.copy(from, to, { fromByte: 8, toByte: 16, byteLength: 12 });
  assert.deepEqual([...await device.read(to)], [0, 0, 0, 0, 3, 4, 5, 0]);
  device.release(from);
  device.release(to);
});

Deno.test("Device.time() gives a time for each dispatch", async () => {
  const device = await testDevice();
  const x = device.tensor([64]), y = device.tensor([64]);
  const dispatch = device.prepare(doubleAndAdd(16), { x, y });
  const times = await device.time([dispatch, dispatch]);
  if (times !== undefined) {
    assert.equal(times.length, 2);
    assert(times.every((time) => time > 0 && time < 1e9), `${times}`);
  }
  device.release(x);
  device.release(y);
});

Deno.test("Device.read() gives equal bytes with and without synchronous mapping", async () => {
  const fast = await testDevice();
  using awaiting = await Device.open({ synchronousReadBack: false });
  assert.equal(fast.synchronousReadBack, true, "the self-test passes on this adapter");
  assert.equal(awaiting.synchronousReadBack, false);
  const data = Float32Array.from({ length: 3001 }, (_, i) => Math.fround(Math.sin(i)));
  for (const size of [1, 64, 65, 3001]) {
    const results = [];
    for (const device of [fast, awaiting]) {
      const x = device.fromArray([size], data.subarray(0, size)), y = device.tensor([size]);
      const kernel = doubleAndAdd(Math.ceil(size / 4));
      for (let time = 0; time < 3; time++) device.run(kernel, { x, y });
      results.push(await device.read(y));
      device.release(x);
      device.release(y);
    }
    assert.deepEqual(results[0], results[1]);
    assert.equal(results[0]![size - 1], Math.fround(2 * data[size - 1]! + 1));
  }
});

Deno.test("Device.read() throws after dispose()", async () => {
  const device = await Device.open({ subgroups: false });
  assert.equal(device.target.subgroupSize, 0);
  const x = device.fromArray([4], [1, 2, 3, 4]);
  device.dispose();
  await assert.rejects(() => device.read(x), GpuError);
  await assert.rejects(() => device.synchronize(), GpuError);
});
