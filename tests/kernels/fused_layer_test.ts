import assert from "node:assert/strict";
import type { Activation } from "../../kernels/activation.ts";
import { batchNormStatistics } from "../../kernels/batch_norm.ts";
import {
  batchNormBackward,
  fusedLayerBackward,
  fusedLayerChunks,
  fusedLayerForward,
  fusedLayerReduce,
  type FusedLayerSpec,
  fusedLayerSquaredError,
} from "../../kernels/fused_layer.ts";
import { Rng } from "../../src/core/rng.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { assertClose, forEachTarget, randomArray, runKernel, type TestArray } from "../_gpu.ts";
import { activationReference, numericGradient } from "../_reference.ts";
import { batchNorm, derivative, fakeQuantized } from "../_reference_quant.ts";

const SHAPES = [[1, 1], [7, 3], [129, 4], [7, 10], [129, 17], [1, 64], [300, 3], [7, 64]] as const;
const SCALE = 0.21875, ZERO_POINT = 3, QUANT_MIN = 0, QUANT_MAX = 11;
const QPARAMS = [SCALE, ZERO_POINT, QUANT_MIN, QUANT_MAX];

const SPECS = [true, false].flatMap((batchNorm) =>
  [false, true].flatMap((residual) =>
    ([undefined, { kind: "relu" }, { kind: "hardSwish" }] as (Activation | undefined)[]).flatMap(
      (activation) =>
        [false, true].map((fakeQuantize) => ({
          batchNorm,
          residual,
          ...(activation && { activation }),
          fakeQuantize,
        })),
    )
  )
);

// every combination once, spread over the shapes
SHAPES.forEach(([rows, channels], at) => {
  forEachTarget(`fusedLayer [${rows}, ${channels}] forward, backward, reduce`, async (device) => {
    for (const [i, part] of SPECS.entries()) {
      if (i % SHAPES.length === at) await checkLayer(device, { rows, channels, ...part });
    }
  });
});

async function checkLayer(device: Device, spec: FusedLayerSpec): Promise<void> {
  const { rows, channels, batchNorm, activation, fakeQuantize } = spec;
  const label = `${batchNorm}, ${spec.residual}, ${activation?.kind}, ${fakeQuantize}`;
  const data = layer(spec);
  const shape = [rows, channels];
  const array = (values: Float64Array, size: number[]): TestArray => ({
    shape: size,
    data: values,
  });
  const inputs: Record<string, TestArray> = {
    x: array(data.x, shape),
    ...(batchNorm && { affine: array(data.affine, [2, channels]) }),
    ...(spec.residual && { residual: array(data.residual, shape) }),
    ...(fakeQuantize && { qparams: { shape: [4], data: QPARAMS } }),
  };
  const { y } = await runKernel(device, fusedLayerForward(spec, device.target), inputs, {
    y: shape,
  });
  const host = Array.from(data.z, (z) => element(spec, z));
  // one multiplication and two additions in float32; codes are exact because u is away from ties
  const tolerance = { rtol: 1e-6, atol: 1e-6 };
  assertClose(y!, host.map((e) => e.y), tolerance, `y: ${label}`);

  const chunks = fusedLayerChunks(spec, device.target);
  const saved = array(data.saved, [2, channels]);
  const back = await runKernel(
    device,
    fusedLayerBackward(spec, device.target),
    { ...inputs, ...(batchNorm && { saved }), dy: array(data.dy, shape) },
    { dz: shape, partials: [chunks * 3, channels] },
  );
  const dz = host.map((e, i) => e.dz * data.dy[i]!);
  assertClose(back.dz!, dz, { rtol: 1e-5, atol: 1e-6 }, `dz: ${label}`);

  const fused = await runKernel(
    device,
    fusedLayerSquaredError(spec, 1.5, device.target),
    {
      ...inputs,
      ...(batchNorm && { saved }),
      teacher: array(data.teacher, shape),
      weight: { shape: [1], data: [0.75] },
    },
    { dz: shape, partials: [chunks * 3, channels], errors: [chunks, channels] },
  );
  const errors = host.map((e, i) => e.y - data.teacher[i]!);
  const slope = 2 * 1.5 * 0.75 / (rows * channels);
  const fusedDz = host.map((e, i) => e.dz * slope * errors[i]!);
  assertClose(fused.dz!, fusedDz, { rtol: 1e-5, atol: 1e-6 }, `dz of the error: ${label}`);
  const squares = Array(channels).fill(0), scaleTerms = Array(channels).fill(0);
  errors.forEach((error, i) => {
    squares[i % channels] += error * error;
    scaleTerms[i % channels] += slope * error * host[i]!.dscale;
  });
  const overChunks = (values: Float32Array, first: number, count: number) =>
    Array.from({ length: channels }, (_, c) => {
      let total = 0;
      for (let k = 0; k < chunks; k++) total += values[(k * count + first) * channels + c]!;
      return total;
    });
  // up to 300 terms in float32
  const summed = { rtol: 1e-5, atol: 1e-4 };
  assertClose(overChunks(fused.errors!, 0, 1), squares, summed, `errors: ${label}`);
  assertClose(overChunks(fused.partials!, 2, 3), scaleTerms, summed, `scale terms: ${label}`);

  const sums = { dshift: [0], dscale: [0], scale: [0] };
  for (const name of ["dshift", "dscale", "scale"] as const) sums[name] = Array(channels).fill(0);
  dz.forEach((value, i) => {
    const c = i % channels;
    const xhat = (data.x[i]! - data.saved[c]!) * data.saved[channels + c]!;
    sums.dshift[c]! += value;
    sums.dscale[c]! += value * xhat;
    sums.scale[c]! += data.dy[i]! * host[i]!.dscale;
  });
  for (const live of batchNorm ? [1, 0] : [1]) {
    const wanted = { dshift: true, dscale: batchNorm, scaleSums: fakeQuantize === true };
    const result = await runKernel(
      device,
      fusedLayerReduce(spec, wanted, device.target),
      {
        partials: { shape: [chunks * 3, channels], data: back.partials! },
        ...(batchNorm && { affine: inputs.affine!, state: stateOf(live) }),
      },
      {
        ...(wanted.dshift && { dshift: [channels] }),
        ...(batchNorm && { dscale: [channels], coefficients: [3, channels] }),
        ...(wanted.scaleSums && { scale_sums: [channels] }),
      },
    );
    // up to 300 terms of order 1, of order 10 for the quantizer, in float32
    const close = { rtol: 1e-5, atol: 1e-4 };
    if (wanted.dshift) assertClose(result.dshift!, sums.dshift, close, `dshift: ${label}`);
    if (batchNorm) assertClose(result.dscale!, sums.dscale, close, `dscale: ${label}`);
    if (wanted.scaleSums) assertClose(result.scale_sums!, sums.scale, close, `scale: ${label}`);
    if (!batchNorm) continue;
    const mean = (values: number[]) => values.map((value) => live * value / rows);
    const expected = [
      ...data.affine.slice(0, channels),
      ...mean(sums.dshift),
      ...mean(sums.dscale),
    ];
    assertClose(result.coefficients!, expected, close, `coefficients: ${label}`);
  }
}

forEachTarget("batchNormBackward() after a fused layer is the derivative", async (device) => {
  const [rows, channels] = [37, 5], epsilon = 1e-3, size = rows * channels;
  const spec = {
    rows,
    channels,
    batchNorm: true,
    residual: true,
    activation: { kind: "tanh" }, // smooth: no kink for the differences to straddle
  } as const;
  const shape = [rows, channels], vector = [channels];
  const data = {
    x: randomArray(1, size),
    residual: randomArray(2, size),
    dy: randomArray(3, size),
    gamma: randomArray(4, channels),
    beta: randomArray(5, channels),
    running_mean: randomArray(6, channels),
    running_variance: randomArray(7, channels).map((v) => Math.fround(v * v + 0.5)),
  };
  for (const live of [1, 0]) {
    const t: Record<string, Tensor> = { state: device.fromArray([16], stateOf(live).data) };
    for (const [name, values] of Object.entries(data)) {
      t[name] = device.fromArray(values.length === size ? shape : vector, values);
    }
    for (const name of ["y", "dz", "dx"]) t[name] = device.tensor(shape);
    for (const name of ["affine", "saved"]) t[name] = device.tensor([2, channels]);
    for (const name of ["dshift", "dscale"]) t[name] = device.tensor(vector);
    t.coefficients = device.tensor([3, channels]);
    t.partials = device.tensor([3 * fusedLayerChunks(spec, device.target), channels]);
    const statistics = { rows, channels, epsilon, momentum: 0.1 };
    const kernels = [
      fusedLayerForward(spec, device.target),
      fusedLayerBackward(spec, device.target),
      fusedLayerReduce(spec, { dshift: true, dscale: true, scaleSums: false }, device.target),
      batchNormBackward({ rows, channels }, device.target),
    ];
    const { gamma, beta, running_mean, running_variance, state, x, affine, saved } = t;
    device.run(batchNormStatistics(statistics, device.target), {
      x: x!,
      gamma: gamma!,
      beta: beta!,
      state: state!,
      running_mean: running_mean!,
      running_variance: running_variance!,
      affine: affine!,
      saved: saved!,
    });
    for (const kernel of kernels) {
      device.run(kernel, Object.fromEntries(kernel.bindings.map(({ name }) => [name, t[name]!])));
    }
    const forward = (values: Float64Array, gammas: Float64Array, betas: Float64Array) => {
      const z = live ? batchNorm(values, gammas, betas, rows, epsilon) : values.map((value, i) => {
        const c = i % channels;
        const xhat = (value - data.running_mean[c]!) /
          Math.sqrt(data.running_variance[c]! + epsilon);
        return gammas[c]! * xhat + betas[c]!;
      });
      return z.map((value, i) => Math.tanh(value + data.residual[i]!));
    };
    const gradients = {
      dx: numericGradient((v) => forward(v, data.gamma, data.beta), data.x, data.dy),
      dscale: numericGradient((v) => forward(data.x, v, data.beta), data.gamma, data.dy),
      dshift: numericGradient((v) => forward(data.x, data.gamma, v), data.beta, data.dy),
    };
    // float32 sums of 37 terms of order 1; differences are good to 1e-9
    const close = { rtol: 1e-4, atol: 2e-5 };
    const y = forward(data.x, data.gamma, data.beta);
    assertClose(await device.read(t.y!), y, { rtol: 1e-5, atol: 1e-5 }, "y");
    for (const [name, expected] of Object.entries(gradients)) {
      assertClose(await device.read(t[name]!), expected, close, `${name}, live ${live}`);
    }
    for (const tensor of Object.values(t)) device.release(tensor);
  }
});

forEachTarget("fusedLayerBackward() gives the same bits every time", async (device) => {
  const spec = { rows: 300, channels: 10, batchNorm: false, residual: false } as const;
  const run = () =>
    runKernel(device, fusedLayerBackward(spec, device.target), {
      x: { shape: [300, 10], data: randomArray(1, 3000) },
      dy: { shape: [300, 10], data: randomArray(3, 3000) },
    }, { dz: [300, 10], partials: [fusedLayerChunks(spec, device.target) * 3, 10] });
  assert.deepEqual(await run(), await run());
});

interface LayerData {
  readonly x: Float64Array;
  readonly residual: Float64Array;
  readonly dy: Float64Array;
  readonly teacher: Float64Array;
  readonly affine: Float64Array;
  readonly saved: Float64Array;
  readonly z: Float64Array;
}

/** Values whose u is away from the thresholds of the quantizer and whose z is away from the kinks. */
function layer(spec: FusedLayerSpec): LayerData {
  const { rows, channels, batchNorm } = spec;
  const size = rows * channels;
  const rng = new Rng(7);
  const affine = randomArray(2, 2 * channels);
  const residual = randomArray(4, size);
  const z = new Float64Array(size);
  const x = Float64Array.from({ length: size }, (_, i) => {
    const c = i % channels;
    for (;;) {
      const value = Math.fround(3 * rng.normal());
      const linear = batchNorm ? value * affine[c]! + affine[channels + c]! : value;
      z[i] = linear + (spec.residual ? residual[i]! : 0);
      if (safe(spec, z[i]!)) return value;
    }
  });
  return {
    x,
    z,
    residual,
    affine,
    saved: randomArray(5, 2 * channels),
    dy: randomArray(6, size),
    teacher: randomArray(8, size),
  };
}

function safe({ activation, fakeQuantize }: FusedLayerSpec, z: number): boolean {
  if (activation && [-3, 0, 3].some((kink) => Math.abs(z - kink) < 0.01)) return false;
  const u = activation ? activationReference(activation, z) : z;
  const doubled = 2 * u / SCALE;
  return !fakeQuantize || u === 0 || Math.abs(doubled - Math.round(doubled)) > 0.01;
}

/** y, dz / dy and ds / dy of one element, by definition. */
function element(
  { activation, fakeQuantize }: FusedLayerSpec,
  z: number,
): { y: number; dz: number; dscale: number } {
  const u = activation ? activationReference(activation, z) : z;
  const slope = activation ? derivative((v) => activationReference(activation, v), z) : 1;
  if (!fakeQuantize) return { y: u, dz: slope, dscale: 0 };
  const { y, dx, dscale } = fakeQuantized(u, SCALE, ZERO_POINT, QUANT_MIN, QUANT_MAX);
  return { y, dz: dx * slope, dscale };
}

function stateOf(live: number): { shape: number[]; data: number[] } {
  return { shape: [16], data: [0, 0, 0, 0, live, ...Array(11).fill(NaN)] };
}
