// The raised graph and the original give the same numbers in ONNX Runtime, which reads both opsets.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { upgradeOpset } from "../../src/formats/opset_upgrade.ts";
import type { Graph, Node } from "../../src/graph/graph.ts";
import { assertClose } from "../_gpu.ts";
import { runOrt } from "./_ort.ts";

const CASES: readonly [opset: number, opType: string, attributes: Node["attributes"]][] = [
  [7, "Relu", {}],
  [7, "Clip", { min: -0.5, max: 1 }],
  [10, "Clip", { max: 0.25 }],
  [10, "Pad", { pads: [0, 1, 0, 0, 0, 0, 2, 0], value: 3, mode: "constant" }],
  [9, "Slice", { starts: [1], ends: [Number.MAX_SAFE_INTEGER], axes: [2] }],
  [9, "Slice", { starts: [0, 1], ends: [2, 3] }],
  [12, "Squeeze", { axes: [1] }],
  [12, "Squeeze", {}],
  [12, "Unsqueeze", { axes: [0, 2] }],
  [12, "ReduceSum", { axes: [2], keepdims: 0 }],
  [12, "Split", { axis: 2, split: [1, 2] }],
  [12, "Softmax", {}],
  [12, "Softmax", { axis: 2 }],
  [11, "Softmax", { axis: -1 }],
  [12, "LogSoftmax", { axis: 0 }],
  [10, "Dropout", { ratio: 0.25 }],
  [12, "Dropout", {}],
];

/** Raised to 21; those above are, too. */
const LATER_CASES: typeof CASES = [
  [13, "ReduceMean", { axes: [2, 3] }],
  [13, "ReduceMean", { keepdims: 0 }],
  [17, "ReduceMax", { axes: [1] }],
  [13, "Split", { axis: 3 }],
  [13, "AveragePool", { kernel_shape: [2, 3], ceil_mode: 1, strides: [2, 2] }],
  [14, "HardSwish", {}],
  [20, "Gelu", {}],
];

const RAISED = [
  ...CASES.map((entry) => [13, ...entry] as const),
  ...[...CASES, ...LATER_CASES].map((entry) => [21, ...entry] as const),
];

for (const [to, opset, opType, attributes] of RAISED) {
  const change = `${opType}-${opset} ${JSON.stringify(attributes)}`;
  Deno.test(`upgradeOpset() to ${to} keeps ${change}`, async () => {
    const original = graphOf(opset, { opType, attributes });
    const raised = upgradeOpset(original, to);
    assert.equal(raised.opset, to);
    const data = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i * 1.7) * 2);
    const x = { shape: [2, 1, 3, 4], data };
    const found = await runOrt(exportOnnx(raised), { x });
    const expected = await runOrt(exportOnnx(original), { x });
    assert.deepEqual(Object.keys(found), Object.keys(expected));
    for (const [name, values] of Object.entries(expected)) {
      // Newer versions have kernels of their own, which add in another order.
      assertClose(found[name]!, values, { rtol: 1e-6, atol: 1e-7 }, name);
    }
  });
}

Deno.test("upgradeOpset() drops `spatial` of BatchNormalization and refuses what it cannot raise", () => {
  const norm = (spatial: number) =>
    graphOf(7, { opType: "BatchNormalization", attributes: { spatial } });
  assert.deepEqual(upgradeOpset(norm(1), 13).nodes[0]?.attributes, {});
  assert.throws(() => upgradeOpset(norm(0), 13), /spatial is 0/);
  assert.throws(
    () => upgradeOpset(graphOf(9, { opType: "Upsample", attributes: {} }), 13),
    /node "node" \(Upsample\): cannot be raised from opset 9 to 13/,
  );
});

Deno.test("upgradeOpset() leaves newer graphs alone", () => {
  const graph = graphOf(17, { opType: "Anything", attributes: {} });
  assert.equal(upgradeOpset(graph, 13), graph);
  assert.throws(
    () => upgradeOpset(graph, 21),
    /node "node" \(Anything\): cannot be raised from opset 17 to 21, convert the model to opset 21/,
  );
  assert.equal(upgradeOpset({ ...graph, opset: 22 }, 21).opset, 22);
});

function graphOf(opset: number, node: Pick<Node, "opType" | "attributes">): Graph {
  const outputs = node.opType === "Split" ? ["y", "z"] : ["y"];
  return {
    name: "net",
    opset,
    inputs: [{ name: "x", dtype: "float32", shape: [2, 1, 3, 4] }],
    outputs: outputs.map((name) => ({ name, dtype: "float32", shape: [] })),
    nodes: [{ name: "node", inputs: ["x"], outputs, ...node }],
    initializers: new Map([["unused", ndArray("float32", [], Float32Array.of(1))]]),
  };
}
