// N2UQ's step function and the ramp whose gradient it has, against the ramp's definition in float64.
import {
  encodeThresholdEntries,
  GRID_SIZE,
  KNOTS,
  thresholdGradients,
  thresholdQuantizeBackward,
  thresholdQuantizeForward,
  THRESHOLDS,
  updateThresholds,
} from "../../kernels/threshold_quantize.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { derivative, sum } from "../_reference_quant.ts";

const UNTOUCHED = 777;

/** [rows, channels, quantMin, zeroPoint, start, intervals] */
const CASES = [
  [129, 17, 0, 0, -0.25, [0.5, 1, 0.25]],
  [7, 5, -4, -1, -1.5, [0.5, 0.125, 0.25, 1, 0.75, 0.25, 0.5]],
  [11, 4, 0, 0, 0, Array.from({ length: 15 }, (_, i) => 0.125 * (1 + i % 3))],
] as const;
const SCALE = 0.25;

for (const [rows, channels, quantMin, zeroPoint, start, intervals] of CASES) {
  const thresholds = intervals.length;
  const shape = [rows, channels], size = rows * channels;
  const spec = { rows, channels, thresholds };
  const knots = knotsOf(start, intervals);
  const x = awayFrom(
    [...knots, ...halfway(knots)],
    randomArray(1, size).map((v) => start + 0.5 + v),
  );
  const g = randomArray(2, size);
  const grid = Array<number>(GRID_SIZE).fill(UNTOUCHED);
  grid.splice(0, 4, SCALE, zeroPoint, quantMin, quantMin + thresholds);
  grid.splice(KNOTS, thresholds + 1, ...knots);
  grid.splice(THRESHOLDS, thresholds, ...halfway(knots));
  const inputs = {
    x: { shape, data: x },
    grid: { shape: [GRID_SIZE], data: grid },
  };
  const level = (value: number) =>
    quantMin + halfway(knots).filter((threshold) => value >= threshold).length - zeroPoint;
  const label = `${shape} with ${thresholds} thresholds`;

  forEachTarget(`thresholdQuantizeForward() counts thresholds, ${label}`, async (device) => {
    const kernel = thresholdQuantizeForward(spec, device.target);
    const reached = x.slice(); // a threshold itself counts
    reached.set(halfway(knots));
    const given = { ...inputs, x: { shape, data: reached } };
    const { y } = await runKernel(device, kernel, given, { y: shape });
    const expected = Array.from(reached, (value) => SCALE * level(value));
    assertClose(y!, expected, { rtol: 0, atol: 0 }, "y"); // the scale is a power of two
  });

  forEachTarget(`thresholdQuantizeBackward() is the ramp's gradient, ${label}`, async (device) => {
    const kernel = thresholdQuantizeBackward(spec, device.target);
    const outputs = { dx: shape, sums: [thresholds + 2, channels] };
    const { dx, sums } = await runKernel(
      device,
      kernel,
      { ...inputs, dy: { shape, data: g } },
      outputs,
    );
    const expected = Array.from(
      x,
      (value, i) => g[i]! * SCALE * derivative((v) => ramp(v, knots), value),
    );
    assertClose(dx!, expected, { rtol: 1e-5, atol: 1e-5 }, "dx"); // central differences
    const wanted: number[][] = [
      byChannel((value, gradient) => gradient * level(value)),
      ...knots.map((knot, k) =>
        byChannel((value, gradient) =>
          gradient * SCALE * derivative((moved) => ramp(value, knots.with(k, moved)), knot)
        )
      ),
    ];
    // up to 129 terms of order 2
    assertClose(sums!, wanted.flat(), { rtol: 1e-5, atol: 1e-4 }, "sums");
  });

  const byChannel = (term: (x: number, g: number) => number): number[] => {
    const sums = Array<number>(channels).fill(0);
    x.forEach((value, i) => sums[i % channels]! += term(value, g[i]!));
    return sums;
  };
}

/** Two tensors, the second with an interval below the shortest. */
const PARAMETERS = { logScale: [3, 40], start: [10, 30] } as const;
const LEARNED = [
  { logScale: -1.2, start: -0.5, intervals: [0.5, 1.25, 0.25], channels: 5 },
  { logScale: 0.7, start: 0.25, intervals: [0.5, 0.001, 0.25, -3, 1, 1, 1], channels: 8 },
];
const SHORTEST = 0.03125;
const ENTRIES = LEARNED.map(({ intervals, channels }, i) => ({
  logScale: PARAMETERS.logScale[i]!,
  start: PARAMETERS.start[i]!,
  grid: 64 * i,
  sums: 64 * i,
  channels,
  thresholds: intervals.length,
  shortest: SHORTEST,
}));

function parameters(): number[] {
  const values = Array<number>(48).fill(UNTOUCHED);
  LEARNED.forEach(({ logScale, start, intervals }, i) => {
    values[PARAMETERS.logScale[i]!] = logScale;
    values.splice(PARAMETERS.start[i]!, intervals.length + 1, start, ...intervals);
  });
  return values;
}

forEachTarget("updateThresholds() keeps intervals open", async (device) => {
  const grids = device.fromArray([128], Array(128).fill(UNTOUCHED));
  const bindings = {
    parameters: device.fromArray([48], parameters()),
    entries: device.uint32(encodeThresholdEntries(ENTRIES)),
    grids,
  };
  device.run(updateThresholds({ count: 2 }, device.target), bindings);
  const expected = Array<number>(128).fill(UNTOUCHED);
  LEARNED.forEach(({ logScale, start, intervals }, i) => {
    const knots = knotsOf(start, intervals.map((width) => Math.max(width, SHORTEST)));
    expected[64 * i] = Math.exp(logScale);
    expected.splice(64 * i + KNOTS, knots.length, ...knots);
    expected.splice(64 * i + THRESHOLDS, intervals.length, ...halfway(knots));
  });
  assertClose(await device.read(grids), expected, { rtol: 3e-6, atol: 0 }, "grids"); // exp
  for (const tensor of Object.values(bindings)) device.release(tensor);
});

forEachTarget("thresholdGradients() is the chain rule of starts and intervals", async (device) => {
  const sums = randomArray(3, 192);
  const gradients = device.fromArray([48], Array(48).fill(UNTOUCHED));
  const grids = Array<number>(128).fill(UNTOUCHED);
  LEARNED.forEach(({ logScale }, i) => grids[64 * i] = Math.exp(logScale));
  const bindings = {
    parameters: device.fromArray([48], parameters()),
    entries: device.uint32(encodeThresholdEntries(ENTRIES)),
    grids: device.fromArray([128], grids),
    sums: device.fromArray([192], sums),
    gradients,
  };
  device.run(thresholdGradients({ count: 2 }, device.target), bindings);
  const expected = Array<number>(48).fill(UNTOUCHED);
  LEARNED.forEach(({ logScale, start, intervals, channels }, i) => {
    const lanes = Math.ceil(channels / 4) * 4;
    const total = (vector: number) =>
      sum(sums.slice(64 * i + vector * lanes, 64 * i + (vector + 1) * lanes));
    // any loss that is linear in the knots has these gradients
    const loss = (from: number, widths: readonly number[]) =>
      sum(knotsOf(from, widths.map((w) => Math.max(w, SHORTEST))).map((k, j) => k * total(j + 1)));
    expected[PARAMETERS.logScale[i]!] = Math.exp(logScale) * total(0);
    expected[PARAMETERS.start[i]!] = derivative((value) => loss(value, intervals), start);
    intervals.forEach((width, j) => {
      expected[PARAMETERS.start[i]! + 1 + j] = derivative(
        (value) => loss(start, intervals.with(j, value)),
        width,
      );
    });
  });
  // 64 terms of order 1, and central differences
  const found = await device.read(gradients);
  assertClose(found, expected, { rtol: 1e-5, atol: 1e-4 }, "gradients");
  for (const tensor of Object.values(bindings)) device.release(tensor);
});

/** Codes above the lowest: rises by one from each knot to the next. */
function ramp(x: number, knots: readonly number[]): number {
  return sum(
    knots.slice(1).map((knot, i) => {
      const before = knots[i]!;
      return Math.min(1, Math.max(0, (x - before) / (knot - before)));
    }),
  );
}

function knotsOf(start: number, intervals: readonly number[]): number[] {
  return intervals.reduce((knots, width) => [...knots, knots.at(-1)! + width], [start]);
}

function halfway(knots: readonly number[]): number[] {
  return knots.slice(1).map((knot, i) => (knot + knots[i]!) / 2);
}

/** Moves numbers that lie within 0.01 of one of the points, where derivatives jump. */
function awayFrom(
  points: readonly number[],
  values: Float64Array<ArrayBuffer>,
): Float64Array<ArrayBuffer> {
  return values.map((value) => {
    const near = points.find((point) => Math.abs(point - value) < 0.01);
    return near === undefined ? Math.fround(value) : Math.fround(near + 0.02);
  });
}
