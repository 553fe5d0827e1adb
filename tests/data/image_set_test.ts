import assert from "node:assert/strict";
import { FormatError } from "../../src/core/errors.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import {
  checkNormalization,
  describeImages,
  inputSizeOf,
  normalize,
  recogniseImages,
} from "../../src/data/image_set.ts";
import type { Graph } from "../../src/graph/graph.ts";

const COLOUR = { channels: 3, height: 2, width: 4 };
const PLAIN = { mean: [0], std: [1], scale: 1 };

function counting(size: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length: size }, (_, i) => i);
}

Deno.test("recogniseImages() tells channels first from channels last by the network's size", () => {
  const first = recogniseImages(ndArray("uint8", [5, 3, 2, 4], counting(120)), COLOUR, "x.npy");
  const last = recogniseImages(ndArray("uint8", [5, 2, 4, 3], counting(120)), COLOUR, "x.npy");
  assert.deepEqual([first.layout, last.layout], ["NCHW", "NHWC"]);
  for (const set of [first, last]) {
    assert.deepEqual([set.count, set.channels, set.height, set.width], [5, 3, 2, 4]);
  }
  assert.equal(describeImages(last), "5 inputs of 3 x 2 x 4, uint8, channels last (NHWC)");
});

Deno.test("recogniseImages() takes channels first where both fit", () => {
  const cube = { channels: 3, height: 3, width: 3 };
  const set = recogniseImages(ndArray("uint8", [1, 3, 3, 3], counting(27)), cube, "x.npy");
  assert.equal(set.layout, "NCHW");
});

Deno.test("recogniseImages() adds the channel axis of grey images and the 1 x 1 image of features", () => {
  const grey = { channels: 1, height: 2, width: 3 };
  const set = recogniseImages(ndArray("uint8", [4, 2, 3], counting(24)), grey, "x-idx3-ubyte");
  assert.deepEqual([set.layout, set.channels, set.height, set.width], ["NCHW", 1, 2, 3]);
  const features = { channels: 6, height: 1, width: 1 };
  const rows = recogniseImages(ndArray("uint8", [4, 6], counting(24)), features, "x.npy");
  assert.deepEqual([rows.channels, rows.height, rows.width], [6, 1, 1]);
});

Deno.test("recogniseImages() takes any size the network leaves open", () => {
  const open = { channels: 3, height: null, width: null };
  const set = recogniseImages(ndArray("uint8", [1, 5, 8, 3], counting(120)), open, "x.npy");
  assert.deepEqual([set.layout, set.height, set.width], ["NHWC", 5, 8]);
});

Deno.test("recogniseImages() names file, what it found and what it expected", () => {
  const cases = [
    [ndArray("uint8", [24], counting(24)), /^x\.npy: shape: found \[24\], expected \[N, 3, 2, 4\]/],
    [ndArray("uint8", [1, 3, 4, 2], counting(24)), /found \[1, 3, 4, 2\].* or \[N, 2, 4, 3\]$/],
    [ndArray("uint8", [0, 3, 2, 4], counting(0)), /expected at least 1 input$/],
    [
      ndArray("float64", [1, 3, 2, 4], new Float64Array(24)),
      /dtype: found float64, expected uint8/,
    ],
    [
      ndArray("float32", [2, 3, 2, 4], new Float32Array(48).fill(NaN, 30, 31)),
      /input 1: found NaN/,
    ],
    [
      ndArray("float32", [1, 3, 2, 4], new Float32Array(24).fill(-Infinity, 0, 1)),
      /input 0: found -Infinity/,
    ],
  ] as const;
  for (const [array, message] of cases) {
    assert.throws(
      () => recogniseImages(array, COLOUR, "x.npy"),
      (error) => error instanceof FormatError && message.test(error.message),
      message.source,
    );
  }
});

Deno.test("normalize() gives the same channels-last rows from both layouts", () => {
  const pixels = counting(120);
  const last = recogniseImages(ndArray("uint8", [5, 2, 4, 3], pixels), COLOUR, "x.npy");
  const moved = new Uint8Array(120);
  for (let i = 0; i < 120; i++) {
    const [image, pixel, channel] = [Math.floor(i / 24), Math.floor(i / 3) % 8, i % 3];
    moved[image * 24 + channel * 8 + pixel] = pixels[i]!;
  }
  const first = recogniseImages(ndArray("uint8", [5, 3, 2, 4], moved), COLOUR, "x.npy");
  const rows = normalize(last, [3, 0], PLAIN);
  assert.deepEqual([...rows], [...pixels.subarray(72, 96), ...pixels.subarray(0, 24)]);
  assert.deepEqual(normalize(first, [3, 0], PLAIN), rows);
});

Deno.test("normalize() is (value * scale - mean) / std for each channel, uint8 scaled to 0..1", () => {
  const image = Uint8Array.from({ length: 24 }, (_, i) => i * 10);
  const set = recogniseImages(ndArray("uint8", [1, 2, 4, 3], image), COLOUR, "x.npy");
  const [mean, std] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
  const rows = normalize(set, [0], { mean, std, scale: null });
  for (let i = 0; i < 24; i++) {
    const exact = (image[i]! / 255 - mean[i % 3]!) / std[i % 3]!;
    // One rounding to float32 of values below 4.
    assert.ok(Math.abs(rows[i]! - exact) < 4 * 2 ** -24, `${i}: ${rows[i]} and ${exact}`);
  }
});

Deno.test("normalize() leaves int8 unscaled: the spectrograms of the keyword network", () => {
  const data = Int8Array.from([-128, 83, 127, 0]);
  const size = { channels: 1, height: 2, width: 2 };
  const set = recogniseImages(ndArray("int8", [1, 1, 2, 2], data), size, "x.npy");
  const rows = normalize(set, [0], { mean: [83], std: [1 / 0.5], scale: null });
  assert.deepEqual([...rows], [-105.5, 0, 22, -41.5]);
});

Deno.test("normalize() refuses an index outside the set and lists of another length", () => {
  const set = recogniseImages(ndArray("uint8", [1, 2, 4, 3], counting(24)), COLOUR, "x.npy");
  assert.throws(() => normalize(set, [1], PLAIN), RangeError);
  assert.throws(() => normalize(set, [0], { ...PLAIN, mean: [1, 2] }), /mean: found 2 numbers/);
  assert.throws(() => checkNormalization({ ...PLAIN, std: [1, 1, 1, 1] }, 3), /std: found 4/);
});

Deno.test("inputSizeOf() reads channels, height and width, and open sizes as null", () => {
  const graph = (...shapes: (number | string)[][]): Graph => ({
    name: "g",
    opset: 13,
    inputs: shapes.map((shape, i) => ({ name: `x${i}`, dtype: "float32", shape })),
    outputs: [],
    nodes: [],
    initializers: new Map(),
  });
  assert.deepEqual(inputSizeOf(graph(["N", 3, 32, "w"]), "m.onnx"), {
    channels: 3,
    height: 32,
    width: null,
  });
  assert.deepEqual(inputSizeOf(graph([1, 7]), "m.onnx"), { channels: 7, height: 1, width: 1 });
  assert.throws(() => inputSizeOf(graph([1, 7], [1, 7]), "m.onnx"), /found 2 network inputs/);
  assert.throws(() => inputSizeOf(graph([1, 7, 5, 1, 1]), "m.onnx"), /input "x0": found shape/);
  assert.deepEqual(inputSizeOf(graph(["N", 7, 5]), "m.onnx"), {
    channels: 5,
    height: 7,
    width: 1,
    isSequence: true,
  });
});

Deno.test("recogniseImages() takes sequences as they are stored", () => {
  const size = { channels: 3, height: 4, width: 1, isSequence: true };
  const set = recogniseImages(
    ndArray("float32", [2, 4, 3], Float32Array.from(counting(24))),
    size,
    "x",
  );
  assert.deepEqual(
    [set.count, set.height, set.width, set.channels, set.layout],
    [2, 4, 1, 3, "NHWC"],
  );
  assert.equal(describeImages(set), "2 sequences of 4 steps of 3 features, float32");
  // a mean and a deviation for each feature
  const rows = normalize(set, [1], { mean: [1, 2, 3], std: [1, 2, 4], scale: null });
  assert.deepEqual([...rows.subarray(0, 3)], [12 - 1, (13 - 2) / 2, (14 - 3) / 4]);
  for (const shape of [[2, 3, 4], [2, 4, 3, 1], [24]]) {
    const array = ndArray("float32", shape, new Float32Array(24));
    assert.throws(() => recogniseImages(array, size, "x"), /expected \[N, 4, 3\]/);
  }
});
