import assert from "node:assert/strict";
import { histogram } from "../../kernels/histogram.ts";
import { forEachTarget, randomArray } from "../_gpu.ts";

for (const [rows, channels] of [[1, 1], [7, 3], [129, 5], [7, 17], [129, 64]] as const) {
  forEachTarget(`histogram() [${rows}, ${channels}] counts every real element`, async (device) => {
    const bins = 13, low = -2, high = 2.5, shape = [rows, channels];
    // centres of bins, and values beyond both ends
    const x = randomArray(2, rows * channels).map((value) =>
      Math.fround(low + (Math.floor(value * 4) + 6.5) * (high - low) / bins)
    );
    const tensor = device.fromArray(shape, x), range = device.fromArray([4], [low, high, 1, 0]);
    const counts = device.uint32(new Uint32Array(16));
    const kernel = histogram({ rows, channels, bins }, device.target);
    device.run(kernel, { x: tensor, range, counts });
    device.run(kernel, { x: tensor, range, counts });
    const expected = Array<number>(16).fill(0);
    for (const value of x) {
      const bin = Math.floor((value - low) / (high - low) * bins);
      expected[Math.min(bins - 1, Math.max(0, bin))]! += 2;
    }
    assert.deepEqual([...await device.readUint32(counts)], expected);
    for (const used of [tensor, range, counts]) device.release(used);
  });
}

forEachTarget("histogram() of |x| starts at 0; an empty range counts in bin 0", async (device) => {
  const x = device.fromArray([2, 3], [-3.9, 0.1, 0.9, 2.1, -2.9, 3.5]);
  const range = device.fromArray([4], [-4, 3.5, 1, 0]), none = device.tensor([4]);
  const counts = device.uint32(new Uint32Array(4)), zero = device.uint32(new Uint32Array(4));
  const spec = { rows: 2, channels: 3, bins: 4, absolute: true };
  device.run(histogram(spec, device.target), { x, range, counts });
  device.run(histogram(spec, device.target), { x, range: none, counts: zero });
  assert.deepEqual([...await device.readUint32(counts)], [2, 0, 2, 2]);
  assert.deepEqual([...await device.readUint32(zero)], [6, 0, 0, 0]);
  for (const used of [x, range, none, counts, zero]) device.release(used);
});
