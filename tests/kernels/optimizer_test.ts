import assert from "node:assert/strict";
import { adam, sgd } from "../../kernels/optimizer.ts";
import type { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";

// several workgroups of 1024 floats, the last one partly filled; its last chunk trains
const SIZE = 2048 + 128;
const STEPS = 3;
const FACTORS = [0.5, 1, 0.25];

/** Chunks take turns at three rates, one of them 0. */
const RATES = Float64Array.from({ length: SIZE / 64 }, (_, i) => [0.01, 0, 0.003][i % 3]!);

interface AdamCase {
  readonly weightDecay?: number;
  readonly decoupled?: boolean;
}

for (const options of [{}, { weightDecay: 0.1 }, { weightDecay: 0.1, decoupled: true }]) {
  forEachTarget(`adam(${JSON.stringify(options)}) takes PyTorch's steps`, async (device) => {
    const beta1 = 0.9, beta2 = 0.99, epsilon = 1e-3;
    const kernel = adam({ size: SIZE, beta1, beta2, epsilon, ...options }, device.target);
    const { weightDecay = 0, decoupled = false }: AdamCase = options;
    await compare(device, kernel, 2, (p, g, moments, rate, step) => {
      if (decoupled) p *= 1 - rate * weightDecay;
      else g += weightDecay * p;
      const m = moments[0]! = beta1 * moments[0]! + (1 - beta1) * g;
      const v = moments[1]! = beta2 * moments[1]! + (1 - beta2) * g * g;
      const unbiased = Math.sqrt(v / (1 - beta2 ** (step + 1)));
      return p - rate * m / (1 - beta1 ** (step + 1)) / (unbiased + epsilon);
    });
  });
}

for (
  const options of [
    { momentum: 0.9, nesterov: true, weightDecay: 1e-2 },
    { momentum: 0.9, nesterov: false, weightDecay: 0 },
    { momentum: 0, nesterov: false, weightDecay: 1e-2 },
  ]
) {
  forEachTarget(`sgd(${JSON.stringify(options)}) takes PyTorch's steps`, async (device) => {
    const { momentum, nesterov, weightDecay } = options;
    const kernel = sgd({ size: SIZE, ...options }, device.target);
    await compare(device, kernel, momentum === 0 ? 0 : 1, (p, g, moments, rate) => {
      g += weightDecay * p;
      if (momentum === 0) return p - rate * g;
      const m = moments[0]! = momentum * moments[0]! + g;
      return p - rate * (nesterov ? g + momentum * m : m);
    });
  });
}

Deno.test("adam() refuses a size that is not whole chunks", () => {
  const spec = { size: 100, beta1: 0.9, beta2: 0.99, epsilon: 1e-8 };
  assert.throws(() => adam(spec, { family: "gpu", subgroupSize: 0 }), /multiple of 64/);
});

type Update = (p: number, g: number, moments: number[], rate: number, step: number) => number;

/** Runs three steps on the device and on the host; frozen chunks must not change at all. */
async function compare(
  device: Device,
  kernel: ReturnType<typeof adam>,
  momentCount: number,
  update: Update,
): Promise<void> {
  const start = randomArray(1, SIZE);
  const expected = Float64Array.from(start);
  const moments = Array.from({ length: SIZE }, () => Array<number>(momentCount).fill(0));
  const parameters = device.fromArray([SIZE], start);
  const gradients = device.tensor([SIZE]);
  const learning_rates = device.fromArray([RATES.length], RATES);
  const state = device.tensor([16]);
  const buffers = Array.from({ length: momentCount }, () => device.tensor([SIZE]));
  const named = Object.fromEntries(buffers.map((buffer, i) => [`moment${i + 1}`, buffer]));
  for (let step = 0; step < STEPS; step++) {
    const factor = FACTORS[step]!; // STEPS factors
    const g = randomArray(10 + step, SIZE);
    device.upload(gradients, g);
    const words = new Float32Array(16);
    words.set([step, factor, 1 - 0.9 ** (step + 1), 1 - 0.99 ** (step + 1)]);
    device.upload(state, words);
    device.run(kernel, { parameters, gradients, learning_rates, state, ...named });
    for (let i = 0; i < SIZE; i++) {
      const rate = RATES[i >> 6]!;
      if (rate !== 0) expected[i] = update(expected[i]!, g[i]!, moments[i]!, rate * factor, step);
    }
  }
  // float32 rounding of values around 1 over three steps
  assertClose(await device.read(parameters), expected, { rtol: 1e-6, atol: 1e-6 }, "parameters");
  for (let m = 0; m < momentCount; m++) {
    const host = moments.map((values) => values[m]!);
    assertClose(await device.read(buffers[m]!), host, { rtol: 1e-6, atol: 1e-6 }, `moment ${m}`);
  }
  const after = await device.read(parameters);
  const frozen = RATES.findIndex((rate) => rate === 0) * 64;
  assert.deepEqual(
    [...after.slice(frozen, frozen + 64)],
    [...start.slice(frozen, frozen + 64)],
    "a rate of 0 freezes the chunk",
  );
  for (const tensor of [parameters, gradients, learning_rates, state, ...buffers]) {
    device.release(tensor);
  }
}
