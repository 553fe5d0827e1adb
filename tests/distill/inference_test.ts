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
    const first = advance(
      device,
      partBetween(teacher, ["x"], ["r"]),
      values,
      new Map([["x", x]]),
      3,
    );
    const second = advance(device, partBetween(teacher, ["r"], ["e", "y"]), values, first, 4);
    for (const [name, set] of [...first, ...second]) {
      const all = device.tensor([rows, ...set.rowShape]);
      set.copyOut(0, rows, all);
      const expected = host(name);
      // float32 sums of up to 27 products
      assertClose(await device.read(all), expected, { rtol: 1e-5, atol: 1e-5 }, name);
      device.release(all);
      set[Symbol.dispose]();
    }
    assert.throws(
      () => advance(device, partBetween(teacher, ["r"], ["y"]), values, new Map(), 4),
      { name: "TypeError", message: 'The frontier lacks "r"' },
    );
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
