// X^T X of patches on both families against the float64 definition: column k of X is the convolution with the filter
// that is 1 at weight k and 0 elsewhere.
import { gram, patchSize } from "../../kernels/gram.ts";
import { Rng } from "../../src/core/rng.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import {
  type ConvCase,
  convShapes,
  convSpec,
  referenceForward,
  sizeOf,
} from "../_reference_conv.ts";

const CASES: Readonly<Record<string, ConvCase>> = {
  "one pixel": { size: [1, 1], channels: [1, 1], kernel: [1, 1], pad: [0, 0, 0, 0] },
  "3x3 over 8 channels": { batch: 2, size: [8, 8], channels: [8, 4] },
  "prime everything, stride 2": { batch: 3, size: [7, 11], channels: [5, 3], stride: [2, 2] },
  "stride 3, asymmetric padding, 2x4 kernel": {
    size: [9, 10],
    channels: [6, 2],
    kernel: [2, 4],
    stride: [3, 2],
    pad: [0, 2, 1, 1],
  },
  "dilation 2": {
    size: [9, 7],
    channels: [3, 4],
    dilation: [2, 2],
    pad: [2, 2, 2, 2],
  },
  "depthwise over 13 channels": { batch: 2, size: [6, 5], channels: [13, 13], group: 13 },
  "two groups of three": { batch: 2, size: [6, 6], channels: [6, 4], group: 2 },
  "linear": {
    batch: 33,
    size: [1, 1],
    channels: [21, 5],
    kernel: [1, 1],
    pad: [0, 0, 0, 0],
  },
};

for (const [name, convCase] of Object.entries(CASES)) {
  for (const part of [1, 0.4]) {
    forEachTarget(`gram() sums X^T X of ${part * 100} % of the pixels: ${name}`, async (device) => {
      const spec = convSpec(convCase);
      const all = spec.batch * spec.outHeight * spec.outWidth;
      const rows = Math.ceil(all * part);
      const pixels = new Rng(3).permutation(all).slice(0, rows);
      const shape = convShapes(spec).x;
      const x = randomArray(1, sizeOf(shape));
      const size = patchSize(spec);
      const { h } = await runKernel(device, gram({ ...spec, rows }, device.target), {
        x: { shape, data: x },
        pixels,
      }, { h: [spec.group * size, size] });
      const columns = patchColumns(convCase, x);
      const expected = columns.flatMap((group) =>
        group.flatMap((a) =>
          group.map((b) => pixels.reduce((sum, pixel) => sum + a[pixel]! * b[pixel]!, 0))
        )
      );
      // float32 sums of as many products of normal numbers as there are rows.
      assertClose(h!, expected, { rtol: 1e-5, atol: 2e-6 * Math.sqrt(rows) }, name);
    });
  }
}

/** [group][k]: column k of X, for every output pixel. */
function patchColumns(convCase: ConvCase, x: Float64Array): Float64Array[][] {
  const { group = 1, channels: [inputs] } = convCase;
  const spec = convSpec({ ...convCase, channels: [inputs, group] });
  const size = patchSize(spec);
  const pixels = spec.batch * spec.outHeight * spec.outWidth;
  return Array.from({ length: group }, (_, g) =>
    Array.from({ length: size }, (_, k) => {
      const w = new Float64Array(group * size);
      w[g * size + k] = 1;
      const y = referenceForward(spec, x, w);
      return Float64Array.from({ length: pixels }, (_, p) => y[p * group + g]!);
    }));
}
