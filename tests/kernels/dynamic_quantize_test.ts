import { dynamicFakeQuantize } from "../../kernels/dynamic_quantize.ts";
import { Rng } from "../../src/core/rng.ts";
import { assertClose, forEachTarget, runKernel } from "../_gpu.ts";
import { clamp, roundTiesToEven } from "../_reference_quant.ts";

/** Lowest and highest value of a sample in steps, and the step: powers of two keep float32 exact. */
const SAMPLES = [
  { low: -100, high: 155, step: 0.25 },
  // 0 joins a range on either side of it
  { low: 3, high: 255, step: 0.5 },
  { low: -255, high: -17, step: 2 },
  { low: 0, high: 0, step: 1 },
  // zero points 100 and 101, without which an end of the range is cut off
  { low: -100.25, high: 154.75, step: 1 },
  { low: -100.75, high: 154.25, step: 2 ** -20 },
];
/** Two elements of a sample are its ends; the last shape has chunks to reduce, and no padding. */
const SHAPES = [[6, 3], [6, 2, 2, 7], [6, 40, 41, 8]] as const;

for (const shape of SHAPES) {
  const size = shape.slice(1).reduce((product, n) => product * n, 1);
  forEachTarget(`dynamicFakeQuantize() [${shape}] gives each sample its range`, async (device) => {
    const rng = new Rng(1);
    const x = SAMPLES.flatMap(({ low, high, step }) => {
      // quarters of a step, ties among them
      const values = Array.from(
        { length: size },
        () => low + Math.floor(4 * rng.uniform() * (high - low)) / 4,
      );
      values[rng.integer(size - 1)] = low;
      values[size - 1] = high;
      if (!values.includes(low)) values[0] = low;
      return values.map((value) => value * step);
    });
    const expected = SAMPLES.flatMap((_, n) => reference(x.slice(n * size, (n + 1) * size)));
    const { y } = await runKernel(device, dynamicFakeQuantize(shape, device.target), {
      x: { shape, data: x },
    }, { y: shape });
    assertClose(y!, expected, { rtol: 0, atol: 0 }, "y");
  });
}

/** ONNX DynamicQuantizeLinear and DequantizeLinear in float64. */
function reference(x: readonly number[]): number[] {
  const low = Math.min(0, ...x), high = Math.max(0, ...x);
  const scale = (high - low) / 255 || 1;
  const zeroPoint = roundTiesToEven(clamp(-low / scale, 0, 255));
  return x.map((value) =>
    (clamp(roundTiesToEven(value / scale) + zeroPoint, 0, 255) - zeroPoint) * scale
  );
}
