// Observers and fake quantization beside those of PyTorch (goldens/make_torch_goldens.py).
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { fakeQuantizeArray } from "../../src/quant/fake_quantize.ts";
import { type ObserverName, OBSERVERS } from "../../src/quant/observers/observers.ts";
import { channelQParams, chooseQParams, type QParams } from "../../src/quant/qparams.ts";
import { fakeQuantizeValue } from "../../src/quant/rounding.ts";
import { qScheme, type QSchemeOptions } from "../../src/quant/scheme.ts";
import { tensorStatistics } from "../../src/quant/statistics.ts";
import { searchWeightQParams } from "../../src/quant/weight_search.ts";
import goldens from "./goldens/torch_observers.json" with { type: "json" };

/** PyTorch's [min, max] and what it makes of it, one element for the tensor or one a channel. */
interface Found {
  readonly min: readonly number[];
  readonly max: readonly number[];
  readonly scale: readonly number[];
  readonly zeroPoint: readonly number[];
}

const AFFINE = { signed: false, symmetric: false } as const;

function checkRange(
  name: ObserverName,
  batches: readonly number[][],
  scheme: QSchemeOptions,
  golden: Found,
): void {
  const statistics = tensorStatistics(batches, { momentum: goldens.averaging });
  const { min, max } = OBSERVERS[name].chooseRange(statistics, qScheme(scheme));
  assert.deepEqual([[min], [max]], [golden.min, golden.max]);
  const qparams = chooseQParams({ min: [min], max: [max] }, qScheme(scheme));
  assert.deepEqual([...qparams.scale], golden.scale);
  assert.deepEqual([...qparams.zeroPoint], golden.zeroPoint);
}

Deno.test("min_max with chooseQParams() is PyTorch's MinMaxObserver", () => {
  for (const { batches, bits: all } of goldens.observers) {
    for (const { bits, minMax, minMaxSymmetric } of all) {
      checkRange("min_max", batches, { bits, ...AFFINE }, minMax);
      checkRange("min_max", batches, { bits, narrowRange: true }, minMaxSymmetric);
    }
  }
});

Deno.test("moving_average is PyTorch's MovingAverageMinMaxObserver", () => {
  for (const { batches, bits: all } of goldens.observers) {
    for (const { bits, movingAverage } of all) {
      checkRange("moving_average", batches, { bits, ...AFFINE }, movingAverage);
    }
  }
});

Deno.test("chooseQParams() per channel is PyTorch's PerChannelMinMaxObserver", () => {
  const { shape, weight, bits: all } = goldens.perChannel;
  const w = ndArray("float32", shape, Float32Array.from(weight));
  const size = weight.length / shape[0]!;
  const channels = Array.from(
    { length: shape[0]! },
    (_, c) => w.data.subarray(c * size, (c + 1) * size),
  );
  for (const { bits, scale, min, max, values } of all) {
    const range = {
      min: channels.map((channel) => Math.min(...channel)),
      max: channels.map((channel) => Math.max(...channel)),
    };
    assert.deepEqual(range, { min, max });
    const qparams = chooseQParams(range, qScheme({ bits, narrowRange: true }));
    assert.deepEqual([...qparams.scale], scale);
    assert.deepEqual([...fakeQuantizeArray(w, qparams, 0).data], values);
    // The student's own min-max search has the same scales on its wider grid, but for the channel of zeros.
    const found = searchWeightQParams(w, 0, { bits, grid: "symmetric", observer: "minmax" });
    assert.deepEqual([...found.scale].slice(0, 4), scale.slice(0, 4));
  }
});

Deno.test("fakeQuantizeArray() is PyTorch's fake_quantize_per_tensor_affine", () => {
  for (const { x, values, scale, zeroPoint, quantMin, quantMax } of goldens.fakeQuantize) {
    const qparams: QParams = {
      scale: Float32Array.of(scale),
      zeroPoint: Int32Array.of(zeroPoint),
      quantMin: Int32Array.of(quantMin),
      quantMax: Int32Array.of(quantMax),
    };
    const y = fakeQuantizeArray(ndArray("float32", [x.length], Float32Array.from(x)), qparams);
    assert.deepEqual([...y.data], values);
  }
});

Deno.test("mse with p = 2 has no larger squared error than PyTorch's HistogramObserver", () => {
  for (const { kind, x, bits: all } of goldens.histograms) {
    const statistics = tensorStatistics([x]);
    for (const golden of all) {
      const scheme = qScheme({ bits: golden.bits, ...AFFINE });
      const { min, max } = OBSERVERS.mse.chooseRange(statistics, scheme, { p: 2 });
      const qparams = channelQParams(chooseQParams({ min: [min], max: [max] }, scheme), 0);
      const error = x.reduce((sum, v) => sum + (fakeQuantizeValue(v, qparams) - v) ** 2, 0);
      assert.ok(error <= golden.error, `${kind} ${golden.bits}: ${error}, ${golden.error}`);
    }
  }
});
