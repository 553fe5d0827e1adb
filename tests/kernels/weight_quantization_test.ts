import assert from "node:assert/strict";
import {
  coverWeights,
  encodeWeightRows,
  quantizeWeights,
  quantizeWeightsBackward,
} from "../../kernels/weight_quantization.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";
import { awayFromThresholds, quantizedWeight } from "../_reference_quant.ts";
import { weightBlock } from "./_weight_block.ts";

const UNTOUCHED = 777;

forEachTarget("quantizeWeights() rounds and clips dense and depthwise rows", async (device) => {
  const block = weightBlock(1);
  const parameters = device.fromArray([block.parameters.length], block.parameters);
  const rows = device.uint32(encodeWeightRows(block.rows));
  const w = device.fromArray([block.outputSize], Array(block.outputSize).fill(NaN));
  device.run(quantizeWeights({ rows: block.rows.length }, device.target), { parameters, rows, w });
  const expected = new Float64Array(block.outputSize);
  for (const { at, output, channel } of block.elements) {
    const { scale, quantMin, quantMax } = block.channels[channel]!; // elements name existing channels
    expected[output] = quantizedWeight(block.parameters[at]!, scale, quantMin, quantMax).w;
  }
  // exp of the log-scale: 1e-6 relative; codes are equal because no weight is near a threshold
  assertClose(await device.read(w), expected, { rtol: 3e-6, atol: 0 }, "w");
  for (const tensor of [parameters, rows, w]) device.release(tensor);
});

forEachTarget(
  "quantizeWeightsBackward() follows its definition and touches nothing else",
  async (device) => {
    const block = weightBlock(2);
    const g = randomArray(3, block.outputSize);
    const padding = new Set(block.padding.map(({ output }) => output));
    const gradient = g.map((value, i) => padding.has(i) ? 0 : value);
    const parameters = device.fromArray([block.parameters.length], block.parameters);
    const rows = device.uint32(encodeWeightRows(block.rows));
    const dw = device.fromArray([block.outputSize], gradient);
    const size = block.parameters.length;
    const gradients = device.fromArray([size], Array(size).fill(UNTOUCHED));
    const kernel = quantizeWeightsBackward({ rows: block.rows.length }, device.target);
    device.run(kernel, { parameters, rows, dw, gradients });
    const expected = Array<number>(size).fill(UNTOUCHED);
    for (const { at } of block.padding) expected[at] = 0;
    for (const { logScale } of block.channels) expected[logScale] = 0;
    for (const at of block.paddedLogScales) expected[at] = 0;
    for (const { at, output, channel } of block.elements) {
      const { scale, quantMin, quantMax, logScale } = block.channels[channel]!; // as above
      const { q, v, inside } = quantizedWeight(block.parameters[at]!, scale, quantMin, quantMax);
      expected[at] = inside ? gradient[output]! : 0;
      expected[logScale]! += scale * gradient[output]! * (q - (inside ? v : 0));
    }
    // sums of up to 27 terms of order 1, each with the 1e-6 error of exp
    assertClose(await device.read(gradients), expected, { rtol: 1e-5, atol: 1e-5 }, "gradients");
    for (const tensor of [parameters, rows, dw, gradients]) device.release(tensor);
  },
);

forEachTarget("quantizeWeightsBackward() sums a long row", async (device) => {
  const length = 131, scale = 0.25; // more than two turns of a workgroup
  const latent = awayFromThresholds(randomArray(4, length * 4), scale);
  const g = randomArray(5, length * 4);
  const parameters = device.fromArray([length * 4 + 4], [Math.log(scale), 0, 0, 0, ...latent]);
  const row = { start: 1, length, logScale: 0, output: 0, quantMin: -2, quantMax: 1 };
  const rows = device.uint32(encodeWeightRows([row]));
  const dw = device.fromArray([length * 4], g);
  const gradients = device.tensor([length * 4 + 4]);
  const kernel = quantizeWeightsBackward({ rows: 1 }, device.target);
  device.run(kernel, { parameters, rows, dw, gradients });
  let expected = 0;
  latent.forEach((value, i) => {
    const { q, v, inside } = quantizedWeight(value, scale, -2, 1);
    expected += scale * g[i]! * (q - (inside ? v : 0));
  });
  const [actual] = await device.read(gradients);
  // 524 terms below 1
  assertClose([actual!], [expected], { rtol: 1e-5, atol: 1e-5 }, "log-scale");
  for (const tensor of [parameters, rows, dw, gradients]) device.release(tensor);
});

forEachTarget(
  "coverWeights() gives every row the least scale that clips nothing",
  async (device) => {
    const block = weightBlock(3);
    // a dense row and a lane of zeros
    const zero = [1, 10];
    for (const { at, channel } of block.elements) {
      if (zero.includes(channel)) block.parameters[at] = 0;
    }
    const parameters = device.fromArray([block.parameters.length], block.parameters);
    const rows = device.uint32(encodeWeightRows(block.rows));
    device.run(coverWeights({ rows: block.rows.length }, device.target), { parameters, rows });
    const scales = new Float64Array(block.channels.length);
    for (const { at, channel } of block.elements) {
      const { quantMin, quantMax } = block.channels[channel]!; // elements name existing channels
      const latent = block.parameters[at]!;
      const needed = Math.max(latent / Math.max(quantMax, 1), latent / Math.min(quantMin, -1));
      scales[channel] = Math.max(scales[channel]!, needed);
    }
    const expected = Float64Array.from(block.parameters);
    block.channels.forEach(({ logScale }, channel) => {
      if (!zero.includes(channel)) expected[logScale] = Math.log(scales[channel]!);
    });
    // a float32 quotient and its logarithm; what is no scale is untouched
    assertClose(await device.read(parameters), expected, { rtol: 1e-6, atol: 1e-6 }, "parameters");
    for (const tensor of [parameters, rows]) device.release(tensor);
  },
);

forEachTarget("coverWeights() looks at all of a long row", async (device) => {
  const length = 131; // more than two turns of a workgroup
  for (const at of [0, 300, 523]) {
    const latent = randomArray(6, length * 4, { scale: 0.1 }).with(at, -5);
    const parameters = device.fromArray([length * 4 + 4], [0, 0, 0, 0, ...latent]);
    const row = { start: 1, length, logScale: 2, output: 0, quantMin: -4, quantMax: 3 };
    const rows = device.uint32(encodeWeightRows([row]));
    device.run(coverWeights({ rows: 1 }, device.target), { parameters, rows });
    const found = (await device.read(parameters)).slice(0, 4);
    // a float32 logarithm
    assertClose(found, [0, 0, Math.log(1.25), 0], { rtol: 1e-6, atol: 0 }, `${at}`);
    for (const tensor of [parameters, rows]) device.release(tensor);
  }
});

Deno.test("encodeWeightRows() refuses lanes that do not start a vec4 or codes that do not fit", () => {
  const row = { start: 0, length: 1, output: 0, quantMin: [-2], quantMax: [1] };
  assert.throws(() => encodeWeightRows([{ ...row, logScale: 3 }]), /multiple of 4/);
  assert.throws(() => encodeWeightRows([{ ...row, logScale: 4, quantMax: [200] }]), /-128 .. 127/);
});
