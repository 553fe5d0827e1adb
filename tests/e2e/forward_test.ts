// The fp32 forward pass of every network, as stilla runs it (batch norm folded, channels last, fused), beside ONNX
// Runtime on the file as it is.
import assert from "node:assert/strict";
import { predict } from "../../src/distill/evaluate.ts";
import { teacherValues } from "../../src/distill/inference.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import type { Device } from "../../src/gpu/device.ts";
import { testDevice } from "../_gpu.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { type NetworkName, NETWORKS, realNetwork, runtimeLogits } from "./_networks.ts";

const BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };

/** Largest error over the largest |logit|. Logits of 0 exist, so that each one's own size is no measure. */
async function relativeError(name: NetworkName, count: number, device: Device): Promise<number> {
  const real = realNetwork(name, count);
  const network = prepareNetwork(real.graph, BITS, false);
  using teacher = teacherValues(device, network);
  const actual = await predict(device, network, teacher, real.images, real.preprocessing);
  const expected = await runtimeLogits(real.bytes, real);
  assert.equal(actual.length, expected.length);
  const largest = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
  const errors = actual.map((value, i) => Math.abs(value - expected[i]!));
  assert.ok(largest > 1 && errors.every(Number.isFinite));
  return Math.max(...errors) / largest;
}

for (const name of Object.keys(NETWORKS) as NetworkName[]) {
  const families = name === "squeezenet" ? ["software"] as const : ["software", "gpu"] as const;
  for (const family of families) {
    Deno.test({
      name: `predict() equals ONNX Runtime on ${name} [${family}]`,
      ignore: sharedDataMissing,
      fn: async () => {
        const count = name === "squeezenet" ? 3 : 8;
        const error = await relativeError(name, count, await testDevice(family));
        // The project promises 1e-4. Float32 sums in another order differ by 3e-7 to 6e-7 here.
        assert.ok(error <= 1e-5, `relative error ${error}`);
      },
    });
  }
}
