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

/** [exponent, importance]; 43 samples of 3 rows. */
const WEIGHTED = [
  [2.4, undefined],
  [2, "element"],
  [2, 3],
  [2.4, "element"],
  [1.5, 3],
] as const;

for (const [exponent, importance] of WEIGHTED) {
  forEachTarget(
    `meanSquaredError() to the power of ${exponent}, importance of ${importance}`,
    async (device) => {
      const rows = 129, channels = 5, size = rows * channels, scale = 1.5, weight = 0.75;
      const drawn = randomArray(1, size), target = randomArray(2, size);
      const y = drawn.map((value, i) => i % 7 === 0 ? target[i]! : value); // no error, no gradient
      const shape = importance === "element" ? [rows, channels] : [rows / (importance ?? 3), 1];
      const factors = randomArray(4, shape[0]! * shape[1]!).map((value) => value * value);
      const counted = (i: number) => {
        if (importance === undefined) return 1;
        return factors[importance === "element" ? i : Math.floor(i / channels / importance)]!;
      };
      const bindings = {
        y: device.fromArray([rows, channels], y),
        teacher: device.fromArray([rows, channels], target),
        weight: device.fromArray([1], [weight]),
        ...(importance && { importance: device.fromArray(shape, factors) }),
        state: device.fromArray([16], [1, ...Array(15).fill(NaN)]),
        dy: device.fromArray([rows, channels], new Float64Array(size).fill(NaN)),
        losses: device.fromArray([2], [7, 7]),
      };
      const spec = {
        rows,
        channels,
        scale,
        historySize: 2,
        exponent,
        ...(importance && { importance }),
      };
      device.run(meanSquaredError(spec, device.target), bindings);
      const loss = (values: Float64Array) =>
        scale * weight / size *
        sum(values.map((value, i) => counted(i) * Math.abs(value - target[i]!) ** exponent));
      // float32 powers are good to some 1e-5
      const close = { rtol: 3e-5, atol: 1e-9 };
      assertClose(await device.read(bindings.losses), [7, loss(y)], close, "losses");
      const dy = await device.read(bindings.dy);
      const analytic = Array.from(y, (value, i) => {
        const error = value - target[i]!;
        const slope = exponent * Math.abs(error) ** (exponent - 1) * Math.sign(error);
        return scale * weight * counted(i) * slope / size;
      });
      assertClose(dy, analytic, close, "dy");
      const moved = (i: number) => derivative((value) => loss(y.with(i, value)), y[i]!);
      const probes = [1, 2, 3, 300, 640].map((i) => [dy[i]!, moved(i)] as const);
      const [found, expected] = [0, 1].map((side) => probes.map((probe) => probe[side]!));
      assertClose(found!, expected!, { rtol: 1e-3, atol: 1e-8 }, "finite differences");
      for (const tensor of Object.values(bindings)) device.release(tensor);
    },
  );
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
