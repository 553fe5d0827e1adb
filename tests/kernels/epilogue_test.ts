import assert from "node:assert/strict";
import type { Activation } from "../../kernels/activation.ts";
import { conv2dForward } from "../../kernels/conv2d.ts";
import { depthwiseConv2dForward } from "../../kernels/depthwise_conv2d.ts";
import type { Epilogue } from "../../kernels/epilogue.ts";
import { gemm } from "../../kernels/gemm.ts";
import type { KernelSequence } from "../../kernels/kernel.ts";
import type { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { activationReference, gemmReference } from "../_reference.ts";
import {
  convShapes,
  convSpec,
  depthwiseToGrouped,
  groupedToDepthwise,
  referenceForward,
  sizeOf,
} from "../_reference_conv.ts";
import { fakeQuantized } from "../_reference_quant.ts";
import { ACTIVATIONS, nameOf } from "./_activations.ts";

const QPARAMS = [0.25, 2, -4, 11] as const;

/** A linear kernel: inputs, the exact product, shape of y. */
interface Linear {
  readonly kernel: (epilogue: Epilogue) => KernelSequence;
  readonly inputs: Record<string, { shape: readonly number[]; data: Float64Array }>;
  readonly product: Float64Array;
  readonly shape: readonly number[];
}

// 5 channels: three padded ones, which sigmoid(0) would fill
for (const activation of ACTIVATIONS) {
  forEachTarget(`conv2dForward() ends with ${nameOf(activation)}`, async (device) => {
    await check(device, conv(device), { activation });
  });
}

const HARD: Activation = { kind: "hardSigmoid", alpha: 0.3, beta: 0.4 };
const ENDS: readonly Epilogue[] = [
  { activation: { kind: "sigmoid" } },
  { bias: true, activation: HARD, fakeQuantize: true },
  { bias: true, residual: true, activation: { kind: "relu" }, fakeQuantize: true },
  { residual: true, fakeQuantize: true },
  { bias: true, residual: true, activation: { kind: "sigmoid" }, keepsPreActivation: true },
];

for (const end of ENDS) {
  const name = Object.keys(end).join(", ");
  forEachTarget(`depthwiseConv2dForward() ends with ${name}`, async (device) => {
    await check(device, depthwise(device), end);
  });
  forEachTarget(`gemm() ends with ${name}`, async (device) => {
    await check(device, product(device), end);
  });
  forEachTarget(`conv2dForward() of a group ends with ${name}`, async (device) => {
    await check(device, conv(device, { channels: [6, 10], group: 2 }), end);
  });
}

forEachTarget("conv2dForward() lets values pass a quantizer without a scale", async (device) => {
  const end = { activation: { kind: "relu" } } as const;
  const { kernel, inputs, shape } = conv(device);
  const plain = await runKernel(device, kernel(end), inputs, { y: shape });
  const qparams = { shape: [4], data: [0, 0, 0, 0] };
  const quantized = kernel({ ...end, fakeQuantize: true });
  const passed = await runKernel(device, quantized, { ...inputs, qparams }, { y: shape });
  assert.deepEqual(passed.y, plain.y);
});

async function check(device: Device, linear: Linear, end: Epilogue): Promise<void> {
  const { inputs, shape } = linear;
  const channels = shape.at(-1)!;
  const size = linear.product.length;
  const bias = randomArray(8, channels);
  // where the end quantizes, the residual moves every value to the middle of a step
  const residual = randomArray(9, size).map((value, i) => {
    const before = linear.product[i]! + (end.bias ? bias[i % channels]! : 0);
    return end.fakeQuantize
      ? Math.fround((Math.round(value * 8) + 0.2) * QPARAMS[0]! - before)
      : value;
  });
  const results = await runKernel(device, linear.kernel(end), {
    ...inputs,
    ...(end.bias && { bias: { shape: [channels], data: bias } }),
    ...(end.residual && { residual: { shape, data: residual } }),
    ...(end.fakeQuantize && { qparams: { shape: [4], data: QPARAMS } }),
  }, { y: shape, ...(end.keepsPreActivation && { z: shape }) });
  const y = results.y!;
  const z = linear.product.map((value, i) =>
    value + (end.bias ? bias[i % channels]! : 0) + (end.residual ? residual[i]! : 0)
  );
  const { activation } = end;
  const u = activation ? z.map((value) => activationReference(activation, value)) : z;
  // a few float32 products, then exp in float32
  const close = { rtol: 3e-6, atol: 3e-6 };
  if (end.keepsPreActivation) assertClose(results.z!, z, close, "z");
  if (!end.fakeQuantize) {
    assertClose(y, u, close, "y");
    return;
  }
  const [scale, zeroPoint, quantMin, quantMax] = QPARAMS;
  const near = u.map((value) => Math.abs(Math.abs(value / scale % 1) - 0.5) < 1e-4 ? 1 : 0);
  const quantized = u.map((value) => fakeQuantized(value, scale, zeroPoint, quantMin, quantMax).y);
  const far = (values: ArrayLike<number>) => Array.from(values).filter((_, i) => near[i] === 0);
  // codes are exact away from ties, and 0.25 * code is exact
  assertClose(far(y), far(quantized), { rtol: 0, atol: 0 }, "y");
}

function conv(
  device: Device,
  changes: { channels: [number, number]; group?: number } = { channels: [3, 5] },
): Linear {
  const spec = convSpec({ size: [5, 4], kernel: [1, 1], pad: [0, 0, 0, 0], ...changes });
  const { x, w, y } = convShapes(spec);
  const data = { x: randomArray(1, sizeOf(x)), w: randomArray(2, sizeOf(w)) };
  return {
    kernel: (epilogue) => conv2dForward(spec, epilogue, device.target),
    inputs: { x: { shape: x, data: data.x }, w: { shape: w, data: data.w } },
    product: referenceForward(spec, data.x, data.w),
    shape: y,
  };
}

function depthwise(device: Device): Linear {
  const spec = convSpec({ size: [4, 5], channels: [6, 6], group: 6 });
  const { x, w, y } = convShapes(spec);
  const data = { x: randomArray(1, sizeOf(x)), w: randomArray(2, sizeOf(w)) };
  const grouped = groupedToDepthwise(spec, data.w);
  return {
    kernel: (epilogue) => depthwiseConv2dForward(spec, epilogue, device.target),
    inputs: { x: { shape: x, data: data.x }, w: { shape: [3, 3, 6], data: grouped } },
    product: referenceForward(spec, data.x, depthwiseToGrouped(spec, grouped)),
    shape: y,
  };
}

function product(device: Device): Linear {
  const spec = { m: 7, n: 5, k: 3, transposeA: false, transposeB: true };
  const a = randomArray(1, 21), b = randomArray(2, 15);
  return {
    kernel: (epilogue) => gemm(spec, epilogue, device.target),
    inputs: { a: { shape: [7, 3], data: a }, b: { shape: [5, 3], data: b } },
    product: gemmReference(spec, a, b),
    shape: [7, 5],
  };
}
