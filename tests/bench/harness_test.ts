import assert from "node:assert/strict";
import { checkElements, gigaRates, median, row, wallTimes } from "../../bench/harness.ts";

const NAME = { case: "gemm", metric: "rate" };

Deno.test("median() takes the middle value, or the mean of the middle two", () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([10, 1, 9, 2]), 5.5);
  assert.throws(() => median([]), RangeError);
});

Deno.test("row() takes the smallest time and the largest rate as the best", () => {
  assert.deepEqual(row(NAME, "ms", [3, 1, 2]), {
    ...NAME,
    unit: "ms",
    median: 2,
    best: 1,
    samples: 3,
  });
  assert.equal(row(NAME, "GFLOP/s", [3, 1, 2]).best, 3);
  assert.equal(row(NAME, "%", [3, 1, 2], { better: "more" }).best, 3);
});

Deno.test("row() gives the median as a share of the ceiling, and the note", () => {
  const { share, note } = row(NAME, "GFLOP/s", [20, 30, 40], { ceiling: 60, note: "quiet" });
  assert.equal(share, 0.5);
  assert.equal(note, "quiet");
});

Deno.test("gigaRates() turns milliseconds into billions a second", () => {
  assert.deepEqual(gigaRates(4e9, [1000, 500]), [4, 8]);
});

Deno.test("wallTimes() runs once more than it times", async () => {
  let runs = 0;
  const times = await wallTimes(3, () => Promise.resolve(runs++));
  assert.equal(times.length, 3);
  assert.equal(runs, 4);
});

Deno.test("checkElements() names the first element that is off, NaN too", () => {
  checkElements("y", [1, 2.5], [[1, 2]], 0.5);
  assert.throws(() => checkElements("y", [1, 2.5], [[0, 1], [1, 2]], 0.4), /y\[1\] is 2\.5/);
  assert.throws(() => checkElements("y", [NaN], [[0, 1]], 1), /y\[0\] is NaN/);
  assert.throws(() => checkElements("y", [], [[0, 1]], 1), /y\[0\] is undefined/);
});
