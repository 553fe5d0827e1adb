// A real LSTM, the character network of the shared data: the quantized students predict as well.
import assert from "node:assert/strict";
import { distill } from "../../src/distill/distill.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { runOrt } from "../formats/_ort.ts";
import { agreement, topClasses } from "../../src/distill/evaluate.ts";
import { testDevice } from "../_gpu.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { charLstm, charSequences } from "./_char_lstm.ts";

const STEPS = 32, CALIBRATION = 64, EVALUATION = 192;

/** Recipes, the least agreement with the teacher, and the largest loss of top-1. */
const STUDENTS: Readonly<Record<string, readonly [Partial<Recipe>, number, number]>> = {
  "ranges at run time": [{ method: "ptq", activationRanges: "dynamic" }, 0.95, 0.005],
  "calibrated ranges": [{ method: "ptq" }, 0.95, 0.005],
  "weights of 4 bits alone": [
    { method: "ptq", weightBits: 4, firstLastBits: 4, activationBits: null },
    0.6,
    0.1,
  ],
  "weights of 4 bits alone, trained": [
    { weightBits: 4, firstLastBits: 4, activationBits: null, steps: 60, networkSteps: 0 },
    0.75,
    0.025,
  ],
};

for (const [name, [recipe, least, most]] of Object.entries(STUDENTS)) {
  Deno.test({
    name: `the character LSTM keeps its accuracy: ${name}`,
    ignore: sharedDataMissing,
    fn: async () => {
      const device = await testDevice();
      const calibration = charSequences("calib", CALIBRATION, STEPS);
      const evaluation = charSequences("eval", EVALUATION, STEPS);
      const graph = charLstm(STEPS);
      const { student, report } = await distill(
        graph,
        {
          calibration: calibration.x,
          evaluation: evaluation.x,
          evaluationLabels: evaluation.labels,
        },
        { ...recipe, heldOut: 0 },
        { device },
      );
      const { top1Teacher, top1Student, agreement: same } = report.network;
      // ONNX Runtime takes ranges at run time from a whole batch, so it runs one input at a time.
      const runtimeTop1 = async (file: Uint8Array) => {
        const size = evaluation.x.data.length / EVALUATION;
        const logits: Float32Array[] = [];
        for (let n = 0; n < EVALUATION; n++) {
          const data = evaluation.x.data.subarray(n * size, (n + 1) * size);
          const inputs = { x: { shape: [1, ...evaluation.x.shape.slice(1)], data } };
          logits.push((await runOrt(file, inputs, "all")).y!);
        }
        const classes = logits.flatMap((one) => [...topClasses(one, STEPS)]);
        return agreement(classes, evaluation.labels);
      };
      const float = await runtimeTop1(exportOnnx(graph));
      assert.ok(Math.abs(top1Teacher! - float) < 1e-3, `${top1Teacher} and ${float}`);
      assert.ok(same! > least, `agreement ${same}`);
      assert.ok(top1Teacher! - top1Student! < most, `${top1Teacher} to ${top1Student}`);
      const found = await runtimeTop1(exportOnnx(student));
      assert.ok(Math.abs(found - top1Student!) < 5e-3, `${found} and ${top1Student}`);
    },
  });
}
