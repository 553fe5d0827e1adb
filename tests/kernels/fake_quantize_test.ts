import assert from "node:assert/strict";
import {
  fakeQuantizeBackward,
  fakeQuantizeForward,
  type QuantizedShare,
} from "../../kernels/fake_quantize.ts";
import type { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { awayFromThresholds, fakeQuantized } from "../_reference_quant.ts";

/** [rows, channels, quantMin, quantMax, zeroPoint] */
const CASES = [
  [1, 1, 0, 3, 0],
  [7, 3, -8, 7, -2],
  [129, 5, 0, 15, 4],
  [7, 17, -2, 1, 0],
  [129, 64, 0, 255, 10],
] as const;
/** Where a share is quantized, two shapes tell whether padding and rows are right. */
const SHARED = [7, 129];
const SCALE = 0.25; // a power of two: quotients are exact in float32

interface Tensors {
  readonly shape: readonly [rows: number, channels: number];
  readonly x: Float64Array;
  readonly g: Float64Array;
  /** [scale, zeroPoint, quantMin, quantMax] */
  readonly grid: readonly [number, number, number, number];
}

interface Result {
  readonly y: Float32Array;
  readonly dx: Float32Array;
  readonly scaleSums: Float32Array;
  readonly zeroPointSums: Float32Array;
}

for (const [rows, channels, quantMin, quantMax, zeroPoint] of CASES) {
  const tensors: Tensors = {
    shape: [rows, channels],
    x: awayFromThresholds(randomArray(1, rows * channels), SCALE),
    g: randomArray(2, rows * channels),
    grid: [SCALE, zeroPoint, quantMin, quantMax],
  };
  const name = `[${rows}, ${channels}] in ${quantMin}..${quantMax}`;

  forEachTarget(`fakeQuantizeForward() and its backward, all of ${name}`, async (device) => {
    const result = await run(device, tensors, undefined, {});
    compare(result, tensors, () => 1, 0);
  });

  if (channels % 4 === 0 || !SHARED.includes(rows)) continue;

  forEachTarget(`fakeQuantizeForward() and its backward, ever more of ${name}`, async (device) => {
    const share = { kind: "gradual", steps: 8 } as const;
    for (const [step, part] of [[0, 1 / 8], [2, 3 / 8], [7, 1], [11, 1]] as const) {
      // a float32 interpolation
      compare(await run(device, tensors, share, { step }), tensors, () => part, 1e-6);
    }
  });

  forEachTarget(`fakeQuantizeForward() and its backward, a share of ${name}`, async (device) => {
    const share = { kind: "random", probability: 0.5, stream: 3 } as const;
    const result = await run(device, tensors, share, { step: 4, seed: 9 });
    // The backward pass has to know which elements the forward pass chose.
    compare(result, tensors, (i) => result.y[i] === tensors.x[i] ? 0 : 1, 0);
  });
}

forEachTarget("fakeQuantizeForward() sends ties to the even code", async (device) => {
  const x = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -4.5];
  const inputs = {
    x: { shape: [2, 4], data: x },
    qparams: { shape: [4], data: [1, 0, -4, 3] },
  };
  const kernel = fakeQuantizeForward({ rows: 2, channels: 4 }, device.target);
  const { y } = await runKernel(device, kernel, inputs, { y: [2, 4] });
  assertClose(y!, [0, 2, 2, 3, 0, -2, -2, -4], { rtol: 0, atol: 0 }, "y");
});

forEachTarget(
  "fakeQuantizeForward() chooses as often as asked, anew by step, stream and seed",
  async (device) => {
    const size = 129 * 64;
    const tensors: Tensors = {
      shape: [129, 64],
      x: awayFromThresholds(randomArray(1, size), SCALE),
      g: new Float64Array(size),
      grid: [SCALE, 0, -8, 7],
    };
    const choose = async (probability: number, step: number, stream: number, seed: number) => {
      const share = { kind: "random", probability, stream } as const;
      const { y } = await run(device, tensors, share, { step, seed });
      return Array.from(y, (value, i) => value !== tensors.x[i]);
    };
    const share = (choices: boolean[]) => choices.filter(Boolean).length / size;
    const bound = 5 * 0.5 / Math.sqrt(size); // five standard deviations at most
    for (const probability of [0.25, 0.5, 0.9]) {
      const found = share(await choose(probability, 0, 1, 0));
      assert.ok(Math.abs(found - probability) < bound, `${found} for ${probability}`);
    }
    const base = await choose(0.5, 4, 1, 7);
    assert.deepEqual(await choose(0.5, 4, 1, 7), base);
    for (const [step, stream, seed] of [[5, 1, 7], [4, 2, 7], [4, 1, 8]] as const) {
      const other = await choose(0.5, step, stream, seed);
      const same = share(other.map((choice, i) => choice === base[i]));
      // independent choices agree half of the time
      assert.ok(Math.abs(same - 0.5) < bound, `${same} at ${[step, stream, seed]}`);
    }
  },
);

/** Runs forward and backward on a training state. */
async function run(
  device: Device,
  { shape, x, g, grid }: Tensors,
  share: QuantizedShare | undefined,
  { step = 0, seed = 0 }: { step?: number; seed?: number },
): Promise<Result> {
  const [rows, channels] = shape;
  const spec = { rows, channels, ...(share && { share }) };
  const state = [step, 0, 0, 0, 0, 0, 0, seed, ...Array<number>(8).fill(NaN)];
  const inputs = {
    x: { shape, data: x },
    qparams: { shape: [4], data: grid },
    ...(share && { state: { shape: [16], data: state } }),
  };
  const { y } = await runKernel(device, fakeQuantizeForward(spec, device.target), inputs, {
    y: shape,
  });
  const { dx, scale_sums, zero_point_sums } = await runKernel(
    device,
    fakeQuantizeBackward(spec, device.target),
    { ...inputs, dy: { shape, data: g } },
    { dx: shape, scale_sums: [channels], zero_point_sums: [channels] },
  );
  return { y: y!, dx: dx!, scaleSums: scale_sums!, zeroPointSums: zero_point_sums! };
}

/** Against y = x + k (Q(x) - x) and its straight-through gradients. */
function compare(
  result: Result,
  { shape: [, channels], x, g, grid: [scale, zeroPoint, quantMin, quantMax] }: Tensors,
  partOf: (element: number) => number,
  rounding: number,
): void {
  const y = new Float64Array(x.length), dx = new Float64Array(x.length);
  const dscale = new Float64Array(channels), dzeroPoint = new Float64Array(channels);
  x.forEach((value, i) => {
    const k = partOf(i);
    const host = fakeQuantized(value, scale, zeroPoint, quantMin, quantMax);
    y[i] = value + k * (host.y - value);
    dx[i] = g[i]! * (1 - k + k * host.dx);
    dscale[i % channels]! += g[i]! * k * host.dscale;
    dzeroPoint[i % channels]! += g[i]! * k * host.dzeroPoint;
  });
  const exact = { rtol: rounding, atol: rounding };
  assertClose(result.y, y, exact, "y");
  assertClose(result.dx, dx, exact, "dx");
  const sums = { rtol: 1e-5, atol: 2e-5 }; // 129 float32 terms of order 1
  assertClose(result.scaleSums, dscale, sums, "scale sums");
  assertClose(result.zeroPointSums, dzeroPoint, sums, "zero-point sums");
}
