import assert from "node:assert/strict";
import { RowSet } from "../../src/distill/frontier.ts";
import { advance, fittingBatch, partBetween, teacherValues } from "../../src/distill/inference.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";
import { evaluate, fromArray } from "../graph/_evaluate.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const NETWORK = prepareNetwork(
  makeGraph(["N", 3, 4, 4], [
    node("Conv", "x w b", "c", { pads: [1, 1, 1, 1] }),
    node("Relu", "c", "r"),
    node("Conv", "r v", "d"),
    node("Add", "d r", "e"),
    node("GlobalAveragePool", "e", "f"),
    node("Flatten", "f", "g"),
    node("Gemm", "g u", "y", { transB: 1 }),
  ], { w: [5, 3, 3, 3], b: [5], v: [5, 5, 1, 1], u: [3, 5] }),
  { weightBits: 4, activationBits: 4, firstLastBits: 8 },
  false,
);

Deno.test("advance() runs parts over all rows, the last batch smaller", async () => {
  const device = await testDevice();
  const start = device.liveBytes;
  const { teacher } = NETWORK;
  const rows = 7, data = Float32Array.from(randomArray(1, rows * 48));
  // sample by sample, since a Reshape's attribute holds the batch of one
  const host = (name: string) =>
    Array.from({ length: rows }, (_, row) => {
      const sample = data.slice(row * 48, (row + 1) * 48);
      const x = fromArray({ dtype: "float32", shape: [1, 4, 4, 3], data: sample });
      return [...evaluate(teacher.graph, x, "last").get(name)!.data];
    }).flat();
  {
    using values = teacherValues(device, NETWORK);
    using x = new RowSet(device, rows, [4, 4, 3], "x");
    x.upload(0, data);
    const first = await advance(
      device,
      partBetween(teacher, ["x"], ["r"]),
      values,
      new Map([["x", x]]),
      { batch: 3 },
    );
    const next = partBetween(teacher, ["r"], ["e", "y"]);
    const second = await advance(device, next, values, first, { batch: 4 });
    for (const [name, set] of [...first, ...second]) {
      const all = device.tensor([rows, ...set.rowShape]);
      set.copyOut(0, rows, all);
      const expected = host(name);
      // float32 sums of up to 27 products
      assertClose(await device.read(all), expected, { rtol: 1e-5, atol: 1e-5 }, name);
      device.release(all);
      set[Symbol.dispose]();
    }
    await assert.rejects(
      () => advance(device, next, values, new Map(), { batch: 4 }),
      { name: "TypeError", message: 'The frontier lacks "r"' },
    );
  }
  assert.equal(device.liveBytes, start);
});

Deno.test("advance() stores as float32 what float16 cannot hold", async () => {
  const device = await testDevice();
  const { teacher } = NETWORK;
  const start = device.liveBytes;
  {
    using values = teacherValues(device, NETWORK);
    for (const [size, halves] of [[1, true], [1e5, false]] as const) {
      using x = new RowSet(device, 5, [4, 4, 3], "x");
      x.upload(0, Float32Array.from(randomArray(2, 5 * 48, { scale: size })));
      const from = new Map([["x", x]]);
      const part = partBetween(teacher, ["x"], ["r"]);
      const [exact, stored] = [
        await advance(device, part, values, from, { batch: 3 }),
        await advance(device, part, values, from, { batch: 3, storage: () => "float16" }),
      ].map((frontier) => frontier.get("r")!);
      assert.equal(stored!.rowBytes, exact!.rowBytes / (halves ? 2 : 1));
      const [a, b] = [device.tensor([5, 4, 4, 5]), device.tensor([5, 4, 4, 5])];
      exact!.copyOut(0, 5, a);
      stored!.copyOut(0, 5, b);
      const rtol = halves ? 2 ** -10 : 0;
      assertClose(await device.read(b), await device.read(a), { rtol, atol: 2 ** -14 }, `${size}`);
      for (const set of [exact!, stored!]) set[Symbol.dispose]();
      for (const tensor of [a, b]) device.release(tensor);
    }
  }
  assert.equal(device.liveBytes, start);
});

Deno.test("fittingBatch() stays within the budget", async () => {
  const device = await testDevice();
  const { teacher } = NETWORK;
  assert.equal(fittingBatch(device, teacher, 64), 64);
  assert.equal(fittingBatch(device, teacher, 64, 1), 1);
  const some = fittingBatch(device, teacher, 64, 20000);
  assert(some > 1 && some < 64, `${some}`);
});
