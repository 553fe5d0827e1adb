// conv2d kernels of both families against the float64 definition, and the definition's gradients against differences.
import assert from "node:assert/strict";
import {
  conv2dBackwardInput,
  conv2dBackwardWeight,
  conv2dForward,
  type Conv2dSpec,
} from "../../kernels/conv2d.ts";
import { convolutionGpu } from "../../kernels/conv2d_gpu.ts";
import {
  backwardInputConvolutions,
  forwardConvolution,
  type TapConvolution,
} from "../../kernels/conv2d_plan.ts";
import { convolutionSoftware } from "../../kernels/conv2d_software.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import {
  type ConvCase,
  convShapes,
  convSpec,
  referenceBackwardInput,
  referenceBackwardWeight,
  referenceForward,
  sizeOf,
} from "../_reference_conv.ts";
import { Device } from "../../src/gpu/device.ts";

/** Shapes with 1, primes, more than a tile, and everything a convolution can be asked for. */
const CASES: Readonly<Record<string, ConvCase>> = {
  "one pixel": { size: [1, 1], channels: [1, 1] },
  "pointwise, prime channels": {
    size: [5, 7],
    channels: [7, 13],
    kernel: [1, 1],
    pad: [0, 0, 0, 0],
  },
  "pointwise, stride 2": {
    size: [7, 6],
    channels: [8, 17],
    kernel: [1, 1],
    stride: [2, 2],
    pad: [0, 0, 0, 0],
  },
  "pointwise, strides 2 and 3, odd images": {
    batch: 3,
    size: [7, 10],
    channels: [5, 6],
    kernel: [1, 1],
    stride: [2, 3],
    pad: [0, 0, 0, 0],
  },
  "image to features": { batch: 2, size: [11, 11], channels: [3, 16] },
  "prime everything": { batch: 3, size: [5, 11], channels: [5, 13] },
  "whole tiles": { batch: 2, size: [16, 16], channels: [16, 16] },
  "several channel tiles": { batch: 2, size: [4, 4], channels: [20, 72] },
  "many channels": { size: [3, 3], channels: [132, 36] },
  "stride 2": { batch: 2, size: [8, 8], channels: [16, 32], stride: [2, 2] },
  "stride 2, odd size": { size: [7, 11], channels: [4, 8], stride: [2, 2] },
  "stride 3 over a 2x2 kernel": {
    size: [11, 10],
    channels: [3, 5],
    kernel: [2, 2],
    stride: [3, 3],
    pad: [0, 0, 0, 0],
  },
  "stride 2 along one axis": { size: [6, 9], channels: [4, 4], stride: [1, 2] },
  "dilation 2": {
    size: [9, 9],
    channels: [8, 12],
    dilation: [2, 2],
    pad: [2, 2, 2, 2],
  },
  "dilation 2 with stride 2": {
    size: [10, 11],
    channels: [4, 4],
    dilation: [2, 2],
    stride: [2, 2],
    pad: [1, 2, 2, 1],
  },
  "dilation 3 with stride 2": {
    size: [11, 12],
    channels: [4, 4],
    dilation: [3, 3],
    stride: [2, 2],
    pad: [3, 3, 3, 3],
  },
  "asymmetric padding": { size: [5, 6], channels: [5, 4], kernel: [2, 4], pad: [0, 2, 1, 1] },
  "no padding": { size: [7, 7], channels: [4, 4], pad: [0, 0, 0, 0] },
  "unread last row": { size: [8, 8], channels: [4, 4], stride: [2, 2], pad: [0, 0, 0, 0] },
  "seven taps, stride 2": {
    size: [13, 14],
    channels: [3, 8],
    kernel: [7, 7],
    stride: [2, 2],
    pad: [3, 3, 3, 3],
  },
  "kernel of one column": { size: [5, 17], channels: [4, 8], kernel: [5, 1], pad: [2, 0, 2, 0] },
  "two whole groups": { batch: 2, size: [5, 5], channels: [8, 24], group: 2 },
  "whole groups, stride 2": { size: [6, 6], channels: [16, 8], stride: [2, 2], group: 2 },
  "three awkward groups": { size: [5, 4], channels: [6, 9], group: 3 },
  "awkward groups, stride 2": {
    size: [7, 5],
    channels: [10, 4],
    stride: [2, 2],
    dilation: [1, 2],
    pad: [1, 2, 0, 2],
    group: 2,
  },
};

/** float32 sums of `terms` products of normal numbers: a few ulps of the largest partial sum. */
function tolerance(terms: number): { rtol: number; atol: number } {
  return { rtol: 1e-5, atol: 2e-6 * Math.sqrt(terms) };
}

function arrays(
  spec: Conv2dSpec,
): { x: Float64Array<ArrayBuffer>; w: Float64Array<ArrayBuffer>; dy: Float64Array<ArrayBuffer> } {
  const shapes = convShapes(spec);
  return {
    x: randomArray(1, sizeOf(shapes.x)),
    w: randomArray(2, sizeOf(shapes.w)),
    dy: randomArray(3, sizeOf(shapes.y)),
  };
}

async function checkAll(device: Device, name: string, spec: Conv2dSpec): Promise<void> {
  const shapes = convShapes(spec);
  const data = arrays(spec);
  const x = { shape: shapes.x, data: data.x };
  const w = { shape: shapes.w, data: data.w };
  const dy = { shape: shapes.y, data: data.dy };
  const taps = spec.kernelHeight * spec.kernelWidth;
  const forward = conv2dForward(spec, {}, device.target);
  const { y } = await runKernel(device, forward, { x, w }, { y: shapes.y });
  const depth = taps * spec.inChannels / spec.group;
  assertClose(y!, referenceForward(spec, data.x, data.w), tolerance(depth), `y, ${name}`);
  const backwardInput = conv2dBackwardInput(spec, device.target);
  const { dx } = await runKernel(device, backwardInput, { dy, w }, { dx: shapes.x });
  const outputs = taps * spec.outChannels / spec.group;
  assertClose(
    dx!,
    referenceBackwardInput(spec, data.dy, data.w),
    tolerance(outputs),
    `dx, ${name}`,
  );
  const backwardWeight = conv2dBackwardWeight(spec, device.target);
  const { dw } = await runKernel(device, backwardWeight, { x, dy }, { dw: shapes.w });
  const pixels = spec.batch * spec.outHeight * spec.outWidth;
  assertClose(
    dw!,
    referenceBackwardWeight(spec, data.x, data.dy),
    tolerance(pixels),
    `dw, ${name}`,
  );
}

for (const [name, convCase] of Object.entries(CASES)) {
  forEachTarget(
    `conv2d and its gradients follow the definition: ${name}`,
    (device) => checkAll(device, name, convSpec(convCase)),
  );
}

Deno.test("conv2d kernels follow the definition without subgroups", async () => {
  using device = await Device.open({ family: "software", subgroups: false });
  assert.equal(device.target.subgroupSize, 0);
  for (const name of ["prime everything", "stride 2", "two whole groups"]) {
    await checkAll(device, name, convSpec(CASES[name]!));
  }
});

forEachTarget(
  "conv2dForward() applies bias, residual, activation and fake quantizer",
  async (device) => {
    const spec = convSpec({ batch: 2, size: [5, 5], channels: [3, 6] });
    const shapes = convShapes(spec);
    const { x, w, dy: residual } = arrays(spec);
    const bias = randomArray(4, spec.outChannels);
    const epilogue = {
      bias: true,
      residual: true,
      activation: { kind: "relu" },
      fakeQuantize: true,
    } as const;
    const scale = 0.5;
    const { y } = await runKernel(device, conv2dForward(spec, epilogue, device.target), {
      x: { shape: shapes.x, data: x },
      w: { shape: shapes.w, data: w },
      bias: { shape: [spec.outChannels], data: bias },
      residual: { shape: shapes.y, data: residual },
      qparams: { shape: [4], data: [scale, 0, 0, 15] },
    }, { y: shapes.y });
    const sums = referenceForward(spec, x, w).map((sum, i) =>
      Math.max(0, sum + bias[i % spec.outChannels]! + residual[i]!)
    );
    // A float32 sum close to a boundary between two codes may round to either; no sum here is that close.
    assert(sums.every((sum) => Math.abs((sum / scale) % 1 - 0.5) > 1e-4));
    const expected = sums.map((sum) => Math.min(15, Math.round(sum / scale)) * scale);
    assertClose(y!, expected, { rtol: 0, atol: 0 }, "y"); // codes times a power of two are exact
  },
);

forEachTarget("conv2dBackwardWeight() gives the same bits twice", async (device) => {
  const spec = convSpec({ batch: 4, size: [9, 9], channels: [5, 6] });
  const shapes = convShapes(spec);
  const { x, dy } = arrays(spec);
  const run = () =>
    runKernel(device, conv2dBackwardWeight(spec, device.target), {
      x: { shape: shapes.x, data: x },
      dy: { shape: shapes.y, data: dy },
    }, { dw: shapes.w });
  const [first, second] = [await run(), await run()];
  assert.deepEqual(first.dw, second.dw);
});

const TILES = {
  software: [
    { rows: 4, run: 1, runs: 3 },
    { rows: 12, run: 3, runs: 2 },
    { rows: 32, run: 4, runs: 1 },
  ],
  gpu: [
    { channels: 16, pixels: 256, depth: 8, channelVectors: 1, pixelVectors: 1 },
    { channels: 32, pixels: 128, depth: 16, channelVectors: 1, pixelVectors: 1 },
    { channels: 128, pixels: 128, depth: 16, channelVectors: 2, pixelVectors: 2 },
  ],
} as const;

forEachTarget("convolution kernels give the same sums with any tile", async (device) => {
  const spec = convSpec({ batch: 3, size: [5, 11], channels: [10, 134] });
  const shapes = convShapes(spec);
  const data = arrays(spec);
  const x = { shape: shapes.x, data: data.x };
  const w = { shape: shapes.w, data: data.w };
  const dy = { shape: shapes.y, data: data.dy };
  const forward = forwardConvolution(spec, {});
  const [backward] = backwardInputConvolutions(spec) as [TapConvolution]; // stride 1: one phase
  const y = referenceForward(spec, data.x, data.w);
  const dx = referenceBackwardInput(spec, data.dy, data.w);
  const kernels = device.target.family === "software"
    ? TILES.software.map((tile) =>
      [forward, backward].map((part) => convolutionSoftware(part, device.target, tile))
    )
    : TILES.gpu.map((tile) => [forward, backward].map((part) => convolutionGpu(part, tile)));
  for (const [forwardKernel, backwardKernel] of kernels) {
    const got = await runKernel(device, forwardKernel!, { x, w }, { y: shapes.y });
    assertClose(got.y!, y, tolerance(9 * 10), "y");
    const gradient = await runKernel(device, backwardKernel!, { dy, w }, { dx: shapes.x });
    assertClose(gradient.dx!, dx, tolerance(9 * 134), "dx");
  }
});

Deno.test("conv2dForward() folds more pixels than one grid axis takes", () => {
  const spec = convSpec({ batch: 256, size: [224, 224], channels: [3, 8] });
  for (const family of ["software", "gpu"] as const) {
    for (
      const sequence of [
        conv2dForward(spec, {}, { family, subgroupSize: 8 }),
        conv2dBackwardInput(spec, { family, subgroupSize: 8 }),
        conv2dBackwardWeight(spec, { family, subgroupSize: 8 }),
      ]
    ) {
      for (const { grid } of sequence.kernels) assert(grid.every((n) => n >= 1 && n <= 65535));
    }
  }
});

Deno.test("the reference's gradients agree with finite differences", () => {
  const spec = convSpec({
    size: [4, 5],
    channels: [4, 2],
    stride: [2, 1],
    dilation: [1, 2],
    pad: [1, 0, 0, 2],
    group: 2,
  });
  const { x, w, dy } = arrays(spec);
  // The loss sum(y * dy) is linear in x and in w, so a difference of any width is exact up to rounding.
  const loss = (): number =>
    referenceForward(spec, x, w).reduce((sum, y, i) => sum + y * dy[i]!, 0);
  const difference = (variable: Float64Array): Float64Array =>
    variable.map((value, i) => {
      variable[i] = value + 1;
      const above = loss();
      variable[i] = value - 1;
      const below = loss();
      variable[i] = value;
      return (above - below) / 2;
    });
  const close = { rtol: 1e-12, atol: 1e-12 };
  assertClose(referenceBackwardInput(spec, dy, w), difference(x), close, "dx");
  assertClose(referenceBackwardWeight(spec, x, dy), difference(w), close, "dw");
});
