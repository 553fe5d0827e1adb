import {
  hardenSoftRounding,
  initializeSoftRounding,
  softRoundWeights,
  softRoundWeightsBackward,
} from "../../kernels/soft_rounding.ts";
import { encodeWeightRows } from "../../kernels/weight_quantization.ts";
import type { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";
import {
  clamp,
  derivative,
  rectifiedSigmoid,
  roundingPenalty,
  softWeight,
} from "../_reference_quant.ts";
import { type WeightBlock, weightBlock } from "./_weight_block.ts";

/** Float where the rounding variables begin. */
const START = 640;
const UNTOUCHED = 777;

forEachTarget(
  "initializeSoftRounding() makes the soft weight equal the latent one",
  async (device) => {
    const { block, parameters, rows, spec } = setUp(device, 1);
    device.run(initializeSoftRounding(spec, device.target), { parameters, rows });
    const w = device.tensor([block.outputSize]);
    device.run(softRoundWeights(spec, device.target), { parameters, rows, w });
    const expected = new Float64Array(block.outputSize);
    for (const { at, output, channel } of block.elements) {
      const { scale, quantMin, quantMax } = block.channels[channel]!; // elements name existing channels
      expected[output] = scale * clamp(block.parameters[at]! / scale, quantMin, quantMax);
    }
    // log and exp, each to about 1e-6 of values below 3, times the scale
    assertClose(await device.read(w), expected, { rtol: 1e-5, atol: 1e-5 }, "w");
    for (const tensor of [parameters, rows, w]) device.release(tensor);
  },
);

forEachTarget("softRoundWeights() follows AdaRound and keeps exact zeros", async (device) => {
  const { block, parameters, rows, spec } = setUp(device, 2);
  const w = device.fromArray([block.outputSize], Array(block.outputSize).fill(NaN));
  device.run(softRoundWeights(spec, device.target), { parameters, rows, w });
  const expected = new Float64Array(block.outputSize);
  for (const { at, output, channel } of block.elements) {
    const { scale, quantMin, quantMax } = block.channels[channel]!; // as above
    const variable = block.parameters[START + output]!;
    expected[output] = softWeight(block.parameters[at]!, variable, scale, quantMin, quantMax);
  }
  assertClose(await device.read(w), expected, { rtol: 1e-5, atol: 1e-6 }, "w"); // exp: 1e-6
  for (const tensor of [parameters, rows, w]) device.release(tensor);
});

for (const [on, weighted] of [[0, false], [1, false], [1, true]] as const) {
  forEachTarget(
    `softRoundWeightsBackward() is the derivative, regulariser ${on}${weighted ? " by row" : ""}`,
    async (device) => {
      const { block, parameters, rows, spec } = setUp(device, 3);
      const factors = block.rows.map((_, i) => weighted ? 0.5 + i % 3 : 1);
      const row_factors = device.fromArray([factors.length], factors);
      const factorAt = (output: number) =>
        factors[
          block.rows.findIndex(({ output: first, length, stride = 1 }) =>
            Array.from({ length }, (_, i) => first + i * stride).includes(Math.floor(output / 4))
          )
        ]!;
      const g = randomArray(9, block.outputSize), beta = 4.5, regularizer = 0.3;
      const state = device.fromArray([16], [0, 0, 0, 0, 0, beta, on, ...Array(9).fill(NaN)]);
      const dw = device.fromArray([block.outputSize], g);
      const size = block.parameters.length;
      const gradients = device.fromArray([size], Array(size).fill(UNTOUCHED));
      const kernel = softRoundWeightsBackward({ ...spec, regularizer, weighted }, device.target);
      const bound = { parameters, rows, dw, state, gradients };
      device.run(kernel, weighted ? { ...bound, row_factors } : bound);
      const expected = Array<number>(size).fill(UNTOUCHED);
      for (const { output } of block.padding) expected[START + output] = 0;
      for (const { at, output, channel } of block.elements) {
        const { scale, quantMin, quantMax } = block.channels[channel]!; // as above
        const loss = (variable: number): number =>
          g[output]! * softWeight(block.parameters[at]!, variable, scale, quantMin, quantMax) +
          on * regularizer * factorAt(output) * roundingPenalty(variable, beta);
        const latent = block.parameters[at]!;
        expected[START + output] = latent === 0
          ? 0
          : derivative(loss, block.parameters[START + output]!);
      }
      // pow and exp to 1e-5 relative; central differences to 1e-9
      assertClose(await device.read(gradients), expected, { rtol: 3e-5, atol: 1e-6 }, "gradients");
      for (const tensor of [parameters, rows, row_factors, dw, state, gradients]) {
        device.release(tensor);
      }
    },
  );
}

forEachTarget("hardenSoftRounding() puts latent weights on the grid", async (device) => {
  const { block, parameters, rows, spec } = setUp(device, 4);
  device.run(hardenSoftRounding(spec, device.target), { parameters, rows });
  const expected = Float64Array.from(block.parameters);
  for (const { at, output, channel } of block.elements) {
    const { scale, quantMin, quantMax } = block.channels[channel]!; // as above
    const latent = block.parameters[at]!;
    const up = block.parameters[START + output]! >= 0 ? 1 : 0;
    if (latent !== 0) {
      expected[at] = scale * clamp(Math.floor(latent / scale) + up, quantMin, quantMax);
    }
  }
  assertClose(await device.read(parameters), expected, { rtol: 3e-6, atol: 0 }, "parameters"); // exp
  for (const tensor of [parameters, rows]) device.release(tensor);
});

/** A block with random rounding variables, away from the kinks of h, and one weight that is exactly 0. */
function setUp(device: Device, seed: number): {
  block: WeightBlock;
  parameters: ReturnType<Device["tensor"]>;
  rows: ReturnType<Device["tensor"]>;
  spec: { rows: number; roundingStart: number };
} {
  const block = weightBlock(seed);
  block.parameters[block.elements[7]!.at] = 0; // a block has hundreds of elements
  randomArray(seed + 50, block.outputSize, { scale: 2 }).forEach((variable, i) => {
    const stretched = 1.2 / (1 + Math.exp(-variable)) - 0.1;
    const kink = rectifiedSigmoid(variable) !== stretched
      ? Math.abs(stretched - rectifiedSigmoid(variable))
      : Math.min(stretched, 1 - stretched);
    block.parameters[START + i] = kink < 1e-3 ? 0.5 : variable;
  });
  const parameters = device.fromArray([block.parameters.length], block.parameters);
  const rows = device.uint32(encodeWeightRows(block.rows));
  return { block, parameters, rows, spec: { rows: block.rows.length, roundingStart: START / 4 } };
}
