import assert from "node:assert/strict";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import {
  integerConv2d,
  type IntegerConv2dOptions,
  integerGemm,
} from "../../src/quant/integer_reference.ts";
import { dequantize } from "../../src/quant/freeze.ts";
import type { QTensor } from "../../src/graph/quantized_graph.ts";

const rng = new Rng(1);

function input(shape: number[], zeroPoint: number) {
  const size = shape.reduce((a, b) => a * b);
  const codes = ndArray("uint8", shape, Uint8Array.from({ length: size }, () => rng.integer(256)));
  return { codes, zeroPoint };
}

function weightOf(shape: number[]): QTensor {
  const size = shape.reduce((a, b) => a * b), channels = shape[0]!;
  return {
    values: ndArray("int8", shape, Int8Array.from({ length: size }, () => rng.integer(256) - 128)),
    scale: Float32Array.from({ length: channels }, () => 2 ** -rng.integer(6)),
    zeroPoint: new Int32Array(channels),
    axis: 0,
    bits: 8,
  };
}

function biasOf(codes: number[], scale: Float32Array<ArrayBuffer>): QTensor {
  return {
    values: ndArray("int32", [codes.length], Int32Array.from(codes)),
    scale,
    zeroPoint: new Int32Array(scale.length),
    axis: 0,
    bits: 32,
  };
}

/** The textbook sum, one output at a time, on dequantized float64 values of powers of two, which is exact. */
function conv2dByDefinition(options: IntegerConv2dOptions, outShape: readonly number[]): number[] {
  const { x, weight, bias, strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1 } =
    options;
  const [, channels, height, width] = x.codes.shape as [number, number, number, number]; // test shapes are 4-d
  const [outChannels, groupChannels, kh, kw] = weight.values.shape as [
    number,
    number,
    number,
    number,
  ];
  const w = dequantize(weight).data, sums: number[] = [];
  const [batch, , outHeight, outWidth] = outShape as [number, number, number, number];
  for (let n = 0; n < batch; n++) {
    for (let o = 0; o < outChannels; o++) {
      for (let y = 0; y < outHeight; y++) {
        for (let z = 0; z < outWidth; z++) {
          let sum = bias ? bias.values.data[o]! * weight.scale[o]! : 0;
          for (let i = 0; i < groupChannels * kh * kw; i++) {
            const c = Math.floor(i / (kh * kw)), ky = Math.floor(i / kw) % kh, kx = i % kw;
            const iy = y * strides[0] + ky * dilations[0] - pads[0];
            const ix = z * strides[1] + kx * dilations[1] - pads[1];
            if (iy < 0 || ix < 0 || iy >= height || ix >= width) continue;
            const ic = Math.floor(o / (outChannels / group)) * groupChannels + c;
            const code = x.codes.data[((n * channels + ic) * height + iy) * width + ix]!;
            sum += (code - x.zeroPoint) * w[o * groupChannels * kh * kw + i]!;
          }
          sums.push(sum / weight.scale[o]!);
        }
      }
    }
  }
  return sums;
}

type Geometry = Omit<IntegerConv2dOptions, "x" | "weight" | "bias">;
const CASES: Record<string, { x: number[]; w: number[]; out: number[] } & Geometry> = {
  "1x1": { x: [1, 1, 1, 1], w: [1, 1, 1, 1], out: [1, 1, 1, 1] },
  "3x3 padded": { x: [2, 3, 5, 7], w: [4, 3, 3, 3], out: [2, 4, 5, 7], pads: [1, 1, 1, 1] },
  "stride and uneven pads": {
    x: [1, 2, 7, 6],
    w: [3, 2, 3, 2],
    out: [1, 3, 4, 2],
    strides: [2, 3],
    pads: [0, 1, 2, 0],
  },
  "dilation": { x: [1, 2, 9, 8], w: [2, 2, 3, 3], out: [1, 2, 5, 2], dilations: [2, 3] },
  "groups": { x: [1, 4, 4, 4], w: [6, 2, 3, 3], out: [1, 6, 4, 4], pads: [1, 1, 1, 1], group: 2 },
  "depthwise": { x: [2, 5, 4, 4], w: [5, 1, 3, 3], out: [2, 5, 2, 2], group: 5 },
};

Deno.test("integerConv2d() equals the definition", () => {
  for (const [label, { x, w, out, ...geometry }] of Object.entries(CASES)) {
    const weight = weightOf(w);
    const bias = biasOf(Array.from({ length: w[0]! }, () => rng.integer(1e6)), weight.scale);
    const options = { x: input(x, 117), weight, bias, ...geometry };
    const result = integerConv2d(options);
    assert.deepEqual(result.shape, out, label);
    assert.deepEqual([...result.data], conv2dByDefinition(options, out), label);
  }
});

Deno.test("integerConv2d() pads with the value 0, not the code 0", () => {
  const x = { codes: ndArray("uint8", [1, 1, 1, 1], Uint8Array.of(10)), zeroPoint: 10 };
  const weight = weightOf([1, 1, 3, 3]);
  assert.deepEqual([...integerConv2d({ x, weight, pads: [1, 1, 1, 1] }).data], [0]);
});

Deno.test("integerConv2d() takes int8 codes", () => {
  const x = { codes: ndArray("int8", [1, 1, 1, 2], Int8Array.of(-128, 127)), zeroPoint: -1 };
  const weight = {
    ...weightOf([1, 1, 1, 1]),
    values: ndArray("int8", [1, 1, 1, 1], Int8Array.of(-2)),
  };
  assert.deepEqual([...integerConv2d({ x, weight }).data], [254, -256]);
});

Deno.test("integerConv2d() names the channel that passes int32", () => {
  const x = { codes: ndArray("uint8", [1, 1, 1, 1], Uint8Array.of(255)), zeroPoint: 0 };
  const values: NdArray<"int8"> = ndArray("int8", [3, 1, 1, 1], Int8Array.of(1, 1, 1));
  const weight = { ...weightOf([3, 1, 1, 1]), values };
  const run = (last: number) =>
    integerConv2d({ x, weight, bias: biasOf([0, 1, last], weight.scale) });
  assert.deepEqual([...run(2147483647 - 255).data], [255, 256, 2147483647]);
  assert.throws(() => run(2147483647 - 254), /channel 2 in int32: its sum is 2147483648/);
});

Deno.test("integerConv2d() rejects shapes that do not fit", () => {
  const x = input([1, 4, 2, 2], 0);
  assert.throws(
    () => integerConv2d({ x, weight: weightOf([2, 3, 1, 1]) }),
    /4 channels with weight \[2, 3, 1, 1\]/,
  );
  assert.throws(
    () => integerConv2d({ x, weight: weightOf([3, 2, 1, 1]), group: 2 }),
    /in 2 groups/,
  );
  assert.throws(() => integerConv2d({ x, weight: weightOf([2, 4, 3, 3]) }), /kernel of 3/);
  assert.throws(() => integerConv2d({ x, weight: weightOf([2, 4]) }), /expected 4 axes/);
  const weight = weightOf([2, 4, 1, 1]);
  assert.throws(
    () => integerConv2d({ x, weight, bias: biasOf([1], weight.scale) }),
    /bias of 1 to 2/,
  );
});

Deno.test("integerGemm() equals a 1x1 convolution, transposed or not", () => {
  const x = input([3, 7], 100), weight = weightOf([5, 7]);
  const bias = biasOf([1, -2, 3, -4, 5], weight.scale);
  const product = integerGemm({ x, weight, bias });
  const conv = integerConv2d({
    x: { codes: ndArray("uint8", [3, 7, 1, 1], x.codes.data), zeroPoint: 100 },
    weight: {
      ...weight,
      values: ndArray("int8", [5, 7, 1, 1], Int8Array.from(weight.values.data)),
    },
    bias,
  });
  assert.deepEqual(product.shape, [3, 5]);
  assert.deepEqual(product.data, conv.data);
  const columns = Int8Array.from(
    { length: 35 },
    (_, i) => weight.values.data[i % 5 * 7 + Math.floor(i / 5)]!,
  );
  const turned = { ...weight, values: ndArray("int8", [7, 5], columns), axis: 1 };
  assert.deepEqual(integerGemm({ x, weight: turned, bias, transposed: false }), product);
});

Deno.test("integerGemm() rejects shapes that do not fit and sums beyond int32", () => {
  const x = input([2, 3], 0), weight = weightOf([4, 2]);
  assert.throws(() => integerGemm({ x, weight }), /\[2, 3\] by \[4, 2\]/);
  const one = { codes: ndArray("uint8", [1, 1], Uint8Array.of(1)), zeroPoint: 0 };
  const unit = { ...weightOf([2, 1]), values: ndArray("int8", [2, 1], Int8Array.of(0, 1)) };
  const bias = biasOf([0, 2147483647], unit.scale);
  assert.throws(() => integerGemm({ x: one, weight: unit, bias }), /channel 1 in int32/);
});
