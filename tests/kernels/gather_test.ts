import assert from "node:assert/strict";
import { gatherBatch, gatherWords, rememberRowLoss } from "../../kernels/gather.ts";
import { forEachTarget, randomArray, testDevice } from "../_gpu.ts";

const CHANNELS = 5, ROW = [3, CHANNELS], CHUNKS = [[0, 4], [4, 4], [8, 3]] as const;
const BATCH = 6;
/** Two mini-batches over three chunks, with a row twice and the first and the last row of each chunk. */
const INDICES = Uint32Array.of(0, 3, 4, 7, 8, 10, 5, 5, 0, 10, 9, 2);

forEachTarget("gatherBatch() collects rows from several chunks", async (device) => {
  const set = randomArray(1, 11 * 3 * CHANNELS);
  const size = 3 * CHANNELS;
  const chunks = CHUNKS.map(([first, rows]) =>
    device.fromArray([rows, ...ROW], set.subarray(first * size, (first + rows) * size))
  );
  const indices = device.uint32(INDICES);
  for (const [step, table] of [[0, 0], [1, 1], [4, 0], [7, 1]] as const) {
    const y = device.fromArray([BATCH, ...ROW], new Float32Array(BATCH * size).fill(NaN));
    const state = device.fromArray([16], [step, ...Array(15).fill(0)]);
    chunks.forEach((x, i) => {
      const [firstRow, rows] = CHUNKS[i]!;
      const place = device.uint32(Uint32Array.of(firstRow, rows));
      const kernel = gatherBatch({ batch: BATCH, rowSize: 6, steps: 2, format: "float32" });
      device.run(kernel, { x, place, indices, state, y });
      device.release(place);
    });
    const rows = [...INDICES.subarray(table * BATCH, (table + 1) * BATCH)];
    const expected = rows.flatMap((row) => [...set.subarray(row * size, (row + 1) * size)]);
    assert.deepEqual([...await device.read(y)], expected, `step ${step}`);
    device.release(y);
    device.release(state);
  }
  for (const tensor of [...chunks, indices]) device.release(tensor);
});

Deno.test("gatherBatch() leaves rows of other chunks as they are", async () => {
  const device = await testDevice();
  const x = device.fromArray([2, 4], [1, 2, 3, 4, 5, 6, 7, 8]);
  const indices = device.uint32(Uint32Array.of(3, 4, 1, 2));
  const state = device.tensor([16]);
  const y = device.fromArray([4, 4], new Float32Array(16).fill(-1));
  const place = device.uint32(Uint32Array.of(2, 2));
  const kernel = gatherBatch({ batch: 4, rowSize: 1, steps: 1, format: "float32" });
  device.run(kernel, { x, place, indices, state, y });
  assert.deepEqual([...await device.read(y)], [
    5,
    6,
    7,
    8,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    1,
    2,
    3,
    4,
  ]);
});

forEachTarget("gatherWords() takes the words of the step", async (device) => {
  const words = device.uint32(Uint32Array.of(5, 0xffffffff, 7, 1, 2, 3));
  const y = device.uint32(new Uint32Array(3));
  for (
    const [step, expected] of [[0, [5, 0xffffffff, 7]], [1, [1, 2, 3]], [4, [
      5,
      0xffffffff,
      7,
    ]]] as const
  ) {
    const state = device.fromArray([16], [step, ...Array(15).fill(0)]);
    device.run(gatherWords({ batch: 3, steps: 2 }), { words, state, y });
    assert.deepEqual([...(await device.readUint32(y)).subarray(0, 3)], expected, `step ${step}`);
    device.release(state);
  }
  device.release(words);
  device.release(y);
});

forEachTarget("rememberRowLoss() stores the mean at the step's term", async (device) => {
  const loss = device.fromArray([5, 1], [1, 2, 3, 4, 6]);
  const losses = device.tensor([8]);
  for (const step of [0, 5]) {
    const state = device.fromArray([16], [step, ...Array(15).fill(0)]);
    const spec = { rows: 5, historySize: 4, terms: 2, term: 1 };
    device.run(rememberRowLoss(spec), { loss, state, losses });
    device.release(state);
  }
  // 16 / 5 in float32; step 5 is number 1 of a history of 4
  const mean = Math.fround(3.2);
  assert.deepEqual([...await device.read(losses)], [0, mean, 0, mean, 0, 0, 0, 0]);
  device.release(loss);
  device.release(losses);
});
