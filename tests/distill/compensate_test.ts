// Compensated rounding in whole students, on inputs whose neighbours are alike, as those of real networks are.
import assert from "node:assert/strict";
import type { ImageSet } from "../../src/data/image_set.ts";
import { convolutionOf } from "../../src/distill/compensate.ts";
import { distill } from "../../src/distill/distill.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { forEachTarget, randomArray, testDevice } from "../_gpu.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { ptqStudent } from "../e2e/_students.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const LINEAR = makeGraph(
  ["N", 16, 1, 1],
  [node("Flatten", "x", "f"), node("Gemm", "f w", "y", { transB: 1 })],
  { w: [3, 16] },
);
const NO_COPIES = { copies: 1, shift: 0, flip: false };

Deno.test("distill() ptq with gptq leaves less error in every layer of a mixed network", async () => {
  // A strided, a depthwise, a grouped and a linear layer, with a skip connection.
  const filter = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };
  const graph = makeGraph(["N", 3, 9, 9], [
    node("Conv", "x wa", "a", { ...filter, strides: [2, 2] }),
    node("Relu", "a", "u"),
    node("Conv", "u wb", "b", { ...filter, group: 6 }),
    node("Relu", "b", "v"),
    node("Conv", "v wc", "c", { ...filter, group: 2 }),
    node("Add", "c u", "s"),
    node("Relu", "s", "t"),
    node("GlobalAveragePool", "t", "p"),
    node("Flatten", "p", "f"),
    node("Gemm", "f wd", "y", { transB: 1 }),
  ], { wa: [6, 3, 3, 3], wb: [6, 1, 3, 3], wc: [6, 3, 3, 3], wd: [5, 6] });
  const errors = await compared(await testDevice(), graph, { samples: 48, heldOut: 0 });
  assert.equal(errors.length, 4);
  for (const { name, nearest, gptq } of errors) {
    assert.ok(gptq < nearest, `${name}: ${gptq} beside ${nearest}`);
  }
});

forEachTarget("distill() with gptq keeps nearest rounding where it is better", async (device) => {
  // H of two training inputs, mostly noise, says little about those held out.
  let kept = 0, better = 0;
  for (let seed = 0; seed < 12; seed++) {
    const recipe = { samples: 4, heldOut: 0.5, seed, firstLastBits: 3 };
    const [layer] = await compared(device, LINEAR, recipe, 4);
    if (layer!.gptq === layer!.nearest) kept++;
    else if (layer!.gptq < layer!.nearest) better++;
  }
  assert.equal(kept + better, 12);
  assert.ok(kept > 0 && better > 0, `kept ${kept} times, better ${better} times`);
});

Deno.test("distill() ptq with gptq sees all inputs, whatever the batch, and does not train", async () => {
  const device = await testDevice();
  const errors: number[] = [];
  for (const changes of [{ batchSize: 48 }, { batchSize: 16 }, { batchSize: 3 }, { steps: 9 }]) {
    const [layer] = await compared(device, LINEAR, { samples: 48, heldOut: 0, ...changes }, 1);
    errors.push(layer!.gptq);
  }
  // The same codes: only the error's own float32 sums differ.
  for (const error of errors) assert.ok(Math.abs(error / errors[0]! - 1) < 1e-5, `${errors}`);
});

Deno.test({
  name: "distill() ptq W3A8 of DS-CNN: gptq halves the error of the logits",
  ignore: sharedDataMissing,
  fn: async () => {
    const error = async (weightRounding: Recipe["weightRounding"]) => {
      const recipe = { weightBits: 3, activationBits: 8, heldOut: 0.5, weightRounding } as const;
      const { report } = await ptqStudent("dscnn", 256, { recipe, calibrated: 256 });
      return report.layers.at(-1)!.mseAfter;
    };
    const nearest = await error("nearest"), gptq = await error("gptq");
    assert.ok(gptq < 0.5 * nearest, `${gptq} beside ${nearest}`);
  },
});

/** Error of each layer's output with both kinds of rounding. */
async function compared(
  device: Device,
  graph: Graph,
  changes: Partial<Recipe>,
  noise = 0.4,
): Promise<{ name: string; nearest: number; gptq: number }[]> {
  const [, channels, height, width] = graph.inputs[0]!.shape as number[];
  const calibration = images(64, [height!, width!, channels!], noise);
  const layers = async (weightRounding: Recipe["weightRounding"]) => {
    const recipe = { method: "ptq", weightBits: 4, firstLastBits: 4, augment: NO_COPIES } as const;
    const complete = { ...recipe, ...changes, weightRounding };
    return (await distill(graph, { calibration }, complete, { device })).report.layers;
  };
  const nearest = await layers("nearest");
  return (await layers("gptq")).map(({ name, mseAfter }, i) => (
    { name, nearest: nearest[i]!.mseAfter, gptq: mseAfter }
  ));
}

/** Images of a level each, and noise. */
function images(
  count: number,
  [height, width, channels]: readonly [number, number, number],
  noise: number,
): ImageSet {
  const size = height * width * channels;
  const level = randomArray(7, count);
  const data = Float32Array.from(
    randomArray(8, count * size, { scale: noise }),
    (value, i) => level[Math.floor(i / size)]! + value,
  );
  return { count, height, width, channels, layout: "NCHW", dtype: "float32", data };
}

Deno.test("convolutionOf() sees every step of a sequence as a pixel", () => {
  const gemm = node("Gemm", "x w", "y", { transB: 1, rank: 3 });
  const shapes = new Map([["x", [2, 5, 3]], ["y", [2, 5, 7]]]);
  const { batch, inHeight, inWidth, inChannels, outHeight, outWidth } = convolutionOf(shapes, gemm);
  assert.deepEqual([batch, inHeight, inWidth, inChannels, outHeight, outWidth], [2, 5, 1, 3, 5, 1]);
  const rows = convolutionOf(new Map([["x", [2, 3]], ["y", [2, 7]]]), gemm);
  assert.deepEqual([rows.batch, rows.inHeight, rows.inChannels], [2, 1, 3]);
});
