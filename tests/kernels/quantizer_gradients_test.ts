// Gradients that differ from LSQ's, against their published definitions: PACT's and EWGS's of activations, EWGS's and
// DoReFa's of weights.
import {
  fakeQuantizeBackward,
  fakeQuantizeForward,
  type QuantizerGradient,
} from "../../kernels/fake_quantize.ts";
import {
  largestTanh,
  quantizeTanhWeights,
  quantizeTanhWeightsBackward,
} from "../../kernels/tanh_weights.ts";
import { encodeWeightRows, quantizeWeightsBackward } from "../../kernels/weight_quantization.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import {
  awayFromThresholds,
  clamp,
  fakeQuantized,
  quantizedWeight,
  roundTiesToEven,
} from "../_reference_quant.ts";
import { weightBlock } from "./_weight_block.ts";

/** Large, so that a mistake shows. */
const DELTA = 0.75;
const UNTOUCHED = 777;
const SCALE = 0.25;

/** [rows, channels, zeroPoint, quantMin, quantMax] */
const GRIDS = [[129, 17, 0, 0, 3], [7, 5, -1, -8, 7]] as const;

for (const [rows, channels, zeroPoint, quantMin, quantMax] of GRIDS) {
  const shape = [rows, channels], size = rows * channels;
  const low = quantMin - zeroPoint, high = quantMax - zeroPoint;
  const x = awayFromThresholds(randomArray(1, size, { scale: SCALE * high }), SCALE);
  const g = randomArray(2, size);

  const run = async (device: Device, gradient?: QuantizerGradient) => {
    const spec = { rows, channels, ...(gradient && { gradient }) };
    const qparams = { shape: [4], data: [SCALE, zeroPoint, quantMin, quantMax] };
    const inputs = { x: { shape, data: x }, qparams };
    const forward = fakeQuantizeForward(spec, device.target);
    const { y } = await runKernel(device, forward, inputs, { y: shape });
    const expected = Array.from(x, (v) => fakeQuantized(v, SCALE, zeroPoint, quantMin, quantMax).y);
    assertClose(y!, expected, { rtol: 0, atol: 0 }, "y"); // the scale is a power of two
    const backward = fakeQuantizeBackward(spec, device.target);
    const outputs = { dx: shape, scale_sums: [channels], zero_point_sums: [channels] };
    return await runKernel(device, backward, { ...inputs, dy: { shape, data: g } }, outputs);
  };
  const byChannel = (term: (x: number, g: number) => number): Float64Array => {
    const sums = new Float64Array(channels);
    x.forEach((value, i) => sums[i % channels]! += term(value, g[i]!));
    return sums;
  };
  const inside = (value: number) => value / SCALE > low && value / SCALE < high;
  const label = `${shape} in ${quantMin}..${quantMax} around ${zeroPoint}`;
  const tolerance = { rtol: 1e-5, atol: 1e-4 }; // up to 129 terms of order quantMax

  forEachTarget(`fakeQuantizeBackward() clipped is PACT's gradient, ${label}`, async (device) => {
    const { dx, scale_sums } = await run(device, { kind: "clipped" });
    const expected = Array.from(x, (value, i) => inside(value) ? g[i]! : 0);
    assertClose(dx!, expected, { rtol: 0, atol: 0 }, "dx");
    // dy/dalpha = 1 where x >= alpha; alpha = high * scale, and the other end moves with the scale
    const bounds = byChannel((value, gradient) =>
      inside(value) ? 0 : gradient * (value > 0 ? high : low)
    );
    assertClose(scale_sums!, bounds, tolerance, "dscale");
  });

  forEachTarget(`fakeQuantizeBackward() scaled is EWGS's gradient, ${label}`, async (device) => {
    const { dx, scale_sums } = await run(device, { kind: "scaled", delta: DELTA });
    const scaled = (value: number, gradient: number) => {
      // x_n and x_q of the paper are (v - low) and its rounding over the number of steps
      const v = value / SCALE, rest = (v - roundTiesToEven(v)) / (high - low);
      return gradient * (1 + DELTA * Math.sign(gradient) * rest);
    };
    const expected = Array.from(x, (value, i) => inside(value) ? scaled(value, g[i]!) : 0);
    assertClose(dx!, expected, { rtol: 1e-6, atol: 1e-7 }, "dx");
    // y = scale q(x / scale): the factor has dy itself, what passes q the scaled one
    const dscale = byChannel((value, gradient) => {
      const v = value / SCALE, code = clamp(roundTiesToEven(v), low, high);
      return gradient * code - (inside(value) ? scaled(value, gradient) * v : 0);
    });
    assertClose(scale_sums!, dscale, tolerance, "dscale");
  });
}

forEachTarget("quantizeWeightsBackward() scales gradients element by element", async (device) => {
  const block = weightBlock(2);
  const padding = new Set(block.padding.map(({ output }) => output));
  const g = randomArray(3, block.outputSize).map((value, i) => padding.has(i) ? 0 : value);
  const size = block.parameters.length;
  const expected = Array<number>(size).fill(UNTOUCHED);
  for (const { at } of block.padding) expected[at] = 0;
  for (const at of block.paddedLogScales) expected[at] = 0;
  for (const { logScale } of block.channels) expected[logScale] = 0;
  for (const { at, output, channel } of block.elements) {
    const { scale, quantMin, quantMax, logScale } = block.channels[channel]!; // elements name existing channels
    const { q, v, inside } = quantizedWeight(block.parameters[at]!, scale, quantMin, quantMax);
    const gradient = g[output]!;
    const factor = 1 + DELTA * Math.sign(gradient) * (v - q) / (quantMax - quantMin);
    expected[at] = inside ? gradient * factor : 0;
    expected[logScale]! += scale * (gradient * q - expected[at]! * v);
  }
  const kernel = quantizeWeightsBackward(
    { rows: block.rows.length, delta: DELTA },
    device.target,
  );
  const gradients = await onBlock(device, block, g, (bound) => device.run(kernel, bound));
  // sums of up to 27 terms of order 1, each with the 1e-6 error of exp
  assertClose(gradients, expected, { rtol: 1e-5, atol: 1e-5 }, "gradients");
});

/** Grids of 2, 3 and 4 bits with odd codes, and of 8 bits with all. */
const TANH_GRIDS = [[-3, 3], [-7, 7], [-15, 15], [-128, 127]] as const;

forEachTarget("quantizeTanhWeights() and its gradient are DoReFa's", async (device) => {
  const made = weightBlock(5);
  const channels = made.channels.map((channel, i) => {
    const [quantMin, quantMax] = TANH_GRIDS[i % TANH_GRIDS.length]!; // modulo
    return { ...channel, quantMin, quantMax };
  });
  const byLogScale = new Map(channels.map((channel) => [channel.logScale, channel]));
  const rows = made.rows.map((row) => {
    const one = byLogScale.get(row.logScale)!;
    if (typeof row.quantMin === "number") {
      return { ...row, quantMin: one.quantMin, quantMax: one.quantMax };
    }
    const lanes = [0, 1, 2, 3].map((lane) => byLogScale.get(row.logScale + lane));
    return {
      ...row,
      quantMin: lanes.map((lane) => lane?.quantMin ?? 0),
      quantMax: lanes.map((lane) => lane?.quantMax ?? 0),
    };
  });
  const block = { ...made, rows, channels };
  const largest = channels.map((_, c) =>
    Math.max(
      ...block.elements.filter(({ channel }) => channel === c)
        .map(({ at }) => Math.abs(Math.tanh(block.parameters[at]!))),
    )
  );
  const g = randomArray(6, block.outputSize);
  const spec = { rows: rows.length };
  let w = new Float32Array();
  const gradients = await onBlock(device, block, g, async (bound) => {
    const { parameters, rows } = bound;
    const maxima = device.tensor([spec.rows, 4]), values = device.tensor([block.outputSize]);
    device.run(largestTanh(spec, device.target), { parameters, rows, largest: maxima });
    const forward = { parameters, rows, largest: maxima, w: values };
    device.run(quantizeTanhWeights(spec, device.target), forward);
    const backward = quantizeTanhWeightsBackward(spec, device.target);
    device.run(backward, { ...bound, largest: maxima });
    w = await device.read(values);
    for (const tensor of [maxima, values]) device.release(tensor);
  });
  const expected = Array<number>(block.parameters.length).fill(UNTOUCHED);
  for (const { at, output } of block.padding) {
    expected[at] = 0;
    assertClose([w[output]!], [0], { rtol: 0, atol: 0 }, "padding");
  }
  let rounded = 0;
  for (const { at, output, channel } of block.elements) {
    const { scale, quantMax } = channels[channel]!; // elements name existing channels
    const t = Math.tanh(block.parameters[at]!), part = t / largest[channel]!;
    // 2 q_k(part / 2 + 1/2) - 1 on 2^k - 1 steps; 127 steps each way where codes are all of int8
    const steps = quantMax === 127 ? 254 : quantMax;
    const unit = (part + 1) / 2 * steps;
    const tie = Math.abs(unit - Math.floor(unit) - 0.5);
    if (tie > 1e-3) {
      const value = scale * quantMax * (2 * Math.round(unit) / steps - 1);
      // exp, tanh and their quotient in float32
      assertClose([w[output]!], [value], { rtol: 1e-5, atol: 1e-6 }, `weight ${at}`);
      rounded++;
    }
    expected[at] = g[output]! * scale * quantMax / largest[channel]! * (1 - t * t);
  }
  if (rounded < 0.9 * block.elements.length) throw new Error("too many ties to say anything");
  assertClose(gradients, expected, { rtol: 2e-5, atol: 2e-6 }, "gradients");
});

/** Runs kernels on a block's parameters, rows, dw and poisoned gradients, which it returns. */
async function onBlock(
  device: Device,
  block: ReturnType<typeof weightBlock>,
  g: ArrayLike<number>,
  run: (bound: Record<"parameters" | "rows" | "dw" | "gradients", Tensor>) => void | Promise<void>,
): Promise<Float32Array> {
  const size = block.parameters.length;
  const bound = {
    parameters: device.fromArray([size], block.parameters),
    rows: device.uint32(encodeWeightRows(block.rows)),
    dw: device.fromArray([block.outputSize], g),
    gradients: device.fromArray([size], Array(size).fill(UNTOUCHED)),
  };
  await run(bound);
  const gradients = await device.read(bound.gradients);
  for (const tensor of Object.values(bound)) device.release(tensor);
  return gradients;
}
