// Convolution passes of ResNet-20 at batch 64 in GFLOP/s, timed with GPU timestamps after their results were checked
// against float64 sums: `deno task bench`.
import {
  conv2dBackwardInput,
  conv2dBackwardWeight,
  conv2dForward,
  type Conv2dSpec,
} from "../kernels/conv2d.ts";
import type { KernelSequence } from "../kernels/kernel.ts";
import { Rng } from "../src/core/rng.ts";
import { Device } from "../src/gpu/device.ts";
import { Plan } from "../src/gpu/plan.ts";
import type { Tensor } from "../src/gpu/tensor.ts";

const SAMPLES = 21;

interface Shape {
  readonly inChannels: number;
  readonly outChannels: number;
  readonly size: number;
  readonly stride: number;
}

const SHAPES: readonly Shape[] = [
  { inChannels: 3, outChannels: 16, size: 32, stride: 1 },
  { inChannels: 16, outChannels: 16, size: 32, stride: 1 },
  { inChannels: 16, outChannels: 32, size: 32, stride: 2 },
  { inChannels: 32, outChannels: 32, size: 16, stride: 1 },
  { inChannels: 32, outChannels: 64, size: 16, stride: 2 },
  { inChannels: 64, outChannels: 64, size: 8, stride: 1 },
];

using device = await Device.open();
console.log(`adapter: ${device.adapterName}, kernels: ${device.target.family}`);
console.log(
  "convolution".padEnd(22) + "pass".padEnd(10) + "median ms".padStart(10) + "GFLOP/s".padStart(10),
);
for (const shape of SHAPES) await measure(shape);

async function measure({ inChannels, outChannels, size, stride }: Shape): Promise<void> {
  const out = size / stride;
  const spec: Conv2dSpec = {
    batch: 64,
    inHeight: size,
    inWidth: size,
    inChannels,
    outHeight: out,
    outWidth: out,
    outChannels,
    kernelHeight: 3,
    kernelWidth: 3,
    strideHeight: stride,
    strideWidth: stride,
    padTop: 1,
    padLeft: 1,
    dilationHeight: 1,
    dilationWidth: 1,
    group: 1,
  };
  const rng = new Rng(1);
  const random = (shape: readonly number[]) => {
    const count = shape.reduce((product, n) => product * n, 1);
    const data = Float32Array.from({ length: count }, () => rng.normal());
    return { data, tensor: device.fromArray(shape, data) };
  };
  const x = random([64, size, size, inChannels]);
  const w = random([outChannels, 3, 3, inChannels]);
  const dy = random([64, out, out, outChannels]);
  const y = device.tensor([64, out, out, outChannels]);
  const dx = device.tensor([64, size, size, inChannels]);
  const dw = device.tensor([outChannels, 3, 3, inChannels]);
  const { target } = device;
  const passes: [string, KernelSequence, Record<string, Tensor>][] = [
    ["forward", conv2dForward(spec, {}, target), { x: x.tensor, w: w.tensor, y }],
    ["dx", conv2dBackwardInput(spec, target), { dy: dy.tensor, w: w.tensor, dx }],
    ["dw", conv2dBackwardWeight(spec, target), { x: x.tensor, dy: dy.tensor, dw }],
  ];
  for (const [name, sequence, bindings] of passes) {
    using plan = new Plan(device);
    plan.run(sequence, bindings);
    plan.replay();
    const times: number[] = [];
    for (let i = 0; i < SAMPLES; i++) {
      const nanoseconds = await device.time(plan.dispatches);
      if (nanoseconds === undefined) throw new Error("the adapter has no timestamps");
      times.push(nanoseconds.reduce((sum, ns) => sum + ns, 0) / 1e6);
    }
    const ms = times.sort((a, b) => a - b)[SAMPLES >> 1]!;
    const flops = 2 * 9 * inChannels * outChannels * 64 * out * out;
    console.log(
      `${inChannels}->${outChannels} ${size}x${size} /${stride}`.padEnd(22) + name.padEnd(10) +
        ms.toFixed(2).padStart(10) + (flops / ms / 1e6).toFixed(1).padStart(10),
    );
  }
  check(spec, x.data, w.data, dy.data, {
    y: await device.read(y),
    dx: await device.read(dx),
    dw: await device.read(dw),
  });
  for (const tensor of [x.tensor, w.tensor, dy.tensor, y, dx, dw]) device.release(tensor);
}

/** Compares some elements of each result with float64 sums; throws where they differ. */
function check(
  spec: Conv2dSpec,
  x: Float32Array,
  w: Float32Array,
  dy: Float32Array,
  results: { readonly y: Float32Array; readonly dx: Float32Array; readonly dw: Float32Array },
): void {
  const { inHeight: size, outHeight: out, strideHeight: stride } = spec;
  const { inChannels: ci, outChannels: co } = spec;
  const expected = {
    y: new Float64Array(results.y.length),
    dx: new Float64Array(results.dx.length),
    dw: new Float64Array(results.dw.length),
  };
  // The first two images give y and dx whole; dw needs all, so only output channel 0 is summed.
  for (let n = 0; n < 64; n++) {
    for (let p = 0; p < out * out; p++) {
      for (let o = 0; o < (n < 2 ? co : 1); o++) {
        const at = (n * out * out + p) * co + o;
        for (let tap = 0; tap < 9; tap++) {
          const row = Math.floor(p / out) * stride + Math.floor(tap / 3) - 1;
          const column = p % out * stride + tap % 3 - 1;
          if (row < 0 || row >= size || column < 0 || column >= size) continue;
          const from = ((n * size + row) * size + column) * ci;
          for (let c = 0; c < ci; c++) {
            const weight = (o * 9 + tap) * ci + c;
            if (n < 2) {
              expected.y[at]! += x[from + c]! * w[weight]!;
              expected.dx[from + c]! += dy[at]! * w[weight]!;
            }
            if (o === 0) expected.dw[weight]! += x[from + c]! * dy[at]!;
          }
        }
      }
    }
  }
  const lengths = { y: 2 * out * out * co, dx: 2 * size * size * ci, dw: 9 * ci };
  for (const name of ["y", "dx", "dw"] as const) {
    // float32 sums of up to 65,536 products of unit variance
    const tolerance = name === "dw" ? 2e-2 : 1e-3;
    for (let i = 0; i < lengths[name]; i++) {
      const error = Math.abs(results[name][i]! - expected[name][i]!);
      if (!(error < tolerance)) throw new Error(`${name}[${i}] is off by ${error}`);
    }
  }
}
