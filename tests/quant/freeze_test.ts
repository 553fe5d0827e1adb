import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { fakeQuantizeArray } from "../../src/quant/fake_quantize.ts";
import {
  accumulatorBound,
  dequantize,
  freezeBias,
  freezeWeight,
  smallestWeightScale,
} from "../../src/quant/freeze.ts";
import type { QParams } from "../../src/quant/qparams.ts";
import { searchWeightQParams } from "../../src/quant/weight_search.ts";
import type { QTensor } from "../../src/graph/quantized_graph.ts";

const SHAPE = [4, 2, 3, 3];

function latentOf(seed: number) {
  const rng = new Rng(seed);
  return ndArray("float32", SHAPE, Float32Array.from({ length: 72 }, () => rng.normal()));
}

function gridOf(scale: number[], quantMin: number[], quantMax: number[]): QParams {
  return {
    scale: Float32Array.from(scale),
    zeroPoint: new Int32Array(scale.length),
    quantMin: Int32Array.from(quantMin),
    quantMax: Int32Array.from(quantMax),
  };
}

/** A weight [channels, n] from codes. */
function weightOf(codes: number[][], scale = codes.map(() => 1)): QTensor {
  return {
    values: ndArray("int8", [codes.length, codes[0]!.length], Int8Array.from(codes.flat())),
    scale: Float32Array.from(scale),
    zeroPoint: new Int32Array(scale.length),
    axis: scale.length === 1 ? -1 : 0,
    bits: 8,
  };
}

Deno.test("freezeWeight() then dequantize() is the fake-quantized weight, bit for bit", () => {
  const latent = latentOf(1);
  for (const bits of [2, 4, 8]) {
    const qparams = searchWeightQParams(latent, 0, { bits, grid: "offset" });
    const frozen = freezeWeight({ latent, qparams, axis: 0, bits });
    assert.deepEqual(
      dequantize(frozen).data,
      fakeQuantizeArray(latent, qparams, 0).data.map((x) => x + 0), // -0 has the code 0
    );
    assert.deepEqual([frozen.axis, frozen.bits, [...frozen.zeroPoint]], [0, bits, [0, 0, 0, 0]]);
  }
});

Deno.test("freezeWeight() folds the multiplier into the scale and mirrors codes below zero", () => {
  const latent = latentOf(2);
  const qparams = searchWeightQParams(latent, 0, { bits: 3, grid: "flip" });
  const plain = freezeWeight({ latent, qparams, axis: 0, bits: 3 });
  const multiplier = Float64Array.of(0.5, -2, 0, 1);
  const folded = freezeWeight({ latent, qparams, axis: 0, bits: 3, multiplier });
  for (let i = 0; i < 72; i++) {
    const factor = multiplier[Math.floor(i / 18)]!;
    assert.equal(folded.values.data[i], Math.sign(factor) * plain.values.data[i]! + 0);
  }
  assert.equal(folded.scale[0], Math.fround(qparams.scale[0]! / 2));
  assert.equal(folded.scale[1], qparams.scale[1]! * 2);
  const values = dequantize(folded).data, before = dequantize(plain).data;
  values.forEach((x, i) => assert.equal(x, before[i]! * multiplier[Math.floor(i / 18)]! + 0));
});

Deno.test("freezeWeight() keeps mirrored codes in [-quantMax, -quantMin], and in int8", () => {
  const latent = ndArray("float32", [2, 3], Float32Array.of(-9, 0, 9, -999, 0, 999));
  const qparams = gridOf([1, 1], [-2, -128], [1, 127]);
  const { values } = freezeWeight({
    latent,
    qparams,
    axis: 0,
    bits: 8,
    multiplier: Float64Array.of(-1, -1),
  });
  assert.deepEqual([...values.data], [2, 0, -1, 127, 0, -127]);
});

Deno.test("freezeWeight() gives empty channels the largest scale of the others", () => {
  const latent = ndArray("float32", [3, 1], Float32Array.of(1, 1, 1));
  const qparams = gridOf([0.25, 0.5, 1], [-8, -8, -8], [7, 7, 7]);
  const one = freezeWeight({
    latent,
    qparams,
    axis: 0,
    bits: 4,
    multiplier: Float64Array.of(1, 1, 0),
  });
  assert.deepEqual([...one.values.data], [4, 2, 0]);
  assert.deepEqual([...one.scale], [0.25, 0.5, 0.5]);
  const all = freezeWeight({ latent, qparams, axis: 0, bits: 4, multiplier: new Float64Array(3) });
  assert.deepEqual([...all.values.data], [0, 0, 0]);
  assert.ok(all.scale.every((scale) => scale > 0));
});

Deno.test("freezeWeight() works per tensor and along other axes", () => {
  const latent = ndArray("float32", [2, 2], Float32Array.of(1, 2, -3, 40));
  const perTensor = gridOf([1], [-8], [7]);
  const whole = freezeWeight({ latent, qparams: perTensor, axis: 1, bits: 4 });
  assert.deepEqual([[...whole.values.data], whole.axis, [...whole.scale]], [[1, 2, -3, 7], -1, [
    1,
  ]]);
  const folded = freezeWeight({
    latent,
    qparams: perTensor,
    axis: 1,
    bits: 4,
    multiplier: Float64Array.of(1, -2),
  });
  assert.deepEqual([[...folded.values.data], folded.axis, [...folded.scale]], [[1, -2, -3, -7], 1, [
    1,
    2,
  ]]);
});

Deno.test("freezeWeight() rejects grids that are no int8 and numbers that are not finite", () => {
  const latent = ndArray("float32", [1, 2], Float32Array.of(1, 2));
  const freeze = (qparams: QParams, multiplier = Float64Array.of(1)) => () =>
    freezeWeight({ latent, qparams, axis: 0, bits: 8, multiplier });
  assert.throws(freeze(gridOf([1], [-127], [128])), /codes -127..128/);
  assert.throws(freeze({ ...gridOf([1], [0], [15]), zeroPoint: Int32Array.of(3) }), /zero point 3/);
  assert.throws(freeze(gridOf([0], [-8], [7])), /scale 0/);
  assert.throws(freeze(gridOf([1], [-8], [7]), Float64Array.of(NaN)), /multiplier NaN/);
  assert.throws(freeze(gridOf([1], [-8], [7]), Float64Array.of(1, 1)), /multiplier of 2/);
  const broken = ndArray("float32", [1, 1], Float32Array.of(NaN));
  assert.throws(
    () => freezeWeight({ latent: broken, qparams: gridOf([1], [-8], [7]), axis: 0, bits: 4 }),
    /channel 0 holds NaN/,
  );
});

Deno.test("smallestWeightScale() makes room for the bias of a channel with tiny weights", () => {
  const latent = ndArray("float32", [2, 1], Float32Array.of(1e-9, 1));
  const qparams = gridOf([1e-10, 0.25], [-128, -128], [127, 127]);
  const bias = Float64Array.of(-3, 1);
  const tiny = freezeWeight({ latent, qparams, axis: 0, bits: 8 });
  assert.throws(() => freezeBias(bias, 0.01, tiny.scale), /channel 0 is -3 .* does not fit int32/);
  const smallestScale = smallestWeightScale(bias, 0.01);
  const raised = freezeWeight({ latent, qparams, axis: 0, bits: 8, smallestScale });
  // The code of 1e-9 at scale 2.8e-7 is 0, and the other channel stays as it is.
  assert.deepEqual([[...raised.values.data], raised.scale[1]], [[0, 4], 0.25]);
  assert.ok(Math.abs(dequantize(freezeBias(bias, 0.01, raised.scale)).data[0]! + 3) < 1e-6); // float32
});

Deno.test("freezeWeight() with smallestScale keeps folded values and signs", () => {
  const latent = ndArray("float32", [1, 3], Float32Array.of(-4, 1, 4));
  const frozen = freezeWeight({
    latent,
    qparams: gridOf([1], [-8], [7]),
    axis: 0,
    bits: 4,
    multiplier: Float64Array.of(-0.5),
    smallestScale: Float64Array.of(2),
  });
  assert.deepEqual([[...frozen.values.data], [...frozen.scale]], [[1, 0, -1], [2]]);
});

Deno.test("freezeBias() rounds half to even at the scale of the accumulators", () => {
  const frozen = freezeBias(
    Float64Array.of(1.25, 1.75, -1.25, 0),
    0.5,
    Float32Array.of(1, 1, 1, 2),
  );
  assert.deepEqual([...frozen.values.data], [2, 4, -2, 0]);
  assert.deepEqual([...frozen.scale], [0.5, 0.5, 0.5, 1]);
  assert.deepEqual([frozen.axis, frozen.bits, frozen.values.dtype], [0, 32, "int32"]);
});

Deno.test("freezeBias() is within half a step of the bias", () => {
  const rng = new Rng(4);
  const bias = Float64Array.from({ length: 100 }, () => rng.normal());
  const weightScale = Float32Array.from(bias, () => Math.exp(rng.normal() - 5));
  const { values, scale } = freezeBias(bias, 0.03, weightScale);
  // 1e-6 of a step for codes of up to 2e5 and a scale in float32
  bias.forEach((b, c) =>
    assert.ok(Math.abs(values.data[c]! * scale[c]! - b) <= scale[c]! * (0.5 + 1e-6))
  );
});

Deno.test("freezeBias() with one weight scale is per tensor, and lengths must fit", () => {
  const frozen = freezeBias(Float32Array.of(1, 2), 0.5, Float32Array.of(0.5));
  assert.deepEqual([[...frozen.values.data], [...frozen.scale], frozen.axis], [[4, 8], [0.25], -1]);
  assert.throws(() => freezeBias(Float32Array.of(1, 2, 3), 1, Float32Array.of(1, 1)), /1 or 3/);
});

Deno.test("freezeBias() throws beyond int32 and for NaN", () => {
  assert.equal(
    freezeBias(Float64Array.of(2 ** 31 - 1), 1, Float32Array.of(1)).values.data[0],
    2147483647,
  );
  for (const bias of [2 ** 31, -(2 ** 31) - 1, NaN, Infinity]) {
    assert.throws(
      () => freezeBias(Float64Array.of(0, bias), 1, Float32Array.of(1, 1)),
      /channel 1 is/,
    );
  }
});

Deno.test("accumulatorBound() is reached by the worst input and never passed", () => {
  const rng = new Rng(5);
  const codes = Array.from(
    { length: 3 },
    () => Array.from({ length: 5 }, () => rng.integer(16) - 8),
  );
  const input = { zeroPoint: 1, quantMin: 0, quantMax: 3 };
  const bias = freezeBias(Float64Array.of(10, -20, 0), 1, Float32Array.of(1, 1, 1));
  const bounds = accumulatorBound(weightOf(codes), input, bias);
  codes.forEach((row, c) => {
    let worst = 0;
    for (let combination = 0; combination < 4 ** 5; combination++) {
      let sum = bias.values.data[c]!;
      row.forEach((w, i) => sum += w * ((combination >> (2 * i) & 3) - 1));
      worst = Math.max(worst, Math.abs(sum));
    }
    // The bound leaves the bias out where it would help, as it may be added last.
    assert.ok(bounds[c]! >= worst && bounds[c]! <= worst + Math.abs(bias.values.data[c]!));
    if (c === 2) assert.equal(bounds[c], worst);
  });
});

Deno.test("accumulatorBound() names the channel that can pass int32", () => {
  const bias = freezeBias(Float64Array.of(0, 2147483647 - 254), 1, Float32Array.of(1, 1));
  const input = { zeroPoint: 0, quantMin: 0, quantMax: 255 };
  const fits = weightOf([[1, 1], [0, -1]]);
  assert.deepEqual([...accumulatorBound(fits, input, bias)], [510, 2147483393]);
  assert.throws(
    () => accumulatorBound(weightOf([[1, 1], [1, 0]]), input, bias),
    /channel 1 in int32/,
  );
});

Deno.test("accumulatorBound() takes the axis of a weight with one scale", () => {
  const weight = weightOf([[1, 2], [3, -4]], [1]);
  const input = { zeroPoint: 0, quantMin: 0, quantMax: 1 };
  assert.deepEqual([...accumulatorBound(weight, input)], [3, 4]);
  assert.deepEqual([...accumulatorBound(weight, input, undefined, 1)], [4, 4]);
});

Deno.test("dequantize() subtracts zero points and works along any axis", () => {
  const tensor: QTensor = {
    values: ndArray("int8", [2, 2], Int8Array.of(1, 2, 3, 4)),
    scale: Float32Array.of(2, 0.1),
    zeroPoint: Int32Array.of(1, 0),
    axis: 1,
    bits: 8,
  };
  assert.deepEqual([...dequantize(tensor).data], [0, Math.fround(0.2), 4, Math.fround(0.4)]);
});
