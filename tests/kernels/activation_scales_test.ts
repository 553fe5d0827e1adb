import {
  activationScaleGradients,
  encodeActivationScales,
  updateActivationScales,
} from "../../kernels/activation_scales.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";
import { sum } from "../_reference_quant.ts";

/** Three quantizers, 16 vec4s apart as bindings must be; the second learns its zero point. */
const QUANTIZERS = [
  { logScale: 5, qparams: 0, scaleTerms: 0, scaleTermCount: 3 },
  { logScale: 2, zeroPoint: 9, qparams: 16, scaleTerms: 16 },
  { logScale: 11, qparams: 32, scaleTerms: 32, scaleTermCount: 2 },
];
const COUNT = { count: QUANTIZERS.length };
const UNTOUCHED = 777;

forEachTarget(
  "updateActivationScales() exponentiates and keeps fixed zero points",
  async (device) => {
    const values = randomArray(1, 16);
    const parameters = device.fromArray([16], values);
    const quantizers = device.uint32(encodeActivationScales(QUANTIZERS));
    const before = Array<number>(33 * 4).fill(UNTOUCHED);
    before[1] = 3;
    before[32 * 4 + 1] = -7;
    for (const at of [0, 64, 128]) before.splice(at + 2, 2, -8, 7);
    const qparams = device.fromArray([before.length], before);
    device.run(updateActivationScales(COUNT, device.target), { parameters, quantizers, qparams });
    const expected = [...before];
    expected.splice(0, 4, Math.exp(values[5]!), 3, -8, 7);
    expected.splice(64, 4, Math.exp(values[2]!), values[9]!, -8, 7);
    expected.splice(128, 4, Math.exp(values[11]!), -7, -8, 7);
    assertClose(await device.read(qparams), expected, { rtol: 3e-6, atol: 0 }, "qparams"); // exp
    for (const tensor of [parameters, quantizers, qparams]) device.release(tensor);
  },
);

forEachTarget("activationScaleGradients() is the chain rule of exp", async (device) => {
  const quantizers = device.uint32(encodeActivationScales(QUANTIZERS));
  const params = randomArray(2, 33 * 4), terms = randomArray(3, 34 * 4);
  const qparams = device.fromArray([params.length], params);
  const scale_terms = device.fromArray([terms.length], terms);
  const gradients = device.fromArray([16], Array(16).fill(UNTOUCHED));
  const bindings = { quantizers, qparams, scale_terms, gradients };
  device.run(activationScaleGradients(COUNT, device.target), bindings);
  const total = (start: number, count: number): number =>
    sum(terms.slice(start * 4, (start + count) * 4));
  const expected = Array<number>(16).fill(UNTOUCHED);
  expected[5] = params[0]! * total(0, 3);
  expected[2] = params[64]! * total(16, 1);
  expected[9] = total(17, 1);
  expected[11] = params[128]! * total(32, 2);
  // twelve terms of order 1
  assertClose(await device.read(gradients), expected, { rtol: 1e-6, atol: 2e-6 }, "gradients");
  for (const tensor of Object.values(bindings)) device.release(tensor);
});
