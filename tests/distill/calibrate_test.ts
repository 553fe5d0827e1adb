import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { calibrate } from "../../src/distill/calibrate.ts";
import { RowSet } from "../../src/distill/frontier.ts";
import { teacherValues } from "../../src/distill/inference.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { testDevice } from "../_gpu.ts";

/** Two 1x1 convolutions with a Relu between: the identity on channel 0, minus it on channel 1. */
const GRAPH: Graph = {
  name: "two",
  opset: 13,
  inputs: [{ name: "x", dtype: "float32", shape: ["N", 1, 2, 2] }],
  outputs: [{ name: "y", dtype: "float32", shape: ["N", 1, 2, 2] }],
  nodes: [
    { name: "a", opType: "Conv", inputs: ["x", "wa"], outputs: ["z"], attributes: {} },
    { name: "r", opType: "Relu", inputs: ["z"], outputs: ["u"], attributes: {} },
    { name: "b", opType: "Conv", inputs: ["u", "wb"], outputs: ["y"], attributes: {} },
  ],
  initializers: new Map([
    ["wa", ndArray("float32", [2, 1, 1, 1], Float32Array.of(1, -1))],
    ["wb", ndArray("float32", [1, 2, 1, 1], Float32Array.of(1, 1))],
  ]),
};

async function states(observer: "minmax" | "mse" | "percentile" | "movingAverage") {
  const device = await testDevice();
  const bits = { weightBits: 4, activationBits: 4, firstLastBits: 8 };
  const network = prepareNetwork(GRAPH, bits, true);
  using values = teacherValues(device, network);
  using images = new RowSet(device, 12, [2, 2, 1], "images");
  const rng = new Rng(5);
  const data = Float32Array.from({ length: 48 }, () => Math.fround(rng.normal()));
  images.upload(0, data);
  const options = { batch: 4, samples: 12, observer };
  return { data, found: await calibrate(device, network, values, images, options) };
}

Deno.test("calibrate() covers the range of the data with min-max", async () => {
  const { data, found } = await states("minmax");
  const [input, hidden] = found;
  const lowest = Math.min(...data), highest = Math.max(...data);
  assert.equal(input?.tensor, "x");
  assert.equal(input?.learned, false);
  const { scale, zeroPoint, quantMin, quantMax } = input!;
  assert.ok((quantMin - zeroPoint - 0.5) * scale <= lowest, "the lowest input is clipped");
  assert.ok((quantMax - zeroPoint + 0.5) * scale >= highest, "the highest input is clipped");
  // Behind the Relu are |x| of one sign each: unsigned, zero point 0, the largest magnitude on the last code.
  assert.deepEqual([hidden?.tensor, hidden?.zeroPoint, hidden?.quantMin], ["u", 0, 0]);
  const largest = Math.max(-lowest, highest);
  assert.ok(Math.abs(hidden!.scale * hidden!.quantMax - largest) < 1e-5 * largest);
});

Deno.test("calibrate() clips with every other observer no wider than min-max", async () => {
  const widest = (await states("minmax")).found[1]!;
  for (const observer of ["mse", "percentile", "movingAverage"] as const) {
    const { found } = await states(observer);
    const { scale } = found[1]!;
    assert.ok(scale > 0 && scale <= widest.scale * (1 + 1e-6), `${observer} gives ${scale}`);
  }
});
