// One recipe, one result: the same seed gives the same bytes, and no method leaves a student worse than its PTQ start.
import assert from "node:assert/strict";
import { distill, type DistillData } from "../../src/distill/distill.ts";
import { METHODS } from "../../src/distill/methods/methods.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import type { Report } from "../../src/distill/report.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { testDevice } from "../_gpu.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { type NetworkName, realNetwork } from "./_networks.ts";

/** A few steps on 48 inputs; 16 are held out. */
const SHORT: Partial<Recipe> = {
  samples: 64,
  heldOut: 0.25,
  batchSize: 16,
  steps: 8,
  networkSteps: 8,
  weightBits: 4,
  activationBits: 4,
  augment: { copies: 2, shift: 1, flip: false },
};

interface Run {
  readonly student: QuantizedGraph;
  readonly bytes: Uint8Array;
  readonly report: Omit<Report, "seconds">;
}

async function run(name: NetworkName, changes: Partial<Recipe>): Promise<Run> {
  const { graph, images, labels, preprocessing } = realNetwork(name, 64);
  const device = await testDevice();
  const data: DistillData = {
    calibration: images,
    calibrationLabels: labels,
    evaluation: images,
    evaluationLabels: labels,
  };
  const recipe = { ...preprocessing, ...SHORT, ...changes };
  const { student, report } = await distill(graph, data, recipe, { device });
  const { seconds: _, ...rest } = report;
  return { student, bytes: exportOnnx(student), report: rest };
}

function realTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ignore: sharedDataMissing, fn });
}

for (const method of Object.keys(METHODS) as Recipe["method"][]) {
  for (const name of ["dscnn", "lenet"] as const) {
    realTest(
      `distill() ${method} on ${name}: finite, and the same bytes for the same seed`,
      async () => {
        const first = await run(name, { method });
        for (const { mseBefore, mseAfter, cosine, name: layer } of first.report.layers) {
          assert.ok([mseBefore, mseAfter, cosine].every(Number.isFinite), layer);
          assert.ok(mseBefore > 0, layer);
        }
        assert.ok(first.report.layers.length > 3);
        for (const { scale } of [...first.student.weights.values()]) {
          assert.ok(scale.every((step) => step > 0 && Number.isFinite(step)));
        }
        const again = await run(name, { method });
        assert.deepEqual(again.report, first.report);
        assert.deepEqual(again.bytes, first.bytes);
      },
    );
  }
}

realTest("distill() with another seed gives another student", async () => {
  const first = await run("dscnn", { seed: 0 });
  const other = await run("dscnn", { seed: 1 });
  assert.notDeepEqual(other.bytes, first.bytes);
});

realTest("distill() trains: its student is not the PTQ student", async () => {
  const start = await run("dscnn", { method: "ptq" });
  const blockwise = await run("dscnn", { steps: 100 });
  assert.notDeepEqual(blockwise.bytes, start.bytes);
  assert.ok(blockwise.report.layers.some(({ rolledBack }) => !rolledBack));
  const error = ({ report }: Run) => report.layers.at(-1)!.mseAfter;
  // Of the logits; on 48 images that takes more than a few steps.
  assert.ok(error(blockwise) < error(start), `${error(blockwise)} and ${error(start)}`);
});

for (const method of ["layerwise", "blockwise"] as const) {
  realTest(`distill() ${method} rolls a ruined student back to its PTQ start`, async () => {
    const start = await run("dscnn", { method: "ptq" });
    const ruined = await run("dscnn", { method, learningRate: 50 });
    assert.ok(ruined.report.layers.every(({ rolledBack }) => rolledBack));
    assert.deepEqual(ruined.bytes, start.bytes);
  });
}
