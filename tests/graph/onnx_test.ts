// Simplified and folded networks are valid ONNX: onnxruntime gives the same logits for them as for the original file.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { foldBatchNorm } from "../../src/graph/fold_batch_norm.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { sharedData, sharedDataMissing } from "../_shared_data.ts";
import { assertSame, network, NETWORKS, randomValues } from "./_networks.ts";

async function logits(model: Uint8Array, shape: readonly number[]): Promise<Float64Array> {
  const session = await InferenceSession.create(model, { intraOpNumThreads: 1 });
  const x = Float32Array.from(randomValues(17, shape).data);
  const { logits } = await session.run({ x: new Tensor("float32", x, [...shape]) });
  const result = Float64Array.from(logits!.data as Float32Array);
  await session.release();
  return result;
}

for (const name of Object.keys(NETWORKS) as (keyof typeof NETWORKS)[]) {
  Deno.test({
    name: `simplify() and foldBatchNorm() of ${name} run in onnxruntime with the same result`,
    ignore: sharedDataMissing,
    async fn() {
      const { path, image } = NETWORKS[name];
      const shape = [2, ...image];
      const expected = await logits(Deno.readFileSync(sharedData(path)), shape);
      const actual = await logits(exportOnnx(foldBatchNorm(simplify(network(name)))), shape);
      // float32 sums of up to 4608 products in another order, through up to 26 layers.
      assertSame({ shape, data: actual }, { shape, data: expected }, 2e-5);
    },
  });
}
