// Where the compact activations of all samples lie makes no difference to the student.
import assert from "node:assert/strict";
import type { ImageSet } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import { Rng } from "../../src/core/rng.ts";
import { testDevice } from "../_gpu.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const MODEL = makeGraph(["N", 3, 16, 16], [
  node("Conv", "x u", "a", { pads: [1, 1, 1, 1] }),
  node("Relu", "a", "b"),
  node("Conv", "b v", "c", { pads: [1, 1, 1, 1] }),
  node("Add", "b c", "d"),
  node("Relu", "d", "e"),
  node("GlobalAveragePool", "e", "f"),
  node("Flatten", "f", "g"),
  node("Gemm", "g w", "y", { transB: 1 }),
], { u: [16, 3, 3, 3], v: [16, 16, 3, 3], w: [5, 16] });

const rng = new Rng(1);
const IMAGES: ImageSet = {
  count: 60,
  height: 16,
  width: 16,
  channels: 3,
  layout: "NCHW",
  dtype: "uint8",
  data: Uint8Array.from({ length: 60 * 768 }, () => rng.integer(256)),
};

/** Held out 15; twice 45 to train on, in mini-batches of 8. */
const RECIPE: Partial<Recipe> = {
  samples: 60,
  heldOut: 0.25,
  batchSize: 8,
  steps: 12,
  weightBits: 4,
  activationBits: 4,
  augment: { copies: 2, shift: 1, flip: false },
};

const CASES: readonly Partial<Recipe>[] = [
  { method: "layerwise", inputMode: "mixed" },
  // two bits: the whole network is trained behind the units, too
  { method: "blockwise", activationBits: 2, networkSteps: 12 },
];

for (const changes of CASES) {
  Deno.test(`distill() gives the same from host memory: ${JSON.stringify(changes)}`, async () => {
    // 4 MiB hold the compact rows, but not the float32 ones that CPUs prefer
    const resident = await run({ ...changes, memoryBudget: 4 });
    const streamed = await run({ ...changes, memoryBudget: 1 });
    assert.equal(resident.streamed, false);
    assert.equal(streamed.streamed, true);
    assert(resident.losses.length > 4 && resident.losses.every((loss) => loss > 0));
    assert.deepEqual(streamed.losses, resident.losses);
    assert.deepEqual(streamed.student, resident.student);
    assert.deepEqual(streamed.layers, resident.layers);
  });
}

async function run(changes: Partial<Recipe>): Promise<{
  losses: number[];
  student: unknown;
  layers: unknown;
  streamed: boolean;
}> {
  const device = await testDevice();
  const start = device.liveBytes;
  const losses: number[] = [];
  const { student, report } = await distill(
    MODEL,
    { calibration: IMAGES },
    { ...RECIPE, ...changes },
    { device, onProgress: ({ loss }) => loss !== undefined && losses.push(loss) },
  );
  assert.equal(device.liveBytes, start);
  const { weights, biases, activations } = student;
  const { layers, streamed } = report;
  return { losses, student: { weights, biases, activations }, layers, streamed };
}
