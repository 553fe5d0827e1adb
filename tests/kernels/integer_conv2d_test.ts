// Integer kernels beside the host's integer reference, code for code: nothing is rounded before the epilogue, and the
// epilogue's float32 arithmetic is the reference's.
import assert from "node:assert/strict";
import type { Conv2dSpec } from "../../kernels/conv2d.ts";
import { integerConv2d } from "../../kernels/integer_conv2d.ts";
import { integerDepthwiseConv2d } from "../../kernels/integer_depthwise_conv2d.ts";
import { codeGrid, codeOffset, type IntegerEpilogue } from "../../kernels/integer_epilogue.ts";
import { type Kernel, paddedSize } from "../../kernels/kernel.ts";
import { ndArray, transpose } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { tuneTiles } from "../../src/gpu/tuner.ts";
import { integerConv2d as reference } from "../../src/quant/integer_reference.ts";
import { packBias, packConvWeight, packDepthwiseWeight } from "../../src/quant/packed_codes.ts";
import { requantize } from "../../src/quant/requantize.ts";
import {
  dequantizeFloat32,
  quantizeFloat32,
  type ScalarQParams,
} from "../../src/quant/rounding.ts";
import { packCodes, readCodes, swapLayout } from "../_codes.ts";
import { forEachTarget, testDevice } from "../_gpu.ts";
import { convSpec } from "../_reference_conv.ts";

const UINT8 = { scale: 0.05, zeroPoint: 117, quantMin: 0, quantMax: 255 };
const INT8 = { scale: 0.031, zeroPoint: 0, quantMin: -128, quantMax: 127 };
const UINT4 = { scale: 0.7, zeroPoint: 3, quantMin: 0, quantMax: 15 };

/** A layer, and how its input and output are quantized. */
interface Case {
  readonly spec: Conv2dSpec;
  readonly input: ScalarQParams;
  readonly output?: ScalarQParams;
  readonly residual?: ScalarQParams | "float32";
  readonly relu?: boolean;
  /** Codes of the largest magnitude: sums that float32 does not hold. */
  readonly extreme?: boolean;
}

const CASES: Readonly<Record<string, Case>> = {
  "3 input, 5 output channels, uint8, ReLU": {
    spec: convSpec({ batch: 2, size: [5, 7], channels: [3, 5] }),
    input: UINT8,
    output: { ...UINT8, scale: 0.9 },
    relu: true,
  },
  "stride 2, uneven pads, residual codes": {
    spec: convSpec({ size: [9, 10], channels: [8, 20], stride: [2, 2], pad: [0, 1, 1, 0] }),
    input: INT8,
    output: { ...INT8, scale: 0.5 },
    residual: UINT8,
  },
  "dilation, float32 residual, uint4": {
    spec: convSpec({ size: [9, 11], channels: [16, 16], dilation: [2, 3], pad: [2, 3, 2, 3] }),
    input: UINT4,
    output: UINT4,
    residual: "float32",
    relu: true,
  },
  "1x1, float32 output": {
    spec: convSpec({
      batch: 2,
      size: [5, 5],
      channels: [36, 70],
      kernel: [1, 1],
      pad: [0, 0, 0, 0],
    }),
    input: UINT8,
  },
  "sums beyond 2^24, 1x1": {
    spec: convSpec({ size: [2, 3], channels: [1100, 4], kernel: [1, 1], pad: [0, 0, 0, 0] }),
    input: { ...UINT8, zeroPoint: 0 },
    extreme: true,
  },
  "sums beyond 2^24, 3x3": {
    spec: convSpec({ size: [3, 3], channels: [124, 4] }),
    input: INT8,
    extreme: true,
  },
  "groups of whole words": {
    spec: convSpec({ size: [4, 6], channels: [16, 24], group: 2 }),
    input: UINT8,
    output: INT8,
  },
  "groups that have to be merged": {
    spec: convSpec({ size: [4, 6], channels: [12, 18], group: 6 }),
    input: UINT8,
    output: INT8,
  },
  "depthwise, stride 2": {
    spec: convSpec({ batch: 2, size: [7, 9], channels: [6, 6], stride: [1, 2], group: 6 }),
    input: UINT8,
    output: { ...UINT8, scale: 0.6 },
    residual: INT8,
    relu: true,
  },
  "depthwise, wide filter, dilation": {
    spec: convSpec({
      size: [3, 40],
      channels: [4, 4],
      kernel: [3, 17],
      dilation: [1, 2],
      pad: [1, 16, 1, 16],
      group: 4,
    }),
    input: UINT8,
    output: INT8,
  },
};

for (const [name, layer] of Object.entries(CASES)) {
  forEachTarget(`integer kernels give the reference's codes: ${name}`, async (device) => {
    const { spec, input, output, residual, relu } = layer;
    const epilogue: IntegerEpilogue = {
      output: output ? "codes" : "float32",
      ...(residual && { residual: residual === "float32" ? residual : "codes" }),
      ...(relu && { activation: { kind: "relu" } }),
    };
    const depthwise = spec.group === spec.inChannels;
    const data = layerData(layer, depthwise);
    const zeroPoint = input.zeroPoint - codeOffset(input);
    const complete = { ...spec, group: data.group, zeroPoint };
    const make = depthwise ? integerDepthwiseConv2d : integerConv2d;
    const { choice, code } = make(complete, epilogue, device.target);
    const kernels = choice!.tiles.map((tile) =>
      make(complete, epilogue, { ...device.target, tiles: new Map([[choice!.key, tile]]) })
    );
    assert.equal(kernels[0]!.code, code, "the default comes first");
    assert.equal(new Set(kernels.map(({ code }) => code)).size, kernels.length);
    for (const [i, kernel] of kernels.entries()) {
      const found = await run(device, kernel, layer, data.tensors(device));
      assert.deepEqual(found, data.expected, choice!.tiles[i]);
      assert.ok(new Set(found).size > 9, "the results spread");
    }
  });
}

Deno.test("integer kernels do without subgroups", async () => {
  const device = await testDevice();
  const layer = CASES["3 input, 5 output channels, uint8, ReLU"]!;
  const data = layerData(layer, false);
  const kernel = integerConv2d(
    { ...layer.spec, zeroPoint: layer.input.zeroPoint - 128 },
    { output: "codes", activation: { kind: "relu" } },
    { family: "software", subgroupSize: 0 },
  );
  assert.equal(kernel.code.includes("subgroup"), false);
  assert.deepEqual(await run(device, kernel, layer, data.tensors(device)), data.expected);
});

forEachTarget("tuneTiles() measures every tile of the integer kernels", async (device) => {
  const spec = {
    ...convSpec({ size: [9, 13], channels: [24, 40], stride: [2, 2] }),
    zeroPoint: -7,
  };
  const narrow = convSpec({ size: [9, 13], channels: [24, 24], group: 24 });
  const kernels = [
    integerConv2d(spec, { output: "codes" }, device.target),
    integerConv2d({ ...spec, group: 2 }, { output: "codes" }, device.target),
    integerDepthwiseConv2d({ ...narrow, zeroPoint: 3 }, { output: "codes" }, device.target),
  ];
  const choices = kernels.map(({ choice }) => choice!);
  const tuned = await tuneTiles(device, choices);
  assert.deepEqual(tuned.map(({ key }) => key.split(" ")[0]), [
    "integer_conv2d",
    "integer_conv2d",
    "integer_depthwise_conv2d",
  ]);
  assert.equal(new Set(tuned.map(({ key }) => key)).size, 3);
  for (const [i, { refused, defaultTile }] of tuned.entries()) {
    assert.deepEqual(refused, []);
    assert.equal(defaultTile, choices[i]!.tiles[0]);
    assert.ok(choices[i]!.tiles.length > 1);
  }
});

Deno.test("tuneTiles() refuses an integer kernel whose sums are off by one", async () => {
  const device = await testDevice();
  const spec = { ...convSpec({ size: [3, 3], channels: [4, 4] }), zeroPoint: 0 };
  const { choice } = integerConv2d(spec, { output: "codes" }, device.target);
  const [usual] = choice!.tiles;
  const build = (tile: string) => {
    const { kernels: [kernel], temporaries } = choice!.build(usual!);
    const code = kernel!.code.replace("vec4i(", "1 + vec4i(");
    return { kernels: [tile === "wrong" ? { ...kernel!, code } : kernel!], temporaries };
  };
  const tiles = [usual!, "wrong"];
  const [tuned] = await tuneTiles(device, [{ ...choice!, tiles, build }]);
  assert.deepEqual(tuned!.refused, ["wrong"]);
});

/** Random codes, and what the reference makes of them. */
function layerData(
  { spec, input, output, residual, relu = false, extreme = false }: Case,
  depthwise: boolean,
) {
  const rng = new Rng(3);
  const { batch, inChannels, outChannels, kernelHeight, kernelWidth, group } = spec;
  const inPixels = spec.inHeight * spec.inWidth, outPixels = spec.outHeight * spec.outWidth;
  const random = (size: number, { quantMin, quantMax }: ScalarQParams) =>
    Int32Array.from(
      { length: size },
      (_, i) =>
        extreme && i % 97 !== 0 ? quantMax : quantMin + rng.integer(quantMax - quantMin + 1),
    );
  const x = random(batch * inChannels * inPixels, input);
  const weightShape = [outChannels, inChannels / group, kernelHeight, kernelWidth];
  const codes = Int8Array.from(
    random(weightShape.reduce((a, b) => a * b), { ...INT8, quantMin: -127 }),
  );
  const values = ndArray("int8", weightShape, codes);
  const bias = Int32Array.from({ length: outChannels }, () => rng.integer(20000) - 10000);
  const channelScale = Float32Array.from(
    { length: outChannels },
    () => 1e-3 * (1 + rng.integer(9)),
  );
  const scale = channelScale.map((step) => Math.fround(input.scale) * step);
  const qtensor = (array: typeof values | ReturnType<typeof ndArray<"int32">>) => ({
    values: array,
    scale: channelScale,
    zeroPoint: new Int32Array(outChannels),
    axis: 0,
    bits: 8,
  });
  // The spec holds no pads at the end; the reference needs them.
  const padAfter = (
    out: number,
    stride: number,
    kernel: number,
    dilation: number,
    size: number,
    pad: number,
  ) => Math.max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size - pad);
  const bottom = padAfter(
    spec.outHeight,
    spec.strideHeight,
    kernelHeight,
    spec.dilationHeight,
    spec.inHeight,
    spec.padTop,
  );
  const right = padAfter(
    spec.outWidth,
    spec.strideWidth,
    kernelWidth,
    spec.dilationWidth,
    spec.inWidth,
    spec.padLeft,
  );
  const accumulators = reference({
    x: {
      codes: ndArray("int32", [batch, inChannels, spec.inHeight, spec.inWidth], x),
      zeroPoint: input.zeroPoint,
    },
    weight: qtensor(values),
    bias: qtensor(ndArray("int32", [outChannels], bias)),
    strides: [spec.strideHeight, spec.strideWidth],
    pads: [spec.padTop, spec.padLeft, bottom, right],
    dilations: [spec.dilationHeight, spec.dilationWidth],
    group,
  });
  const size = accumulators.data.length;
  const other = residual === "float32"
    ? Float32Array.from({ length: size }, () => rng.normal() * 3)
    : residual && random(size, residual);
  const results = output && !residual
    ? requantize({ accumulators, scale, axis: 1 }, output, { relu }).data
    : Array.from(accumulators.data, (sum, i) => {
      const step = { scale: scale[Math.floor(i / outPixels) % outChannels]!, zeroPoint: 0 };
      const addend = residual === undefined || residual === "float32"
        ? other?.[i] ?? 0
        : dequantizeFloat32(other![i]!, residual);
      const value = Math.fround(dequantizeFloat32(sum, step) + addend);
      const active = relu ? Math.max(0, value) : value;
      return output ? quantizeFloat32(active, output) : active;
    });
  const last = (data: ArrayLike<number>, channels: number, pixels: number) =>
    swapLayout(data, [batch, channels, pixels]);
  const channelsLast = transpose(values, [0, 2, 3, 1]);
  const packed = depthwise
    ? packDepthwiseWeight(
      transpose(ndArray("int8", [outChannels, kernelHeight, kernelWidth], codes), [1, 2, 0]),
    )
    : packConvWeight(channelsLast, group);
  const stored = (data: ArrayLike<number>, q: ScalarQParams) =>
    Array.from(data, (code) => code - codeOffset(q));
  return {
    group: packed.group,
    expected: last(output ? stored(results, output) : Array.from(results), outChannels, outPixels),
    tensors: (device: Device): Record<string, Tensor> => ({
      x: device.uint32(packCodes(last(stored(x, input), inChannels, inPixels), inChannels)),
      w: device.uint32(packed.words),
      bias: device.uint32(packBias(packed.sums, input.zeroPoint - codeOffset(input), bias)),
      scale: device.fromArray([outChannels], scale),
      ...(output && { grid: device.fromArray([8], codeGrid(output)) }),
      ...(residual === "float32" && {
        residual: device.fromArray(
          [batch * outPixels, outChannels],
          last(other!, outChannels, outPixels),
        ),
      }),
      ...(residual && residual !== "float32" && {
        residual: device.uint32(
          packCodes(last(stored(other!, residual), outChannels, outPixels), outChannels),
        ),
        residual_grid: device.fromArray([8], codeGrid(residual)),
      }),
    }),
  };
}

async function run(
  device: Device,
  kernel: Kernel,
  { spec: { batch, outHeight, outWidth, outChannels }, output }: Case,
  inputs: Record<string, Tensor>,
): Promise<number[]> {
  const shape = [batch, outHeight, outWidth, outChannels];
  const size = shape.reduce((a, b) => a * b), words = paddedSize(shape) / 4;
  const y = device.tensor(output ? [words] : shape);
  device.uploadRaw(y, new Float32Array(y.byteLength / 4).fill(NaN));
  device.run(kernel, { ...inputs, y });
  const found = output
    ? await readCodes(device, y, size, outChannels)
    : Array.from(await device.read(y));
  for (const tensor of [...Object.values(inputs), y]) device.release(tensor);
  return found;
}
