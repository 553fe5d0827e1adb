// The raised graph and the original give the same numbers in ONNX Runtime, which reads both opsets.
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { upgradeOpset } from "../../src/formats/opset_upgrade.ts";
import type { Graph, Node } from "../../src/graph/graph.ts";
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

for (const [opset, opType, attributes] of CASES) {
  Deno.test(`upgradeOpset() keeps ${opType}-${opset} ${JSON.stringify(attributes)}`, async () => {
    const original = graphOf(opset, { opType, attributes });
    const raised = upgradeOpset(original, 13);
    assert.equal(raised.opset, 13);
    const data = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i * 1.7) * 2);
    const x = { shape: [2, 1, 3, 4], data };
    assert.deepEqual(
      await runOrt(exportOnnx(raised), { x }),
      await runOrt(exportOnnx(original), { x }),
    );
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
