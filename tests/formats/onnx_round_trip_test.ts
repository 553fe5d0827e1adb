// Import, export and ONNX Runtime: the exported file computes the very same numbers as the original.
import assert from "node:assert/strict";
import { Rng } from "../../src/core/rng.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { sharedData, sharedDataMissing } from "../_shared_data.ts";
import { runOrt } from "./_ort.ts";

const NETWORKS = {
  "cifar10/resnet20.onnx": [3, 32, 32],
  "cifar10/resnet8_mlperftiny.onnx": [3, 32, 32],
  "imagenet/squeezenet1.1.onnx": [3, 224, 224],
  "mnist/lenet.onnx": [1, 28, 28],
  "kws/dscnn_kws_mlperftiny.onnx": [1, 49, 10],
} as const;

for (const [name, size] of Object.entries(NETWORKS)) {
  Deno.test({
    name: `exportOnnx(importOnnx()) leaves ${name} as it is`,
    ignore: sharedDataMissing,
    async fn() {
      const original = Deno.readFileSync(sharedData(name));
      const graph = importOnnx(original, { path: name });
      const exported = exportOnnx(graph);
      assert.deepEqual(importOnnx(exported), graph);
      const shape = [2, ...size];
      const rng = new Rng(7);
      const data = Float32Array.from(
        { length: shape.reduce((a, b) => a * b) },
        () => rng.normal(),
      );
      const x = { shape, data };
      assert.deepEqual(await runOrt(exported, { x }), await runOrt(original, { x }));
    },
  });
}
