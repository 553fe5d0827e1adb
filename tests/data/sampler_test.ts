import assert from "node:assert/strict";
import { batchTable, chooseSamples, splitHeldOut } from "../../src/data/sampler.ts";

Deno.test("chooseSamples() chooses without repetition, the same for the same seed only", () => {
  const chosen = chooseSamples(1000, 100, 7);
  assert.equal(new Set(chosen).size, 100);
  assert.ok(chosen.every((index) => index < 1000));
  assert.deepEqual(chooseSamples(1000, 100, 7), chosen);
  assert.notDeepEqual(chooseSamples(1000, 100, 8), chosen);
});

Deno.test("chooseSamples() takes all where there are fewer, and refuses none", () => {
  assert.deepEqual([...chooseSamples(5, 100, 1)].sort(), [0, 1, 2, 3, 4]);
  assert.throws(() => chooseSamples(0, 1, 1), /count is 0/);
  assert.throws(() => chooseSamples(5, 0, 1), /samples is 0/);
});

Deno.test("splitHeldOut() shares the samples without overlap", () => {
  const indices = chooseSamples(1024, 1024, 3);
  const { train, heldOut } = splitHeldOut(indices, 0.125);
  assert.deepEqual([train.length, heldOut.length], [896, 128]);
  assert.deepEqual([...train, ...heldOut], [...indices]);
});

Deno.test("splitHeldOut() leaves at least one sample on each side that is asked for", () => {
  const sizes = (count: number, fraction: number) => {
    const { train, heldOut } = splitHeldOut(new Uint32Array(count), fraction);
    return [train.length, heldOut.length];
  };
  assert.deepEqual(sizes(10, 0), [10, 0]);
  assert.deepEqual(sizes(2, 0.01), [1, 1]);
  assert.deepEqual(sizes(1, 0.5), [1, 0]);
  assert.throws(() => splitHeldOut(new Uint32Array(4), 0.6), RangeError);
  assert.throws(() => splitHeldOut(new Uint32Array(4), NaN), RangeError);
});

Deno.test("batchTable() uses every sample equally often, whatever the batch", () => {
  // 7 batches of 3 are 21 = 3 epochs of 7; batches that do not divide the samples straddle epochs.
  const table = batchTable(7, 3, 7, 11);
  const uses = new Array<number>(7).fill(0);
  for (const index of table) uses[index]!++;
  assert.deepEqual(uses, [3, 3, 3, 3, 3, 3, 3]);
  for (let epoch = 0; epoch < 3; epoch++) {
    assert.equal(new Set(table.subarray(epoch * 7, epoch * 7 + 7)).size, 7);
  }
});

Deno.test("batchTable() shuffles anew each epoch, and a batch may exceed the samples", () => {
  const table = batchTable(50, 50, 2, 5);
  assert.notDeepEqual(table.subarray(0, 50), table.subarray(50));
  assert.notDeepEqual([...table.subarray(0, 50)], [...Array(50).keys()]);
  assert.deepEqual(batchTable(50, 50, 2, 5), table);
  assert.equal(batchTable(3, 8, 2, 5).length, 16);
  assert.throws(() => batchTable(3, 0, 2, 5), /batch is 0/);
});
