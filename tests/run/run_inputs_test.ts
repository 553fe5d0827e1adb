import assert from "node:assert/strict";
import { join } from "node:path";
import { ndArray } from "../../src/core/nd_array.ts";
import { parseRecipe } from "../../src/distill/recipe.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { readRunInputs } from "../../src/run/run_inputs.ts";
import { LSTM_GOLDENS, LSTM_INPUT } from "../formats/_lstm_goldens.ts";

Deno.test("readRunInputs() reads sequences, and labels of steps where steps are classified", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const file = (name: string) => join(folder, name);
    const labels = (name: string, ...shape: number[]) =>
      Deno.writeFile(
        file(name),
        encodeNpy(ndArray("uint8", shape, new Uint8Array(shape.reduce((a, b) => a * b)).fill(2))),
      );
    const { x } = LSTM_GOLDENS[0]!;
    await Deno.writeFile(file("x.npy"), encodeNpy(ndArray("float32", LSTM_INPUT, x)));
    await labels("inputs.npy", 3);
    await labels("steps.npy", 3, 5);
    for (const { name, graph, y } of LSTM_GOLDENS) {
      await Deno.writeFile(file("model.onnx"), exportOnnx(graph));
      const read = async (labels: string) => {
        const recipe = parseRecipe({
          model: file("model.onnx"),
          calibration: file("x.npy"),
          evaluate: file("x.npy"),
          labels: file(labels),
        });
        const { data } = await readRunInputs(recipe);
        assert.deepEqual([data.calibration.count, data.calibration.channels], [3, 3]);
        return data.evaluationLabels!.length;
      };
      const classifiesSteps = y.length === 3 * 5 * 4;
      const [right, wrong] = classifiesSteps
        ? ["steps.npy", "inputs.npy"]
        : ["inputs.npy", "steps.npy"];
      assert.equal(await read(right), classifiesSteps ? 15 : 3, name);
      const expected = classifiesSteps ? /expected \[3, 5\]/ : /expected \[3\]/;
      await assert.rejects(read(wrong), expected, name);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
