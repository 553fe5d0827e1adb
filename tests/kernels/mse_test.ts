import { errorSums, meanSquaredError } from "../../kernels/mse.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";
import { derivative, sum } from "../_reference_quant.ts";

const SHAPES = [[1, 1], [7, 3], [129, 5], [7, 17], [129, 64]] as const;

for (const [rows, channels] of SHAPES) {
  forEachTarget(`meanSquaredError() [${rows}, ${channels}] and its derivative`, async (device) => {
    const shape = [rows, channels], size = rows * channels, weight = 0.75, scale = 1.5;
    const y = randomArray(1, size), target = randomArray(2, size), before = randomArray(3, size);
    const spec = { rows, channels, scale, historySize: 3, terms: 2, term: 1 };
    const bindings = {
      y: device.fromArray(shape, y),
      teacher: device.fromArray(shape, target),
      weight: device.fromArray([1], [weight]),
      state: device.fromArray([16], [5, ...Array(15).fill(NaN)]), // step 5 is 2 modulo 3
      dy: device.fromArray(shape, before),
      losses: device.fromArray([6], Array(6).fill(7)),
    };
    device.run(meanSquaredError(spec, device.target), bindings);
    const loss = (values: Float64Array): number =>
      scale * weight * sum(values.map((value, i) => (value - target[i]!) ** 2)) / size;
    // a mean of at most 8,256 float32 squares
    const expected = [7, 7, 7, 7, 7, loss(y)];
    assertClose(await device.read(bindings.losses), expected, { rtol: 1e-6, atol: 0 }, "losses");
    const dy = await device.read(bindings.dy);
    const analytic = Array.from(y, (v, i) => 2 * scale * weight * (v - target[i]!) / size);
    assertClose(dy, analytic, { rtol: 1e-6, atol: 1e-9 }, "dy"); // one subtraction, one product
    const probes = Array.from(
      y.slice(0, 8),
      (value, i) => derivative((moved) => loss(y.with(i, moved)), value),
    );
    assertClose(dy.slice(0, 8), probes, { rtol: 1e-4, atol: 1e-8 }, "finite differences");
    for (const tensor of Object.values(bindings)) device.release(tensor);
  });

  forEachTarget(`errorSums() [${rows}, ${channels}] over two batches`, async (device) => {
    const shape = [rows, channels], size = rows * channels, sums = device.tensor([16]);
    const kernel = errorSums({ rows, channels }, device.target);
    const expected = new Float64Array(8);
    for (const seed of [4, 6]) {
      const a = randomArray(seed, size), b = randomArray(seed + 1, size);
      const y = device.fromArray(shape, a), teacher = device.fromArray(shape, b);
      device.run(kernel, { y, teacher, sums });
      a.forEach((value, i) => {
        const t = b[i]!;
        [(value - t) ** 2, t * t, value * t, t, value * value, value, 1]
          .forEach((term, k) => expected[k]! += term);
      });
      expected[7]!++;
      device.release(y);
      device.release(teacher);
    }
    // 16,512 float32 terms of order 1 in chunks
    const actual = bothParts(await device.read(sums));
    assertClose(actual, expected, { rtol: 1e-6, atol: 2e-4 }, "sums");
    device.release(sums);
  });
}

forEachTarget("errorSums() does not lose small batches beside a large sum", async (device) => {
  const start = 2 ** 24, batches = 300; // adding 1 to 2^24 changes nothing in float32
  const sums = device.fromArray([16], [start, ...Array(15).fill(0)]);
  const y = device.fromArray([1, 1], [1]), teacher = device.fromArray([1, 1], [0]);
  const kernel = errorSums({ rows: 1, channels: 1 }, device.target);
  for (let batch = 0; batch < batches; batch++) device.run(kernel, { y, teacher, sums });
  const actual = bothParts(await device.read(sums));
  const expected = [start + batches, 0, 0, 0, batches, batches, batches, batches];
  assertClose(actual, expected, { rtol: 0, atol: 0 }, "sums"); // integers, all exact
  for (const tensor of [y, teacher, sums]) device.release(tensor);
});

function bothParts(sums: Float32Array): number[] {
  return Array.from(sums.slice(0, 8), (total, i) => total + sums[8 + i]!);
}
