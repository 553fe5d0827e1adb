import {
  fakeQuantizePerChannel,
  fakeQuantizePerChannelBackward,
  fakeQuantizePerTensor,
  fakeQuantizePerTensorBackward,
} from "../../kernels/fake_quantize.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { awayFromThresholds, fakeQuantized } from "../_reference_quant.ts";

/** [rows, channels, quantMin, quantMax, zeroPoint] */
const CASES = [
  [1, 1, 0, 3, 0],
  [7, 3, -8, 7, -2],
  [129, 5, 0, 15, 4],
  [7, 17, -2, 1, 0],
  [129, 64, 0, 255, 10],
] as const;

for (const [rows, channels, quantMin, quantMax, zeroPoint] of CASES) {
  const shape = [rows, channels], size = rows * channels;
  const spec = { rows, channels, quantMin, quantMax };

  forEachTarget(
    `fakeQuantizePerTensor() [${shape}] in ${quantMin}..${quantMax}`,
    async (device) => {
      const scale = 0.25; // a power of two: quotients are exact in float32
      const x = awayFromThresholds(randomArray(1, size), scale), g = randomArray(2, size);
      const qparams = { shape: [4], data: [scale, zeroPoint, 0, 0] };
      const inputs = { x: { shape, data: x }, qparams };
      const forward = fakeQuantizePerTensor(spec, device.target);
      const { y } = await runKernel(device, forward, inputs, { y: shape });
      const host = Array.from(
        x,
        (value) => fakeQuantized(value, scale, zeroPoint, quantMin, quantMax),
      );
      assertClose(
        y!,
        host.map((element) => element.y),
        { rtol: 0, atol: 0 },
        "y",
      );
      const backward = fakeQuantizePerTensorBackward(spec, device.target);
      const outputs = { dx: shape, dqparams: [2, 1] };
      const withGradient = { ...inputs, dy: { shape, data: g } };
      const { dx, dqparams } = await runKernel(device, backward, withGradient, outputs);
      assertClose(dx!, host.map((element, i) => element.dx * g[i]!), { rtol: 0, atol: 0 }, "dx");
      let dscale = 0, dzeroPoint = 0;
      host.forEach((element, i) => {
        dscale += element.dscale * g[i]!;
        dzeroPoint += element.dzeroPoint * g[i]!;
      });
      // up to 8,256 terms of order 1 in float32, summed in chunks
      assertClose(dqparams!, [dscale, dzeroPoint], { rtol: 1e-5, atol: 1e-4 }, "dqparams");
    },
  );

  forEachTarget(
    `fakeQuantizePerChannel() [${shape}] in ${quantMin}..${quantMax}`,
    async (device) => {
      const scale = Array.from({ length: channels }, (_, c) => 2 ** (c % 3 - 3));
      const zero_point = Array.from({ length: channels }, (_, c) => zeroPoint - c % 2);
      const drawn = randomArray(3, size), g = randomArray(4, size);
      const x = drawn.map((value, i) => awayFromThresholds([value], scale[i % channels]!)[0]!);
      const inputs = {
        x: { shape, data: x },
        scale: { shape: [channels], data: scale },
        zero_point: { shape: [channels], data: zero_point },
      };
      const host = Array.from(x, (value, i) => {
        const c = i % channels;
        return fakeQuantized(value, scale[c]!, zero_point[c]!, quantMin, quantMax);
      });
      const forward = fakeQuantizePerChannel(spec, device.target);
      const { y } = await runKernel(device, forward, inputs, { y: shape });
      assertClose(y!, host.map((element) => element.y), { rtol: 0, atol: 0 }, "y");
      const backward = fakeQuantizePerChannelBackward(spec, device.target);
      const outputs = { dx: shape, dscale: [channels], dzero_point: [channels] };
      const withGradient = { ...inputs, dy: { shape, data: g } };
      const actual = await runKernel(device, backward, withGradient, outputs);
      const dscale = new Float64Array(channels), dzeroPoint = new Float64Array(channels);
      host.forEach((element, i) => {
        dscale[i % channels]! += element.dscale * g[i]!;
        dzeroPoint[i % channels]! += element.dzeroPoint * g[i]!;
      });
      const expectedDx = host.map((element, i) => element.dx * g[i]!);
      assertClose(actual.dx!, expectedDx, { rtol: 0, atol: 0 }, "dx");
      const tolerance = { rtol: 1e-5, atol: 2e-5 }; // 129 terms of order 1
      assertClose(actual.dscale!, dscale, tolerance, "dscale");
      assertClose(actual.dzero_point!, dzeroPoint, tolerance, "dzero_point");
    },
  );
}

forEachTarget("fakeQuantizePerTensor() sends ties to the even code", async (device) => {
  const spec = { rows: 2, channels: 4, quantMin: -4, quantMax: 3 };
  const x = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -4.5];
  const inputs = {
    x: { shape: [2, 4], data: x },
    qparams: { shape: [4], data: [1, 0, 0, 0] },
  };
  const { y } = await runKernel(device, fakeQuantizePerTensor(spec, device.target), inputs, {
    y: [2, 4],
  });
  assertClose(y!, [0, 2, 2, 3, 0, -2, -2, -4], { rtol: 0, atol: 0 }, "y");
});
