// Pooling against float64 references, backward against finite differences of them.
import {
  averagePoolBackward,
  averagePoolForward,
  type AveragePoolSpec,
  globalAveragePoolBackward,
  globalAveragePoolForward,
  maxPoolBackward,
  maxPoolForward,
  type PoolSpec,
} from "../../kernels/pooling.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import {
  averagePoolReference,
  mapRows,
  maxPoolBackwardReference,
  maxPoolReference,
  numericGradient,
  sizeOf,
} from "../_reference.ts";

type Window = readonly [size: number, out: number, kernel: number, stride: number, pads: number[]];

/** The same window along both axes. */
function spec(channels: number, [size, out, kernel, stride, [before, after]]: Window): PoolSpec {
  return {
    batch: 2,
    inHeight: size,
    inWidth: size,
    channels,
    outHeight: out,
    outWidth: out,
    kernelHeight: kernel,
    kernelWidth: kernel,
    strideHeight: stride,
    strideWidth: stride,
    padTop: before!,
    padLeft: before!,
    padBottom: after!,
    padRight: after!,
  };
}

const SPECS: readonly PoolSpec[] = [
  spec(1, [1, 1, 1, 1, [0, 0]]),
  spec(3, [7, 4, 3, 2, [1, 1]]),
  spec(5, [6, 3, 2, 2, [0, 0]]),
  spec(4, [6, 6, 3, 1, [0, 2]]), // asymmetric
  spec(3, [6, 3, 3, 2, [0, 0]]), // ceil_mode: the last window hangs over by one
  spec(2, [7, 2, 6, 5, [2, 1]]), // more taps than are unrolled, overlapping
  { ...spec(17, [5, 3, 2, 2, [1, 0]]), inWidth: 3, outWidth: 3, strideWidth: 1, padRight: 0 },
];

function shapes({ batch, inHeight, inWidth, outHeight, outWidth, channels }: PoolSpec) {
  return {
    x: [batch, inHeight, inWidth, channels],
    y: [batch, outHeight, outWidth, channels],
  };
}

// A maximum is exact.
const EXACT = { rtol: 0, atol: 0 };
// Sums of at most 36 float32.
const SUM = { rtol: 1e-5, atol: 2e-6 };

forEachTarget("maxPoolForward() takes the largest element under each window", async (device) => {
  for (const spec of SPECS) {
    const { x: shape, y } = shapes(spec);
    const x = { shape, data: randomArray(1, sizeOf(shape)) };
    const result = await runKernel(device, maxPoolForward(spec), { x }, { y });
    assertClose(result.y!, maxPoolReference(spec, x.data), EXACT, shape.join());
  }
});

forEachTarget("maxPoolBackward() sums over the windows an element wins", async (device) => {
  for (const spec of SPECS) {
    const { x: shape, y } = shapes(spec);
    const x = { shape, data: randomArray(1, sizeOf(shape)) };
    const dy = { shape: y, data: randomArray(2, sizeOf(y)) };
    const result = await runKernel(device, maxPoolBackward(spec), { x, dy }, { dx: shape });
    const numeric = numericGradient((v) => maxPoolReference(spec, v), x.data, dy.data, 1e-6);
    assertClose(result.dx!, numeric, SUM, shape.join());
  }
});

forEachTarget("maxPoolBackward() gives ties to the first element", async (device) => {
  for (const spec of SPECS) {
    const { x: shape, y } = shapes(spec);
    const x = { shape, data: randomArray(1, sizeOf(shape)).map((v) => Math.sign(v)) };
    const dy = { shape: y, data: randomArray(2, sizeOf(y)) };
    const result = await runKernel(device, maxPoolBackward(spec), { x, dy }, { dx: shape });
    assertClose(result.dx!, maxPoolBackwardReference(spec, x.data, dy.data), SUM, shape.join());
  }
});

forEachTarget("averagePoolForward(), averagePoolBackward() divide by the count", async (device) => {
  for (const countIncludePad of [false, true]) {
    for (const one of SPECS) {
      const spec: AveragePoolSpec = { ...one, countIncludePad };
      const { x: shape, y } = shapes(spec);
      const x = { shape, data: randomArray(1, sizeOf(shape)) };
      const dy = { shape: y, data: randomArray(2, sizeOf(y)) };
      const label = `${shape} ${countIncludePad}`;
      const forward = await runKernel(device, averagePoolForward(spec), { x }, { y });
      assertClose(forward.y!, averagePoolReference(spec, x.data), SUM, label);
      const backward = await runKernel(device, averagePoolBackward(spec), { dy }, { dx: shape });
      // An average is linear: differences with a step of 1 are exact.
      const numeric = numericGradient((v) => averagePoolReference(spec, v), x.data, dy.data, 1);
      assertClose(backward.dx!, numeric, SUM, label);
    }
  }
});

forEachTarget("globalAveragePool averages and spreads evenly", async (device) => {
  for (const [batch, size, channels] of [[1, 1, 1], [3, 7, 5], [33, 6, 17]] as const) {
    const spec = { batch, size, channels };
    const x = { shape: [batch, size, channels], data: randomArray(1, batch * size * channels) };
    const dy = { shape: [batch, channels], data: randomArray(2, batch * channels) };
    const reference = (v: Float64Array) =>
      mapRows(v, size * channels, (image) =>
        Float64Array.from({ length: channels }, (_, c) => {
          let sum = 0;
          for (let p = 0; p < size; p++) sum += image[p * channels + c]!;
          return sum / size;
        }));
    const forward = await runKernel(device, globalAveragePoolForward(spec), { x }, { y: dy.shape });
    assertClose(forward.y!, reference(x.data), SUM, x.shape.join());
    const backward = await runKernel(device, globalAveragePoolBackward(spec), { dy }, {
      dx: x.shape,
    });
    const numeric = numericGradient(reference, x.data, dy.data, 1); // linear
    assertClose(backward.dx!, numeric, SUM, x.shape.join());
  }
});
