// A network with every way a step can run: on codes, in float32 between codes, and back.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { distill } from "../../src/distill/distill.ts";
import { recordIntegerForward } from "../../src/distill/integer_inference.ts";
import { IntegerNetwork } from "../../src/distill/integer_network.ts";
import { IntegerValues } from "../../src/distill/integer_values.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { forEachTarget, randomArray, testDevice } from "../_gpu.ts";
import { integerForward } from "../_integer_network.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const GRAPH = makeGraph(["N", 3, 8, 8], [
  node("Conv", "x w b", "c", { pads: [1, 1, 1, 1] }),
  node("MaxPool", "c", "d", { kernel_shape: [2, 2], strides: [2, 2] }),
  node("Conv", "d u", "e"),
  node("Conv", "d v", "f", { pads: [1, 1, 1, 1], group: 6 }),
  node("Concat", "e f", "g", { axis: 1 }),
  node("Relu", "g", "h"),
  node("Conv", "h s", "i"),
  node("Add", "i d", "j"),
  node("AveragePool", "j", "k", { kernel_shape: [2, 2], strides: [2, 2] }),
  node("ReduceMean", "k", "l", { axes: [2, 3], keepdims: 0 }),
  node("Gemm", "l t", "y", { transB: 1 }),
], { w: [6, 3, 3, 3], b: [6], u: [5, 6, 1, 1], v: [6, 1, 3, 3], s: [6, 11, 1, 1], t: [3, 6] });
const BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };
const IMAGES = ndArray("float32", [8, 3, 8, 8], Float32Array.from(randomArray(1, 8 * 192)));

async function madeStudent() {
  const recipe = { method: "ptq", heldOut: 0, samples: 8, ...BITS } as const;
  const data = { calibration: IMAGES };
  const { student } = await distill(GRAPH, data, recipe, { device: await testDevice() });
  return student;
}

forEachTarget(
  "IntegerNetwork gives the integer reference's outputs on every kind of step",
  async (device) => {
    const student = await madeStudent();
    using network = new IntegerNetwork(device, student);
    const found = await network.predict(IMAGES);
    const expected = integerForward(student, IMAGES).get("y")!.data;
    assert.deepEqual([...found], [...expected]);
    assert.equal(new Set(found).size, 24);
  },
);

Deno.test("recordIntegerForward() runs layers and averages on codes, the rest in float32", async () => {
  const device = await testDevice();
  const student = await madeStudent();
  const network = prepareNetwork(student.graph, BITS, false);
  using values = new IntegerValues(device, student, network);
  using plan = new Plan(device);
  recordIntegerForward(plan, network, values, plan.tensor([2, 8, 8, 3], "x"));
  const kinds = plan.commands.map(({ label }) => label.split(" ")[0]);
  const count = (kind: string) => kinds.filter((name) => name === kind).length;
  assert.equal(count("integer_conv2d"), 4);
  assert.equal(count("integer_depthwise_conv2d"), 3);
  assert.equal(kinds.some((name) => /^(conv2d|depthwise|gemm)/.test(name!)), false);
});

Deno.test("recordIntegerForward() computes in float32 what has no integers", async () => {
  const device = await testDevice();
  const student = await madeStudent();
  const network = prepareNetwork(student.graph, BITS, false);
  const run = async (changed: typeof student) => {
    using values = new IntegerValues(device, changed, network);
    using plan = new Plan(device);
    const x = plan.tensor([1, 8, 8, 3], "x");
    device.upload(x, randomArray(2, 192));
    const y = recordIntegerForward(plan, network, values, x);
    plan.replay();
    const found = await device.read(y);
    return {
      found,
      float: plan.commands.filter(({ label }) => /^(conv2d|gemm)/.test(label)).length,
    };
  };
  const whole = await run(student);
  const without = await run({ ...student, weights: new Map() });
  assert.equal(whole.float, 0);
  assert.equal(without.float, 4);
  // The same numbers, summed in float32.
  whole.found.forEach((value, i) => assert.ok(Math.abs(value - without.found[i]!) < 0.05));
});

Deno.test("IntegerNetwork names the operator it does not know", async () => {
  const device = await testDevice();
  const student = await madeStudent();
  const nodes = student.graph.nodes.map((one) =>
    one.opType === "Relu" ? { ...one, opType: "Mish" } : one
  );
  const changed = { ...student, graph: { ...student.graph, nodes } };
  await assert.rejects(async () => {
    using network = new IntegerNetwork(device, changed);
    return await network.predict(IMAGES);
  }, /Mish/);
});
