// Devices and comparisons for kernel tests. One device of each kernel family serves a whole test file.
import { type Kernel, type KernelSequence, paddedSize } from "../kernels/kernel.ts";
import { Rng } from "../src/core/rng.ts";
import { Device } from "../src/gpu/device.ts";
import type { Tensor } from "../src/gpu/tensor.ts";

const devices = new Map<string, Promise<Device>>();

/** The device of a family, opened once a test file. */
export function testDevice(family: "software" | "gpu" = "software"): Promise<Device> {
  let device = devices.get(family);
  if (device === undefined) devices.set(family, device = Device.open({ family }));
  return device;
}

/** Registers one test for each kernel family; both run on this machine's adapter. */
export function forEachTarget(name: string, test: (device: Device) => Promise<void>): void {
  for (const family of ["software", "gpu"] as const) {
    Deno.test(`${name} [${family}]`, async () => await test(await testDevice(family)));
  }
}

/** An input or output by binding name: logical shape and, for inputs, elements. */
export interface TestArray {
  readonly shape: readonly number[];
  readonly data: ArrayLike<number>;
}

/**
 * Runs a kernel on uploaded inputs and poisoned outputs.
 *
 * Outputs are NaN before the run, and their padded elements must be 0 after it. A Uint32Array is uploaded as words.
 */
export async function runKernel(
  device: Device,
  kernel: Kernel | KernelSequence,
  inputs: Readonly<Record<string, TestArray | Uint32Array<ArrayBuffer>>>,
  outputs: Readonly<Record<string, readonly number[]>>,
): Promise<Record<string, Float32Array<ArrayBuffer>>> {
  const bindings: Record<string, Tensor> = {};
  for (const [name, input] of Object.entries(inputs)) {
    bindings[name] = input instanceof Uint32Array
      ? device.uint32(input, { label: name })
      : device.fromArray(input.shape, input.data, { label: name });
  }
  for (const [name, shape] of Object.entries(outputs)) {
    const tensor = device.tensor(shape, { label: name });
    device.uploadRaw(tensor, new Float32Array(tensor.byteLength / 4).fill(NaN));
    bindings[name] = tensor;
  }
  device.run(kernel, bindings);
  const results: Record<string, Float32Array<ArrayBuffer>> = {};
  for (const [name, shape] of Object.entries(outputs)) {
    const tensor = bindings[name]!;
    checkPadding(name, shape, await device.readRaw(tensor));
    results[name] = await device.read(tensor);
  }
  for (const tensor of Object.values(bindings)) device.release(tensor);
  return results;
}

function checkPadding(name: string, shape: readonly number[], raw: Float32Array): void {
  const channels = shape.at(-1) ?? 1;
  const stride = Math.ceil(channels / 4) * 4;
  for (let i = 0; i < paddedSize(shape); i++) {
    if (i % stride >= channels && raw[i] !== 0) {
      throw new Error(`${name}: padded element ${i} is ${raw[i]}, expected 0`);
    }
  }
}

/** Fails unless |actual - expected| <= atol + rtol * |expected| everywhere. */
export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { rtol, atol }: { rtol: number; atol: number },
  label: string,
): void {
  if (actual.length !== expected.length) {
    throw new Error(`${label}: ${actual.length} elements, expected ${expected.length}`);
  }
  let worst = -1, excess = 0;
  for (let i = 0; i < expected.length; i++) {
    const over = Math.abs(actual[i]! - expected[i]!) - (atol + rtol * Math.abs(expected[i]!));
    if (!(over <= 0) && !(over <= excess)) {
      worst = i;
      excess = Number.isNaN(over) ? Infinity : over;
    }
  }
  if (worst >= 0) {
    throw new Error(
      `${label}: element ${worst} of ${expected.length} is ${actual[worst]}, expected ${
        expected[worst]
      }`,
    );
  }
}

/** Normal numbers that float32 represents exactly. */
export function randomArray(
  seed: number,
  size: number,
  { scale = 1 }: { scale?: number } = {},
): Float64Array<ArrayBuffer> {
  const rng = new Rng(seed);
  return Float64Array.from({ length: size }, () => Math.fround(rng.normal() * scale));
}
