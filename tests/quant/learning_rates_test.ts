import assert from "node:assert/strict";
import type { LearningRates } from "../../src/quant/learning_rates.ts";
import { weightScaleRate } from "../../src/quant/learning_rates.ts";
import { makeStudent, NO_RATES } from "./_training_student.ts";

Deno.test("weightScaleRate() takes a rate of logarithms, of scales or of ranges", () => {
  const layer = makeStudent().layers.get("gemm")!;
  const rate = (changes: Partial<LearningRates>) =>
    weightScaleRate(layer, { ...NO_RATES, weightScales: 1e-3, ...changes });
  const scales = Array.from(layer.logScale, Math.exp);
  const mean = scales.reduce((sum, scale) => sum + scale, 0) / scales.length;
  const levels = layer.quantMax[0]! - layer.quantMin[0]!;
  assert.equal(rate({}), 1e-3);
  assert.equal(rate({ weightRanges: true }), 1e-3); // says nothing of rates that are relative
  // A range is `levels` scales, so a step of one moves the scale by so much less.
  const close = (actual: number, expected: number) =>
    assert.ok(Math.abs(actual / expected - 1) < 1e-12, `${actual} and ${expected}`);
  close(rate({ absolute: true }), 1e-3 / mean);
  close(rate({ absolute: true, weightRanges: true }), 1e-3 / (mean * levels));
});
