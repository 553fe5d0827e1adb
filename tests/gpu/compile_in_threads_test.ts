import assert from "node:assert/strict";
import type { Kernel } from "../../kernels/kernel.ts";
import { compileInThreads } from "../../src/gpu/compile_in_threads.ts";
import { testDevice } from "../_gpu.ts";
import { doubleAndAdd } from "./_kernels.ts";

/** Kernels that no cache has seen, the longest first. */
function newKernels(count: number): Kernel[] {
  const stamp = crypto.randomUUID();
  return Array.from({ length: count }, (_, i) => {
    const kernel = doubleAndAdd(1, `kernel ${i}`);
    return { ...kernel, code: `${kernel.code}// ${stamp}${" ".repeat(count - i)}` };
  });
}

Deno.test("compileInThreads() works alone, the shortest first, while kernels come from the cache", async () => {
  const kernels = newKernels(3), here: string[] = [];
  await compileInThreads(
    kernels,
    ({ label }) => Promise.resolve(void here.push(label)),
    { onCompiled: () => assert.fail("a thread was started") },
    () => true,
  );
  assert.deepEqual(here, ["kernel 2", "kernel 1", "kernel 0"]);
});

Deno.test("compileInThreads() leaves the rest to threads, which pass over what does not compile", async () => {
  const device = await testDevice();
  const kernels = newKernels(5), here: string[] = [], done: number[] = [];
  kernels[0] = { ...kernels[0]!, code: `not WGSL at all\n${kernels[0]!.code}` };
  await compileInThreads(
    kernels,
    (kernel) => {
      here.push(kernel.label);
      return device.compile(kernel);
    },
    { onCompiled: (count, total) => done.push(count, total) },
    () => false,
  );
  assert.deepEqual(here, ["kernel 4"]);
  assert.deepEqual(done, [2, 5, 3, 5, 4, 5, 5, 5]);
});

Deno.test("compileInThreads() stops when asked to", async () => {
  const stop = new AbortController();
  const here: string[] = [];
  const compiled = compileInThreads(
    newKernels(4),
    ({ label }) => {
      here.push(label);
      stop.abort("SIGINT");
      return Promise.resolve();
    },
    { signal: stop.signal },
    () => false,
  );
  await assert.rejects(compiled, (error) => error === "SIGINT");
  assert.equal(here.length, 1);
});

Deno.test("Device.compile() runs nothing, and says what does not compile", async () => {
  const device = await testDevice();
  const [kernel] = newKernels(1);
  const start = device.liveBytes;
  await device.compile(kernel!);
  assert.equal(device.liveBytes, start);
  await assert.rejects(
    device.compile({ ...kernel!, code: "not WGSL at all" }),
    /GpuError: kernel "kernel 0": validation error/,
  );
});

Deno.test("Device.compileAhead() compiles each kernel once", async () => {
  const device = await testDevice();
  const [first, second] = newKernels(2);
  await device.compileAhead([first!, second!, first!]);
  const x = device.fromArray([4], [1, 2, 3, 4]), y = device.tensor([4]);
  device.run(first!, { x, y });
  assert.deepEqual([...await device.read(y)], [3, 5, 7, 9]);
  const broken = { ...first!, code: "neither is this" };
  if (device.target.family === "software") {
    await assert.rejects(device.compileAhead([broken]), /validation error/);
  }
  await device.compileAhead([first!, broken]); // both are done with
  for (const tensor of [x, y]) device.release(tensor);
});
