import assert from "node:assert/strict";
import { chooseNearest } from "../../kernels/choose_nearest.ts";
import { forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { sum } from "../_reference_quant.ts";

/** Padded channels, one vec4, more than one chunk. */
const SHAPES = [[1, 1], [7, 5, 13], [129, 64]] as const;

/** b = factor * a around the limits: a difference of sqrt(1/2) of the smaller of both. */
const FACTORS = [
  // a is the smaller: (factor - 1)^2 > 1/2
  [1.70, "a"],
  [1.715, "b"],
  // b is: (1 - factor)^2 > factor^2 / 2
  [0.59, "a"],
  [0.58, "b"],
  [1, "a"],
  [-1, "b"],
] as const;

for (const shape of SHAPES) {
  forEachTarget(`chooseNearest() [${shape}] on both sides of its limit`, async (device) => {
    const size = shape.reduce((product: number, n) => product * n, 1);
    const a = randomArray(1, size);
    const kernel = chooseNearest({ shape }, device.target);
    for (const [factor, taken] of FACTORS) {
      const b = a.map((value) => Math.fround(factor * value));
      const inputs = { a: { shape, data: a }, b: { shape, data: b } };
      const { y } = await runKernel(device, kernel, inputs, { y: shape });
      assert.deepEqual(Float64Array.from(y!), taken === "a" ? a : b, `${factor}`);
    }
  });
}

forEachTarget("chooseNearest() judges by the mean of all elements", async (device) => {
  const shape = [64, 6], a = randomArray(2, 64 * 6);
  // One element is far off, the others are as they were.
  const squares = sum(a.map((value) => value * value));
  for (const [part, taken] of [[0.45, "a"], [0.55, "b"]] as const) {
    const b = a.with(100, Math.fround(a[100]! + Math.sign(a[100]!) * Math.sqrt(part * squares)));
    const inputs = { a: { shape, data: a }, b: { shape, data: b } };
    const { y } = await runKernel(device, chooseNearest({ shape }, device.target), inputs, {
      y: shape,
    });
    assert.deepEqual(Float64Array.from(y!), taken === "a" ? a : b, `${part}`);
  }
});
