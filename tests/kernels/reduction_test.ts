// Reductions against float64, at one element, odd channels and more rows than one chunk.
import assert from "node:assert/strict";
import { dot, reductionBackward, reductionForward } from "../../kernels/reduction.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { inner, numericGradient, sizeOf } from "../_reference.ts";

const SHAPES = [[1], [7], [3, 5], [2, 3, 3, 17], [33, 33, 4], [4099, 3]];
const AXES = ["all", "leading"] as const;

function reference(
  operator: "sum" | "mean" | "max" | "min",
  axes: "all" | "leading",
  width: number,
) {
  return (x: Float64Array): Float64Array => {
    const channels = axes === "all" ? 1 : width;
    return Float64Array.from({ length: channels }, (_, c) => {
      const values = Array.from(x.filter((_, i) => i % channels === c));
      if (operator === "max") return Math.max(...values);
      if (operator === "min") return Math.min(...values);
      const sum = values.reduce((total, value) => total + value, 0);
      return operator === "sum" ? sum : sum / values.length;
    });
  };
}

for (const operator of ["sum", "mean", "max", "min"] as const) {
  forEachTarget(`reductionForward() computes the ${operator}`, async (device) => {
    for (const shape of SHAPES) {
      for (const axes of AXES) {
        // Away from zero on one side, so that padding would win the maximum or the minimum.
        const shift = operator === "max" ? -9 : 9;
        const data = randomArray(1, sizeOf(shape)).map((v) => Math.fround(v + shift));
        const kernels = reductionForward({ operator, shape, axes }, device.target);
        const width = shape.at(-1)!;
        const y = axes === "all" ? [1] : [width];
        const inputs = { x: { shape, data } };
        const first = await runKernel(device, kernels, inputs, { y });
        const expected = reference(operator, axes, width)(data);
        // Chunks keep the sums short: rounding stays near that of one float32 operation.
        const rtol = operator === "sum" || operator === "mean" ? 2e-6 : 0;
        assertClose(first.y!, expected, { rtol, atol: 0 }, `[${shape}] ${axes}`);
        assert.deepEqual(await runKernel(device, kernels, inputs, { y }), first);
      }
    }
  });
}

forEachTarget("reductionBackward() spreads the gradient", async (device) => {
  for (const operator of ["sum", "mean"] as const) {
    for (const shape of SHAPES.slice(0, 4)) {
      for (const axes of AXES) {
        const width = shape.at(-1)!;
        const dy = { shape: axes === "all" ? [1] : [width], data: randomArray(2, width) };
        if (axes === "all") dy.data = dy.data.slice(0, 1);
        const kernels = reductionBackward({ operator, shape, axes });
        const { dx } = await runKernel(device, kernels, { dy }, { dx: shape });
        const x = randomArray(1, sizeOf(shape));
        // Linear: differences with a step of 1 are exact.
        const numeric = numericGradient(reference(operator, axes, width), x, dy.data, 1);
        assertClose(dx!, numeric, { rtol: 1e-6, atol: 1e-7 }, `${operator} [${shape}] ${axes}`);
      }
    }
  }
});

Deno.test("reductionBackward() rejects the maximum", () => {
  const spec = { operator: "max", shape: [3], axes: "all" } as const;
  assert.throws(() => reductionBackward(spec), /Cannot differentiate a reduction by max/);
});

forEachTarget("dot() sums products", async (device) => {
  for (const shape of SHAPES) {
    const a = { shape, data: randomArray(1, sizeOf(shape)) };
    const b = { shape, data: randomArray(2, sizeOf(shape)) };
    const { y } = await runKernel(device, dot(shape, device.target), { a, b }, { y: [1] });
    // Terms of size 1 cancel: the error is that of their magnitudes' sum, in chunks.
    const atol = 1e-6 * Math.sqrt(sizeOf(shape));
    assertClose(y!, [inner(a.data, b.data)], { rtol: 1e-6, atol }, `[${shape}]`);
  }
});
