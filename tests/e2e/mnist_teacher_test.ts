import assert from "node:assert/strict";
import { floatAccuracy } from "../../src/distill/pretrain.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { readInputs, readJson, readLabels } from "../../src/run/input_files.ts";
import { mnistExample } from "../../src/run/mnist_example.ts";
import { parseRecipe } from "../../src/distill/recipe.ts";
import { testDevice } from "../_gpu.ts";

Deno.test("the built-in example's teacher is right on at least 99.2 % of MNIST's test images", async () => {
  const { model, recipe, evaluate, labels } = mnistExample();
  const network = importOnnx(await Deno.readFile(model));
  const images = await readInputs(evaluate, { channels: 1, height: 28, width: 28 });
  const data = {
    images,
    labels: await readLabels(labels, { count: images.count, classes: 10 }),
  };
  const normalization = parseRecipe(await readJson(recipe));
  const accuracy = await floatAccuracy(await testDevice(), network, data, normalization);
  assert.equal(images.count, 10000);
  assert.ok(accuracy >= 0.992, `${accuracy}`);
});
