import assert from "node:assert/strict";
import { minMaxObserver, rangePerChannel, rangePerRow } from "../../kernels/observer.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";

const SHAPES = [[1, 1], [7, 3], [129, 5], [7, 17], [129, 64]] as const;
const EXACT = { rtol: 0, atol: 0 };

for (const [rows, channels] of SHAPES) {
  // all positive, then all negative: a padded zero would show as minimum, then as maximum
  for (const sign of [1, -1]) {
    const shape = [rows, channels];
    const x = randomArray(1, rows * channels).map((value) => sign * (Math.abs(value) + 0.5));
    const [low, high] = [Math.min(...x), Math.max(...x)];

    forEachTarget(
      `minMaxObserver() [${shape}] sees only real channels, sign ${sign}`,
      async (device) => {
        const range = device.tensor([8]), tensor = device.fromArray(shape, x);
        const spec = { rows, channels, averaging: 0.5 };
        device.run(minMaxObserver(spec, device.target), { x: tensor, range });
        const expected = [low, high, 1, 0, low, high, 0, 0].map(Math.fround);
        assert.deepEqual([...await device.read(range)], expected);
        device.release(range);
        device.release(tensor);
      },
    );

    forEachTarget(`rangePerChannel() [${shape}], sign ${sign}`, async (device) => {
      const kernel = rangePerChannel({ rows, channels }, device.target);
      const { range } = await runKernel(device, kernel, { x: { shape, data: x } }, {
        range: [2, channels],
      });
      const columns = Array.from(
        { length: channels },
        (_, c) => x.filter((_, i) => i % channels === c),
      );
      const expected = [
        ...columns.map((column) => Math.min(...column)),
        ...columns.map((column) => Math.max(...column)),
      ];
      assertClose(range!, expected.map(Math.fround), EXACT, "range");
    });
  }
}

const BATCHES = [[1, 2, 3], [-1, 0.5, 0], [0, 8, 2]];

forEachTarget(
  "minMaxObserver() takes the extremes of all batches, and averages them",
  async (device) => {
    const range = device.tensor([8]), spec = { rows: 1, channels: 3, averaging: 0.25 };
    for (const batch of BATCHES) {
      const x = device.fromArray([1, 3], batch);
      device.run(minMaxObserver(spec, device.target), { x, range });
      device.release(x);
    }
    // minima 1, -1, 0: 1 -> 0.5 -> 0.375; maxima 3, 0.5, 8: 3 -> 2.375 -> 3.78125
    assert.deepEqual([...await device.read(range)], [-1, 8, 3, 0, 0.375, 3.78125, 0, 0]);
    device.release(range);
  },
);

for (const [rows, positions, channels] of [[1, 1, 1], [5, 9, 3], [17, 2, 5]] as const) {
  forEachTarget(`rangePerRow() [${rows}, ${positions}, ${channels}]`, async (device) => {
    const shape = [rows, positions, channels], length = positions * channels;
    const x = randomArray(3, rows * length).map((value) => Math.abs(value) + 0.5);
    const kernel = rangePerRow({ rows, positions, channels }, device.target);
    const { range } = await runKernel(device, kernel, { x: { shape, data: x } }, {
      range: [2, rows],
    });
    const weights = Array.from({ length: rows }, (_, r) => x.slice(r * length, (r + 1) * length));
    const expected = [
      ...weights.map((row) => Math.min(...row)),
      ...weights.map((row) => Math.max(...row)),
    ];
    assertClose(range!, expected.map(Math.fround), EXACT, "range");
  });
}
