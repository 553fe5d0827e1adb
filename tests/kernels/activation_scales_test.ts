import {
  activationScaleGradients,
  encodeActivationScales,
  type LearnedGrid,
  updateActivationScales,
  zeroPointTerms,
} from "../../kernels/activation_scales.ts";
import type { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";
import { derivative, fakeQuantized, sum } from "../_reference_quant.ts";

/** One of each kind, 16 vec4s apart as bindings must be. */
const QUANTIZERS = [
  { start: 5, qparams: 0, scaleTerms: 0, termCount: 3 },
  { learns: "zeroPoint", start: 9, qparams: 16, scaleTerms: 32 },
  { learns: "range", start: 2, qparams: 32, scaleTerms: 64, termCount: 17 },
  { learns: "upper", start: 11, qparams: 48, scaleTerms: 128, termCount: 2 },
] as const;
const COUNT = { count: QUANTIZERS.length };
const UNTOUCHED = 777;

forEachTarget("updateActivationScales() makes the grid that each kind learns", async (device) => {
  // log scale; log scale, zero point; low, high; high
  const found = await updated(device, [-1.2], [-0.7, -3.4], [-0.5, 1], [3]);
  const expected = [
    [Math.exp(-1.2), 1, -8, 7], // the zero point stays
    [Math.exp(-0.7), -3, -8, 7],
    [0.1, -3, -8, 7], // -8 + 0.5 / 0.1
    [0.5, 1, -8, 7], // 3 / (7 - 1)
  ];
  assertClose(found, expected.flat(), { rtol: 3e-6, atol: 0 }, "qparams"); // exp
});

forEachTarget(
  "updateActivationScales() keeps zero points on the grid and ranges open",
  async (device) => {
    // a zero point beyond the codes; a range that does not hold 0; a range turned over
    const above = await updated(device, [0], [0, 12.3], [1, 4], [-2]);
    assertClose(above.slice(4), [1, 7, -8, 7, 0.2, -8, -8, 7, 1e-6 / 6, 1, -8, 7], {
      rtol: 3e-6,
      atol: 0,
    }, "above");
    const below = await updated(device, [0], [0, -12.3], [2, 1], [6]);
    assertClose(below.slice(4), [1, -8, -8, 7, 1e-6 / 15, -8, -8, 7, 1, 1, -8, 7], {
      rtol: 3e-6,
      atol: 0,
    }, "below");
  },
);

forEachTarget("activationScaleGradients() is the chain rule of what is learned", async (device) => {
  const terms = randomArray(3, 192 * 4);
  const grids = [[0.3, 2, -8, 7], [0.7, -1, -8, 7], [0.45, 3, -8, 7], [0.2, -5, -8, 7]];
  const total = (start: number, count: number) => sum(terms.slice(start * 4, (start + count) * 4));
  const expected = Array<number>(16).fill(UNTOUCHED);
  expected[5] = 0.3 * total(0, 3);
  expected[9] = 0.7 * total(32, 1);
  expected[10] = total(48, 1);
  // scale = (high - low) / 15, zero point = -8 - low / scale
  const scale = total(64, 17), zeroPoint = total(96, 17);
  const chain = (low: number, high: number): number => {
    const step = (high - low) / 15;
    return scale * step + zeroPoint * (-8 - low / step);
  };
  const low = -0.45 * 11, high = 0.45 * 4;
  expected[2] = derivative((value) => chain(value, high), low);
  expected[3] = derivative((value) => chain(low, value), high);
  expected[11] = total(128, 2) / 12; // scale = high / (7 - -5)
  const found = await gradients(device, grids, terms);
  // 68 terms of order 1, and central differences
  assertClose(found, expected, { rtol: 1e-5, atol: 1e-4 }, "gradients");
});

forEachTarget("activationScaleGradients() gives ULQ's gradients of both ends", async (device) => {
  const scale = 0.25, steps = 15;
  const x = randomArray(5, 68, { scale: 1.5 }), g = randomArray(6, 68);
  for (const [zeroPoint, learns] of [[2, "range"], [-8, "upper"]] as const) {
    const low = scale * (-8 - zeroPoint), high = scale * (7 - zeroPoint);
    // The straight-through surrogate keeps the distance to the nearest code in steps.
    const surrogate = (value: number, from: number, to: number) => {
      if (value <= low) return from;
      if (value >= high) return to;
      return value + rest(value / scale) * (to - from) / steps;
    };
    const loss = (from: number, to: number) =>
      sum(x.map((value, i) => g[i]! * surrogate(value, from, to)));
    const dLow = derivative((value) => loss(value, high), low);
    const dHigh = derivative((value) => loss(low, value), high);
    // AMCT: dmax = sum((e + [x > hi]) g), dmin = sum(([x < lo] - e) g)
    const error = (value: number) => value > low && value < high ? rest(value / scale) / steps : 0;
    const dMax = sum(x.map((v, i) => g[i]! * (error(v) + (v >= high ? 1 : 0))));
    const dMin = sum(x.map((v, i) => g[i]! * ((v <= low ? 1 : 0) - error(v))));
    assertClose([dLow, dHigh], [dMin, dMax], { rtol: 1e-8, atol: 1e-8 }, "the definition");

    const all = Array.from(x, (value) => fakeQuantized(value, scale, zeroPoint, -8, 7));
    const terms = new Float64Array(192 * 4);
    const { scaleTerms, termCount } = learns === "range" ? QUANTIZERS[2] : QUANTIZERS[3];
    const size = termCount * 4;
    all.forEach(({ dscale, dzeroPoint }, i) => {
      terms[scaleTerms * 4 + i % size]! += dscale * g[i]!;
      terms[zeroPointTerms({ scaleTerms, termCount }) * 4 + i % size]! += dzeroPoint * g[i]!;
    });
    const found = await gradients(device, Array(4).fill([scale, zeroPoint, -8, 7]), terms);
    const own = learns === "range" ? found.slice(2, 4) : found.slice(11, 12);
    const wanted = learns === "range" ? [dMin, dMax] : [dMax];
    // 68 float32 terms of order 1
    assertClose(own, wanted, { rtol: 1e-5, atol: 1e-5 }, learns satisfies LearnedGrid);
  }
});

/** round(v) - v */
function rest(v: number): number {
  return Math.round(v) - v;
}

/** The four grids from four lists of parameters; all start with zero point 1 and codes -8 .. 7. */
async function updated(device: Device, ...learned: readonly number[][]): Promise<number[]> {
  const values = Array<number>(16).fill(UNTOUCHED);
  const before = Array<number>(49 * 4).fill(UNTOUCHED);
  QUANTIZERS.forEach(({ start, qparams }, i) => {
    values.splice(start, learned[i]!.length, ...learned[i]!); // four lists
    before.splice(qparams * 4 + 1, 3, 1, -8, 7);
  });
  const parameters = device.fromArray([16], values);
  const quantizers = device.uint32(encodeActivationScales(QUANTIZERS));
  const qparams = device.fromArray([before.length], before);
  device.run(updateActivationScales(COUNT, device.target), { parameters, quantizers, qparams });
  const after = await device.read(qparams);
  const grids = QUANTIZERS.flatMap(({ qparams: at }) => [...after.slice(at * 4, at * 4 + 4)]);
  const untouched = Array.from(after).filter((_, i) => i % 64 >= 4);
  assertClose(untouched, untouched.map(() => UNTOUCHED), { rtol: 0, atol: 0 }, "between");
  for (const tensor of [parameters, quantizers, qparams]) device.release(tensor);
  return grids;
}

/** Gradients of all parameters from the four grids and the terms. */
async function gradients(
  device: Device,
  grids: readonly number[][],
  values: Float64Array,
): Promise<Float32Array> {
  const quantizers = device.uint32(encodeActivationScales(QUANTIZERS));
  const flat = new Float32Array(49 * 4);
  grids.forEach((grid, i) => flat.set(grid, i * 64));
  const qparams = device.fromArray([flat.length], flat);
  const terms = device.fromArray([values.length], values);
  const gradients = device.fromArray([16], Array(16).fill(UNTOUCHED));
  const bindings = { quantizers, qparams, terms, gradients };
  device.run(activationScaleGradients(COUNT, device.target), bindings);
  const found = await device.read(gradients);
  for (const tensor of Object.values(bindings)) device.release(tensor);
  return found;
}
