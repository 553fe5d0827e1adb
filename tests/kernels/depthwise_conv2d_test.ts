// Depthwise kernels of both families against the float64 definition of a grouped convolution with one channel a group.
import assert from "node:assert/strict";
import type { Conv2dSpec } from "../../kernels/conv2d.ts";
import {
  depthwiseConv2dBackwardInput,
  depthwiseConv2dBackwardWeight,
  depthwiseConv2dForward,
} from "../../kernels/depthwise_conv2d.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import {
  type ConvCase,
  convShapes,
  convSpec,
  depthwiseToGrouped,
  groupedToDepthwise,
  referenceBackwardInput,
  referenceBackwardWeight,
  referenceForward,
  sizeOf,
} from "../_reference_conv.ts";

type DepthwiseCase = Omit<ConvCase, "channels" | "group"> & { readonly channels: number };

const CASES: Readonly<Record<string, DepthwiseCase>> = {
  "one pixel": { size: [1, 1], channels: 1 },
  "whole blocks": { batch: 2, size: [8, 8], channels: 8 },
  "prime everything": { batch: 3, size: [5, 11], channels: 13 },
  "more than a workgroup": { batch: 2, size: [17, 9], channels: 20 },
  "stride 2": { batch: 2, size: [8, 10], channels: 4, stride: [2, 2] },
  "stride 2, odd size": { size: [7, 11], channels: 5, stride: [2, 2] },
  "stride 3 over a 2x2 kernel": {
    size: [11, 10],
    channels: 3,
    kernel: [2, 2],
    stride: [3, 3],
    pad: [0, 0, 0, 0],
  },
  "dilation 2": { size: [9, 7], channels: 7, dilation: [2, 2], pad: [2, 2, 2, 2] },
  "dilation 2 with stride 2": {
    size: [10, 11],
    channels: 4,
    dilation: [2, 2],
    stride: [2, 2],
    pad: [1, 2, 2, 1],
  },
  "asymmetric padding": { size: [5, 6], channels: 17, kernel: [2, 4], pad: [0, 2, 1, 1] },
  "five taps": { size: [6, 6], channels: 4, kernel: [5, 5], pad: [2, 2, 2, 2] },
  "seven taps, rows in a loop": {
    size: [9, 10],
    channels: 6,
    kernel: [7, 7],
    pad: [3, 3, 3, 3],
  },
  "seven taps, stride 2": {
    size: [12, 9],
    channels: 4,
    kernel: [7, 7],
    stride: [2, 2],
    pad: [3, 2, 3, 3],
  },
};

/** float32 sums of `terms` products of normal numbers: a few ulps of the largest partial sum. */
function tolerance(terms: number): { rtol: number; atol: number } {
  return { rtol: 1e-5, atol: 2e-6 * Math.sqrt(terms) };
}

function setUp({ channels, ...rest }: DepthwiseCase) {
  const spec: Conv2dSpec = convSpec({ ...rest, channels: [channels, channels], group: channels });
  const shapes = {
    ...convShapes(spec),
    w: [spec.kernelHeight, spec.kernelWidth, spec.inChannels],
  };
  return {
    spec,
    shapes,
    x: { shape: shapes.x, data: randomArray(1, sizeOf(shapes.x)) },
    w: { shape: shapes.w, data: randomArray(2, sizeOf(shapes.w)) },
    dy: { shape: shapes.y, data: randomArray(3, sizeOf(shapes.y)) },
  };
}

for (const [name, depthwiseCase] of Object.entries(CASES)) {
  forEachTarget(
    `depthwise convolution and its gradients follow the definition: ${name}`,
    async (device) => {
      const { spec, shapes, x, w, dy } = setUp(depthwiseCase);
      const taps = spec.kernelHeight * spec.kernelWidth;
      const filters = depthwiseToGrouped(spec, w.data);
      const forward = depthwiseConv2dForward(spec, {}, device.target);
      const { y } = await runKernel(device, forward, { x, w }, { y: shapes.y });
      assertClose(y!, referenceForward(spec, x.data, filters), tolerance(taps), "y");
      const backwardInput = depthwiseConv2dBackwardInput(spec, device.target);
      const { dx } = await runKernel(device, backwardInput, { dy, w }, { dx: shapes.x });
      assertClose(dx!, referenceBackwardInput(spec, dy.data, filters), tolerance(taps), "dx");
      const backwardWeight = depthwiseConv2dBackwardWeight(spec, device.target);
      const { dw } = await runKernel(device, backwardWeight, { x, dy }, { dw: shapes.w });
      const expected = groupedToDepthwise(spec, referenceBackwardWeight(spec, x.data, dy.data));
      const pixels = spec.batch * spec.outHeight * spec.outWidth;
      assertClose(dw!, expected, tolerance(pixels), "dw");
    },
  );
}

forEachTarget("depthwiseConv2dForward() applies bias and activation", async (device) => {
  const { spec, shapes, x, w } = setUp({ size: [5, 5], channels: 6 });
  const bias = randomArray(4, spec.outChannels);
  // Sigmoid of zero is not zero: padded channels must be masked.
  const epilogue = { bias: true, activation: { kind: "sigmoid" } } as const;
  const { y } = await runKernel(device, depthwiseConv2dForward(spec, epilogue, device.target), {
    x,
    w,
    bias: { shape: [spec.outChannels], data: bias },
  }, { y: shapes.y });
  const expected = referenceForward(spec, x.data, depthwiseToGrouped(spec, w.data))
    .map((sum, i) => 1 / (1 + Math.exp(-sum - bias[i % spec.outChannels]!)));
  assertClose(y!, expected, { rtol: 1e-5, atol: 1e-5 }, "y"); // the driver's exp: about 1e-6
});

forEachTarget("depthwiseConv2dBackwardWeight() gives the same bits twice", async (device) => {
  const { spec, shapes, x, dy } = setUp({ batch: 4, size: [9, 9], channels: 5 });
  const run = () =>
    runKernel(device, depthwiseConv2dBackwardWeight(spec, device.target), { x, dy }, {
      dw: shapes.w,
    });
  const [first, second] = [await run(), await run()];
  assert.deepEqual(first.dw, second.dw);
});
