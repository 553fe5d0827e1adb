import assert from "node:assert/strict";
import { errorMetrics, errorSums } from "../../src/quant/metrics.ts";

Deno.test("errorMetrics() of a scaled target", () => {
  const { mse, sqnrDb, cosine } = errorMetrics(errorSums([0.9, 1.8, -2.7], [1, 2, -3]));
  assert.ok(Math.abs(mse - 0.14 / 3) < 1e-15);
  assert.ok(Math.abs(sqnrDb - 20) < 1e-12); // error = target / 10
  assert.ok(Math.abs(cosine - 1) < 1e-15);
});

Deno.test("errorMetrics() of opposite and orthogonal outputs", () => {
  assert.equal(errorMetrics(errorSums([-2], [1])).cosine, -1);
  assert.equal(errorMetrics(errorSums([1, -1], [1, 1])).cosine, 0);
});

Deno.test("errorMetrics() of equal and of zero arrays", () => {
  assert.deepEqual(errorMetrics(errorSums([0, 0], [0, 0])), {
    mse: 0,
    sqnrDb: Infinity,
    cosine: 1,
  });
  assert.deepEqual(errorMetrics(errorSums([1, 0], [0, 0])), {
    mse: 0.5,
    sqnrDb: -Infinity,
    cosine: 0,
  });
  assert.deepEqual(errorMetrics(errorSums([0, 0], [1, 0])), { mse: 0.5, sqnrDb: 0, cosine: 0 });
});

Deno.test("errorMetrics() and errorSums() reject nothing to compare", () => {
  assert.throws(() => errorMetrics(errorSums([], [])), /0 elements/);
  assert.throws(() => errorSums([1], [1, 2]), RangeError);
});
