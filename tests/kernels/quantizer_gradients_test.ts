// Gradients that differ from LSQ's, against their published definitions: PACT's and EWGS's of activations, EWGS's,
// DoReFa's and N2UQ's of weights.
import {
  fakeQuantizeBackward,
  fakeQuantizeForward,
  type QuantizerGradient,
} from "../../kernels/fake_quantize.ts";
import {
  quantizeMagnitudeWeights,
  quantizeMagnitudeWeightsBackward,
  scaleByMagnitude,
} from "../../kernels/magnitude_weights.ts";
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

forEachTarget("quantizeTanhWeights() and its gradient are DoReFa's", async (device) => {
  const { rows, channels, ...block } = onOddGrids(weightBlock(5));
  const largest = channels.map((_, c) =>
    Math.max(
      ...block.elements.filter(({ channel }) => channel === c)
        .map(({ at }) => Math.abs(Math.tanh(block.parameters[at]!))),
    )
  );
  const g = randomArray(6, block.outputSize);
  const spec = { rows: rows.length };
  let w = new Float32Array();
  const gradients = await onBlock(device, { ...block, rows, channels }, g, async (bound) => {
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

forEachTarget("quantizeMagnitudeWeights() and its gradient are N2UQ's", async (device) => {
  const made = onOddGrids(weightBlock(9));
  const { rows, channels, elements, padding } = made;
  const pruned = elements[7]!; // of a dense row
  const block = { ...made, parameters: made.parameters.with(pruned.at, 0) };
  const g = randomArray(10, block.outputSize);
  const spec = { rows: rows.length };
  let w = new Float32Array(), parameters = new Float32Array();
  const gradients = await onBlock(device, block, g, async (bound) => {
    const values = device.tensor([block.outputSize]);
    const forward = { parameters: bound.parameters, rows: bound.rows };
    device.run(scaleByMagnitude(spec, device.target), forward);
    device.run(quantizeMagnitudeWeights(spec, device.target), { ...forward, w: values });
    device.run(quantizeMagnitudeWeightsBackward(spec, device.target), bound);
    w = await device.read(values);
    parameters = await device.read(bound.parameters);
    device.release(values);
  });
  const scales = channels.map(({ scale, logScale, quantMax }, c) => {
    const sizes = elements.filter(({ channel }) => channel === c)
      .map(({ at }) => Math.abs(block.parameters[at]!)).filter((size) => size > 0);
    const mean = sizes.reduce((sum, size) => sum + size) / sizes.length;
    const own = quantMax === 127 ? scale : mean * 2 / (quantMax + 1);
    // exp and log in float32, and a mean of up to 27
    assertClose([Math.exp(parameters[logScale]!)], [own], { rtol: 3e-6, atol: 0 }, `scale ${c}`);
    return own;
  });
  const expected = Array<number>(block.parameters.length).fill(UNTOUCHED);
  for (const { at, output } of [...padding, pruned]) {
    expected[at] = 0;
    assertClose([w[output]!], [0], { rtol: 0, atol: 0 }, "zeros");
  }
  let rounded = 0;
  for (const { at, output, channel } of elements) {
    if (at === pruned.at) continue;
    const { quantMax } = channels[channel]!, scale = scales[channel]!; // elements name existing channels
    expected[at] = g[output]!;
    // gamma * mean * level: 2^bits levels on -1 .. 1, or the codes of int8
    const part = block.parameters[at]! / scale, odd = quantMax !== 127;
    const unit = odd ? (clamp(part, -quantMax, quantMax) + quantMax) / 2 : part;
    if (Math.abs(unit - Math.floor(unit) - 0.5) < 1e-3) continue;
    const code = odd ? 2 * Math.round(unit) - quantMax : clamp(Math.round(unit), -128, 127);
    assertClose([w[output]!], [scale * code], { rtol: 1e-5, atol: 1e-6 }, `weight ${at}`);
    rounded++;
  }
  if (rounded < 0.9 * elements.length) throw new Error("too many ties to say anything");
  assertClose(gradients, expected, { rtol: 0, atol: 0 }, "gradients");
});

/** Grids of 2, 3 and 4 bits with odd codes, and of 8 bits with all. */
const ODD_GRIDS = [[-3, 3], [-7, 7], [-15, 15], [-128, 127]] as const;

/** The block with its channels on these grids. */
function onOddGrids(block: ReturnType<typeof weightBlock>): ReturnType<typeof weightBlock> {
  const channels = block.channels.map((channel, i) => {
    const [quantMin, quantMax] = ODD_GRIDS[i % ODD_GRIDS.length]!; // modulo
    return { ...channel, quantMin, quantMax };
  });
  const byLogScale = new Map(channels.map((channel) => [channel.logScale, channel]));
  const rows = block.rows.map((row) => {
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
  return { ...block, rows, channels };
}

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
