import assert from "node:assert/strict";
import { adam, sgd } from "../../kernels/optimizer.ts";
import type { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";

// several workgroups of 1024 floats, the last one partly filled; its last chunk trains
const SIZE = 2048 + 128;
const STEPS = 3;
const FACTORS = [0.5, 1, 0.25];

/** [scheduled, constant, decay]: chunks take turns; two of the five are frozen, whatever their decay. */
const RATES = [[0.01, 0, 0.1], [0, 0, 0], [0, 0.003, 0], [0.004, 0.002, 0.3], [0, 0, 0.5]] as const;
const ratesOf = (i: number) => RATES[(i >> 6) % RATES.length]!;

forEachTarget("adam() takes PyTorch's AdamW steps", async (device) => {
  const beta1 = 0.9, beta2 = 0.99, epsilon = 1e-3;
  const kernel = adam({ size: SIZE, beta1, beta2, epsilon }, device.target);
  await compare(device, kernel, 2, (p, g, moments, rate, decay, step) => {
    p *= 1 - rate * decay;
    const m = moments[0]! = beta1 * moments[0]! + (1 - beta1) * g;
    const v = moments[1]! = beta2 * moments[1]! + (1 - beta2) * g * g;
    const unbiased = Math.sqrt(v / (1 - beta2 ** (step + 1)));
    return p - rate * m / (1 - beta1 ** (step + 1)) / (unbiased + epsilon);
  });
});

for (
  const options of [
    { momentum: 0.9, nesterov: true },
    { momentum: 0.9, nesterov: false },
    { momentum: 0, nesterov: false },
  ]
) {
  forEachTarget(`sgd(${JSON.stringify(options)}) takes PyTorch's steps`, async (device) => {
    const { momentum, nesterov } = options;
    const kernel = sgd({ size: SIZE, ...options }, device.target);
    await compare(device, kernel, momentum === 0 ? 0 : 1, (p, g, moments, rate, decay) => {
      g += decay * p;
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

type Update = (
  p: number,
  g: number,
  moments: number[],
  rate: number,
  decay: number,
  step: number,
) => number;

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
  const rows = Array.from({ length: SIZE / 64 }, (_, chunk) => [...ratesOf(chunk * 64), NaN]);
  const learning_rates = device.fromArray([rows.length, 4], rows.flat());
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
      const [scheduled, constant, decay] = ratesOf(i);
      const rate = scheduled * factor + constant;
      if (rate !== 0) expected[i] = update(expected[i]!, g[i]!, moments[i]!, rate, decay, step);
    }
  }
  // float32 rounding of values around 1 over three steps
  assertClose(await device.read(parameters), expected, { rtol: 1e-6, atol: 1e-6 }, "parameters");
  for (let m = 0; m < momentCount; m++) {
    const host = moments.map((values) => values[m]!);
    assertClose(await device.read(buffers[m]!), host, { rtol: 1e-6, atol: 1e-6 }, `moment ${m}`);
  }
  const after = await device.read(parameters);
  for (const chunk of [1, 4]) {
    const frozen = [...after.slice(chunk * 64, (chunk + 1) * 64)];
    assert.deepEqual(frozen, [...start.slice(chunk * 64, (chunk + 1) * 64)], "no rate, no change");
  }
  for (const tensor of [parameters, gradients, learning_rates, state, ...buffers]) {
    device.release(tensor);
  }
}
