import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { labelsOf, pickLabels } from "../../src/data/labels.ts";

const FIT = { count: 3, classes: 10 };

Deno.test("labelsOf() takes integers of every width and [N, 1]", () => {
  const wide = ndArray("int64", [3], BigInt64Array.from([0n, 9n, 4n]));
  const column = ndArray("uint8", [3, 1], Uint8Array.from([0, 9, 4]));
  for (const array of [wide, column]) {
    assert.deepEqual([...labelsOf(array, FIT, "y.npy")], [0, 9, 4]);
  }
});

Deno.test("labelsOf() names the label that does not fit", () => {
  const cases = [
    [ndArray("uint8", [2], new Uint8Array(2)), /y\.npy: shape: found 2 labels, expected 3/],
    [ndArray("uint8", [3, 2], new Uint8Array(6)), /found \[3, 2\], expected \[3\]/],
    [ndArray("uint8", [], new Uint8Array(1)), /found \[\], expected \[3\]/],
    [ndArray("uint8", [3], Uint8Array.from([0, 1, 10])), /label 2: found 10, .* from 0 to 9/],
    [ndArray("int8", [3], Int8Array.from([0, -1, 1])), /label 1: found -1/],
    [ndArray("float32", [3], Float32Array.from([0, 0.5, 1])), /label 1: found 0\.5/],
    [
      ndArray("uint8", [3], new Uint8Array(3)),
      /found \[3\], expected \[3, 2\]/,
      { ...FIT, steps: 2 },
    ],
    [
      ndArray("uint8", [3, 2], Uint8Array.from([0, 0, 0, 0, 0, 10])),
      /label 5: found 10/,
      { ...FIT, steps: 2 },
    ],
    [ndArray("bool", [3], new Uint8Array(3)), /found bool, expected integers/],
  ] as const;
  for (const [array, message, fit = FIT] of cases) {
    assert.throws(() => labelsOf(array, fit, "y.npy"), message);
  }
});

Deno.test("labelsOf() does not bound the classes of a network that leaves them open", () => {
  const array = ndArray("uint16", [1], Uint16Array.from([999]));
  assert.deepEqual([...labelsOf(array, { count: 1, classes: null }, "y.npy")], [999]);
});

Deno.test("labelsOf() takes a label for each step", () => {
  for (const shape of [[3, 2], [3, 2, 1]]) {
    const array = ndArray("uint8", shape, Uint8Array.from([1, 2, 3, 4, 5, 6]));
    const labels = labelsOf(array, { ...FIT, steps: 2 }, "y.npy");
    assert.deepEqual([...labels], [1, 2, 3, 4, 5, 6]);
    assert.deepEqual([...pickLabels(labels, 3, [2, 0])], [5, 6, 1, 2]);
  }
});

Deno.test("pickLabels() takes one label an input", () => {
  assert.deepEqual([...pickLabels(Uint32Array.of(7, 8, 9), 3, [2, 2, 0])], [9, 9, 7]);
});
