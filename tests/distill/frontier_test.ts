import assert from "node:assert/strict";
import { paddedSize } from "../../kernels/kernel.ts";
import { type Residence, RowSet, type RowStorage } from "../../src/distill/frontier.ts";
import { MiniBatches } from "../../src/distill/mini_batches.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";

const ROWS = 11, SHAPE = [2, 3], SIZE = 6;

Deno.test("RowSet moves rows across chunks", async () => {
  const device = await testDevice();
  const start = device.liveBytes;
  const data = Float32Array.from(randomArray(1, ROWS * SIZE));
  {
    using set = new RowSet(narrow(device, 4), ROWS, SHAPE, "set");
    set.upload(0, data.slice(0, 5 * SIZE));
    set.upload(5, data.slice(5 * SIZE));
    const some = device.tensor([6, ...SHAPE]);
    for (const first of [0, 3, 5]) {
      set.copyOut(first, 6, some);
      const expected = data.slice(first * SIZE, (first + 6) * SIZE);
      assert.deepEqual(await device.read(some), expected, `rows from ${first}`);
    }
    device.upload(some, new Float32Array(6 * SIZE).fill(9));
    await set.copyIn(some, 2, 6);
    const all = device.tensor([ROWS, ...SHAPE]);
    set.copyOut(0, ROWS, all);
    assert.deepEqual(await device.read(all), data.slice().fill(9, 2 * SIZE, 8 * SIZE));
    device.release(some);
    device.release(all);
  }
  assert.equal(device.liveBytes, start);
});

Deno.test("RowSet.recordGather() collects a mini-batch from several chunks", async () => {
  const device = await testDevice();
  const data = Float32Array.from(randomArray(2, ROWS * SIZE));
  using set = new RowSet(narrow(device, 4), ROWS, SHAPE, "set");
  set.upload(0, data);
  using plan = new Plan(device);
  const table = Uint32Array.of(10, 0, 4, 3, 3, 8, 7, 1);
  using batches = new MiniBatches(device, table, 4);
  const state = device.tensor([16]);
  const batch = set.recordGather(plan, batches, state, "batch");
  for (const step of [0, 1, 2]) {
    device.upload(state, Float32Array.from({ length: 16 }, (_, i) => i === 0 ? step : 0));
    plan.replay();
    const rows = [...table.subarray(step % 2 * 4, step % 2 * 4 + 4)];
    const expected = rows.flatMap((row) => [...data.subarray(row * SIZE, (row + 1) * SIZE)]);
    assert.deepEqual([...await device.read(batch)], expected, `step ${step}`);
  }
  device.release(state);
});

/** A grid of 16 levels that rows of `quantized` lie on. */
const GRID = { scale: 0.3, zeroPoint: 5, quantMin: 0, quantMax: 15, bits: 4 };
const STORAGES: readonly (readonly [string, RowStorage])[] = [
  ["float32", "float32"],
  ["float16", "float16"],
  ["codes", GRID],
];

for (const [name, storage] of STORAGES) {
  for (const residence of ["gpu", "host"] as const) {
    Deno.test(`RowSet keeps ${name} in ${residence} memory`, async () => {
      const device = await testDevice();
      const start = device.liveBytes;
      const data = quantized(3);
      {
        // two rows of float32 a chunk, four of float16, eight of codes
        using set = new RowSet(narrow(device, 2), ROWS, SHAPE, "set", { storage, residence });
        const part = device.tensor([5, ...SHAPE]);
        for (const first of [0, 5, 10]) {
          const count = Math.min(5, ROWS - first);
          const rows = new Float32Array(5 * SIZE).fill(100); // further rows must not matter
          rows.set(data.subarray(first * SIZE, (first + count) * SIZE));
          device.upload(part, rows);
          await set.copyIn(part, first, count);
        }
        assert(await set.isAccurate());
        const rtol = name === "float16" ? 2 ** -10 : 0;
        for (const [first, count] of [[0, 5], [7, 4], [9, 1]] as const) {
          set.copyOut(first, count, part);
          const last = first + count - 1;
          const rows = [0, 1, 2, 3, 4].map((i) => Math.min(first + i, last));
          const expected = rows.flatMap((row) => [...rowOf(data, row)]);
          assertClose(await device.read(part), expected, { rtol, atol: 0 }, `from ${first}`);
        }
        device.release(part);
      }
      assert.equal(device.liveBytes, start);
    });
  }

  Deno.test(`RowSet.recordGather() of ${name}: host memory gives what the GPU gives`, async () => {
    const device = await testDevice();
    const start = device.liveBytes;
    const table = Uint32Array.of(10, 0, 4, 3, 3, 8, 7, 1, 2, 2, 9, 6);
    const [resident, streamed] = [await gathered("gpu"), await gathered("host")];
    assert.deepEqual(streamed, resident);
    assert.equal(new Set(resident!.map((rows) => rows.join())).size, 3);
    assert.equal(device.liveBytes, start);

    async function gathered(residence: Residence): Promise<Float32Array[]> {
      using set = new RowSet(narrow(device, 4), ROWS, SHAPE, "set", { storage, residence });
      const all = device.fromArray([ROWS, ...SHAPE], quantized(4));
      await set.copyIn(all, 0, ROWS);
      using plan = new Plan(device);
      using batches = new MiniBatches(device, table, 4);
      const state = device.tensor([16]);
      const y = set.recordGather(plan, batches, state, "batch");
      // three batches without a look in between: uploads and steps keep their order
      const seen = [0, 1, 2].map(() => device.tensor([4, ...SHAPE]));
      for (const [step, copy] of seen.entries()) {
        device.upload(state, Float32Array.from({ length: 16 }, () => step));
        plan.replay();
        device.copy(y, copy);
      }
      const rows: Float32Array[] = [];
      for (const copy of seen) rows.push(await device.read(copy));
      for (const tensor of [all, state, ...seen]) device.release(tensor);
      return rows;
    }
  });
}

Deno.test("RowSet.isAccurate() is false for what float16 cannot hold", async () => {
  const device = await testDevice();
  for (
    const [value, storage, expected] of [
      [70000, "float16", false],
      [-50000, "float16", true],
      [1e-3, "float16", false],
      [70000, "float32", true],
    ] as const
  ) {
    using set = new RowSet(device, 2, [3], "set", { storage });
    const rows = device.fromArray([2, 3], [0, 0, 0, 0, value, 0]);
    await set.copyIn(rows, 0, 2);
    assert.equal(await set.isAccurate(), expected, `${value} as ${storage}`);
    device.release(rows);
  }
});

Deno.test("RowSet refuses a quantizer of more than 256 levels", async () => {
  const device = await testDevice();
  const storage = { ...GRID, quantMax: 256 };
  assert.throws(() => new RowSet(device, 2, [3], "conv1", { storage }), {
    name: "RangeError",
    message: 'Cannot store "conv1" as codes: its quantizer has 257 levels, expected at most 256',
  });
});

/** Rows of values on the grid. */
function quantized(seed: number): Float32Array<ArrayBuffer> {
  const { scale, zeroPoint, quantMin, quantMax } = GRID;
  return Float32Array.from(randomArray(seed, ROWS * SIZE), (v) => {
    const code = Math.min(Math.max(Math.round(v / scale) + zeroPoint, quantMin), quantMax);
    return Math.fround((code - zeroPoint) * Math.fround(scale));
  });
}

function rowOf(data: Float32Array, row: number): Float32Array {
  return data.subarray(row * SIZE, (row + 1) * SIZE);
}

Deno.test("RowSet.recordGather() copies long float32 rows from several chunks", async () => {
  const device = await testDevice();
  const shape = [32, 32, 4], size = 32 * 32 * 4; // long enough to be copied instead of gathered by a kernel
  const data = Float32Array.from(randomArray(2, ROWS * size));
  using set = new RowSet(narrow(device, 4, paddedSize([1, ...shape]) * 4), ROWS, shape, "set");
  set.upload(0, data);
  using plan = new Plan(device);
  using batches = new MiniBatches(device, Uint32Array.of(10, 0, 4, 3, 3, 8, 7, 1), 4);
  const state = device.tensor([16]);
  const batch = set.recordGather(plan, batches, state, "batch");
  for (const step of [0, 1, 2]) {
    plan.replay();
    const expected = Array.from(batches.rowsOf(step)).flatMap((row) => [
      ...data.subarray(row * size, (row + 1) * size),
    ]);
    assert.deepEqual([...await device.read(batch)], expected, `step ${step}`);
  }
  device.release(state);
});

/** The device, as if it could bind `rows` rows of float32 at most. */
function narrow(device: Device, rows: number, rowBytes = 32): Device {
  return new Proxy(device, {
    get(target, name) {
      if (name === "maxTensorBytes") return rows * rowBytes;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
