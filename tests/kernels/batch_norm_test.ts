import assert from "node:assert/strict";
import {
  batchNormAffine,
  batchNormGradients,
  batchNormStatistics,
} from "../../kernels/batch_norm.ts";
import { batchNormBackward } from "../../kernels/fused_layer.ts";
import type { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { batchNorm, columnStatistics, derivative, sum } from "../_reference_quant.ts";

const SHAPES = [[1, 1], [7, 3], [129, 5], [7, 17], [129, 64]] as const;
const EPSILON = 1e-5, MOMENTUM = 0.05;

for (const [rows, channels] of SHAPES) {
  forEachTarget(`batchNormStatistics() [${rows}, ${channels}] of the batch`, async (device) => {
    const { x, gamma, beta, mean, variance } = layer(rows, channels);
    const actual = await statistics(device, rows, channels, { live: 1 });
    const batch = columnStatistics(x, rows, channels);
    const unbiased = batch.variance.map((value) => value * rows / Math.max(1, rows - 1));
    const inverse = batch.variance.map((value) => 1 / Math.sqrt(value + EPSILON));
    const scale = gamma.map((value, c) => value * inverse[c]!);
    const shift = beta.map((value, c) => value - batch.mean[c]! * scale[c]!);
    const mix = (old: Float64Array, now: Float64Array): Float64Array =>
      old.map((value, c) => (1 - MOMENTUM) * value + MOMENTUM * now[c]!);
    // one row: the variance is 0 up to the rounding of the shifted squares, and 1 / std reaches 316
    const tolerance = rows === 1 ? { rtol: 1e-2, atol: 1e-4 } : { rtol: 2e-5, atol: 2e-5 };
    assertClose(actual.saved!, [...batch.mean, ...inverse], tolerance, "saved");
    assertClose(actual.affine!, [...scale, ...shift], tolerance, "affine");
    const exact = { rtol: 1e-5, atol: 1e-6 };
    assertClose(actual.running_mean!, mix(mean, batch.mean), exact, "running_mean");
    assertClose(actual.running_variance!, mix(variance, unbiased), exact, "running_variance");
  });

  forEachTarget(
    `batchNormGradients() [${rows}, ${channels}] are the derivatives`,
    async (device) => {
      const { x, gamma, beta } = layer(rows, channels);
      const shape = [rows, channels], dz = randomArray(9, rows * channels);
      for (const live of rows === 1 ? [0] : [0, 1]) {
        const { affine, saved } = await statistics(device, rows, channels, { live });
        const inputs = {
          x: { shape, data: x },
          dz: { shape, data: dz },
          saved: { shape: [2, channels], data: saved! },
        };
        const gradients = await runKernel(
          device,
          batchNormGradients({ rows, channels }, device.target),
          { ...inputs, affine: { shape: [2, channels], data: affine! }, state: stateOf(live) },
          { dgamma: [channels], dbeta: [channels], coefficients: [3, channels] },
        );
        const coefficients = { shape: [3, channels], data: gradients.coefficients! };
        const { dx } = await runKernel(
          device,
          batchNormBackward({ rows, channels }, device.target),
          { ...inputs, coefficients },
          { dx: shape },
        );
        const loss = live === 1
          ? (xs: Float64Array, gammas: Float64Array, betas: Float64Array): number =>
            sum(batchNorm(xs, gammas, betas, rows, EPSILON).map((z, i) => z * dz[i]!))
          : (xs: Float64Array, gammas: Float64Array, betas: Float64Array): number =>
            sum(xs.map((value, i) => {
              const c = i % channels;
              const xhat = (value - saved![c]!) * saved![channels + c]!;
              return (gammas[c]! * xhat + betas[c]!) * dz[i]!;
            }));
        const probe = (at: number, values: Float64Array): number[] =>
          Array.from(values.slice(0, 20), (value, i) =>
            derivative(
              (moved) => {
                const changed = [x, gamma, beta];
                changed[at] = values.with(i, moved);
                return loss(...changed as [Float64Array, Float64Array, Float64Array]); // x, gamma, beta
              },
              value,
              1e-4,
            ));
        // float32 sums of 129 terms of order 1; central differences are good to 1e-7
        const tolerance = { rtol: 1e-4, atol: 1e-4 };
        assertClose(dx!.slice(0, 20), probe(0, x), tolerance, `dx, live ${live}`);
        assertClose(gradients.dgamma!.slice(0, 20), probe(1, gamma), tolerance, "dgamma");
        assertClose(gradients.dbeta!.slice(0, 20), probe(2, beta), tolerance, "dbeta");
      }
    },
  );
}

forEachTarget("batchNormStatistics() uses the running statistics when frozen", async (device) => {
  const [rows, channels] = [7, 5];
  const { gamma, beta, mean, variance } = layer(rows, channels);
  const actual = await statistics(device, rows, channels, { live: 0 });
  assert.deepEqual(actual.running_mean, Float32Array.from(mean));
  assert.deepEqual(actual.running_variance, Float32Array.from(variance));
  const vector = (data: Float64Array) => ({ shape: [channels], data });
  const inference = await runKernel(
    device,
    batchNormAffine({ channels, epsilon: EPSILON }, device.target),
    { gamma: vector(gamma), beta: vector(beta), mean: vector(mean), variance: vector(variance) },
    { affine: [2, channels] },
  );
  const scale = gamma.map((value, c) => value / Math.sqrt(variance[c]! + EPSILON));
  const shift = beta.map((value, c) => value - mean[c]! * scale[c]!);
  // division and square root of float32
  assertClose(inference.affine!, [...scale, ...shift], { rtol: 1e-6, atol: 1e-6 }, "affine");
  assertClose(actual.affine!, [...scale, ...shift], { rtol: 1e-6, atol: 1e-6 }, "frozen affine");
});

forEachTarget("batchNormStatistics() keeps its digits when the mean is large", async (device) => {
  const [rows, channels] = [129, 5];
  const { x } = layer(rows, channels);
  const far = x.map((value) => Math.fround(1000 + value));
  const running = new Float64Array(channels).fill(1000);
  const actual = await statistics(device, rows, channels, { live: 1, x: far, mean: running });
  const batch = columnStatistics(far, rows, channels);
  const inverse = batch.variance.map((value) => 1 / Math.sqrt(value + EPSILON));
  // without the shift the squares near 1e6 would leave 1e-1 of the variance
  assertClose(actual.saved!.slice(channels), inverse, { rtol: 1e-5, atol: 0 }, "1 / std");
});

interface Layer {
  readonly x: Float64Array<ArrayBuffer>;
  readonly gamma: Float64Array<ArrayBuffer>;
  readonly beta: Float64Array<ArrayBuffer>;
  readonly mean: Float64Array<ArrayBuffer>;
  readonly variance: Float64Array<ArrayBuffer>;
}

function layer(rows: number, channels: number): Layer {
  return {
    x: randomArray(1, rows * channels).map((value) => Math.fround(value + 0.5)),
    gamma: randomArray(2, channels),
    beta: randomArray(3, channels),
    mean: randomArray(4, channels),
    variance: randomArray(5, channels).map((value) => Math.fround(0.5 + value * value)),
  };
}

function stateOf(live: number): { shape: number[]; data: number[] } {
  return { shape: [16], data: [0, 0, 0, 0, live, ...Array(11).fill(NaN)] };
}

async function statistics(
  device: Device,
  rows: number,
  channels: number,
  changes: { live: number; x?: Float64Array; mean?: Float64Array },
): Promise<Record<string, Float32Array>> {
  const values = { ...layer(rows, channels), ...changes };
  const spec = { rows, channels, epsilon: EPSILON, momentum: MOMENTUM };
  const bindings = {
    x: device.fromArray([rows, channels], values.x),
    gamma: device.fromArray([channels], values.gamma),
    beta: device.fromArray([channels], values.beta),
    state: device.fromArray([16], stateOf(changes.live).data),
    running_mean: device.fromArray([channels], values.mean),
    running_variance: device.fromArray([channels], values.variance),
    affine: device.fromArray([2, channels], Array(2 * channels).fill(NaN)),
    saved: device.fromArray([2, channels], Array(2 * channels).fill(NaN)),
  };
  device.run(batchNormStatistics(spec, device.target), bindings);
  const results: Record<string, Float32Array> = {};
  for (const name of ["running_mean", "running_variance", "affine", "saved"] as const) {
    results[name] = await device.read(bindings[name]);
  }
  const raw = await device.readRaw(bindings.saved);
  for (let i = channels; i < raw.length / 2; i++) {
    assert.equal(raw[raw.length / 2 + i], 0, "padded 1 / std");
  }
  for (const tensor of Object.values(bindings)) device.release(tensor);
  return results;
}
