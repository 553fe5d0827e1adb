import assert from "node:assert/strict";
import { checkImproved, residualBlocks, StepClock } from "../../bench/training_run.ts";
import type { Report } from "../../src/distill/report.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

Deno.test("StepClock takes the time between two reports of one unit", () => {
  const clock = new StepClock();
  clock.note("a", 10, 1000); // starts the clock
  clock.note("a", 20, 1100);
  clock.note("a", 25, 1200);
  clock.note("b", 35, 5000); // another unit: starts the clock
  clock.note("b", 45, 5020);
  assert.deepEqual(clock.times("a"), [10, 20]);
  assert.deepEqual(clock.times("b"), [2]);
  assert.throws(() => clock.times("c"), RangeError);
});

Deno.test("StepClock counts no reports without a loss, and no second run of the same unit", () => {
  const clock = new StepClock();
  clock.onProgress({ stage: "calibrate", done: 0, total: 10 });
  clock.onProgress({ stage: "calibrate", done: 10, total: 10 });
  assert.throws(() => clock.times("calibrate"), RangeError);
  clock.note("a", 10, 1000);
  clock.note("a", 10, 2000);
  assert.throws(() => clock.times("a"), RangeError);
});

Deno.test("checkImproved() wants smaller errors on average", () => {
  const report = (...ratios: number[]) =>
    ({ layers: ratios.map((mseAfter) => ({ mseBefore: 1, mseAfter })) }) as unknown as Report;
  checkImproved(report(0.5, 1.2));
  assert.throws(() => checkImproved(report(0.5, 1.6)));
  assert.throws(() => checkImproved(report(0.5, NaN)));
});

Deno.test("residualBlocks() counts forward pass and gradients, but not that of the block's input", () => {
  const pads = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };
  const model = makeGraph(["N", 4, 5, 5], [
    node("Conv", "x stem.weight", "stem", pads),
    node("Conv", "stem first.weight", "first", pads),
    node("Conv", "first second.weight", "second", pads),
    node("Add", "second stem", "y"),
  ], {
    "stem.weight": [4, 4, 3, 3],
    "first.weight": [4, 4, 3, 3],
    "second.weight": [4, 4, 3, 3],
  });
  const products = 8 * 5 * 5 * 4 * 4 * 9;
  const [block, ...others] = residualBlocks(model, 8);
  assert.deepEqual(others, []);
  assert.equal(block?.channels, 4);
  assert.equal(block?.operations, 2 * products * (2 + 3));
});
