import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { distill } from "../../src/distill/distill.ts";
import { EarlyStop } from "../../src/distill/early_stop.ts";
import { parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import { randomArray, testDevice } from "../_gpu.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

/** Looks at errors one after another; what is kept is which of them was the student. */
async function watched(patience: number, ...errors: number[]) {
  let at = -1, kept = -1;
  const stop = new EarlyStop({
    steps: 100,
    patience,
    measure: () => Promise.resolve(errors[++at]!),
    snapshot: () => {
      const seen = at;
      return () => kept = seen;
    },
  });
  let looks = 0;
  while (looks < errors.length && !await stop.stops(++looks * stop.every));
  return { looks, restored: (last: number) => stop.restoreBest(last) ? kept : "last" };
}

Deno.test("EarlyStop ends a training whose error does not fall, and keeps the best", async () => {
  const falling = await watched(0.3, 9, 8, 7, 6, 5);
  assert.equal(falling.looks, 5);
  assert.equal(falling.restored(4), "last");
  assert.equal(falling.restored(5), "last", "a tie goes to the last");
  // the second look is the best, and three more are as many as may pass
  const rising = await watched(0.3, 9, 5, 6, 7, 5, 4, 3);
  assert.equal(rising.looks, 5);
  assert.equal(rising.restored(5.5), 1);
  assert.equal((await watched(0.2, 9, 5, 6, 4, 6, 6, 3)).looks, 6, "a lower error starts anew");
  const broken = await watched(0.2, NaN, NaN, 3);
  assert.equal(broken.looks, 2, "what is no number is no lower error");
  assert.equal(broken.restored(1), "last");
});

const NETWORK = makeGraph(["N", 3, 6, 6], [
  node("Conv", "x wa", "a", { kernel_shape: [3, 3], pads: [1, 1, 1, 1] }),
  node("Relu", "a", "u"),
  node("Conv", "u wb", "b", { kernel_shape: [3, 3], pads: [1, 1, 1, 1] }),
  node("Relu", "b", "v"),
  node("GlobalAveragePool", "v", "p"),
  node("Flatten", "p", "f"),
  node("Gemm", "f wd", "y", { transB: 1 }),
], { wa: [4, 3, 3, 3], wb: [6, 4, 3, 3], wd: [5, 6] });
const COUNT = 32;
const IMAGES = ndArray("float32", [COUNT, 3, 6, 6], Float32Array.from(randomArray(1, COUNT * 108)));

/** Reports of the training by unit, and held-out errors of the layers. */
async function trained(recipe: Partial<Recipe>) {
  const looks = new Map<string, number>();
  const { report } = await distill(NETWORK, { calibration: IMAGES }, {
    method: "layerwise",
    weightBits: 3,
    activationBits: 3,
    samples: COUNT,
    heldOut: 0.5,
    steps: 100,
    rollBack: false,
    augment: { copies: 1, shift: 0, flip: false },
    ...recipe,
  }, {
    device: await testDevice(),
    onProgress: ({ stage, unit = "" }) => {
      if (stage === "layerwise") looks.set(unit, (looks.get(unit) ?? 0) + 1);
    },
  });
  const { layers } = report;
  return {
    looks: [...looks.values()],
    before: layers.map(({ mseBefore }) => mseBefore),
    errors: layers.map(({ mseAfter }) => mseAfter),
  };
}

Deno.test("distill() stops units early that overshoot, at what was best for them", async () => {
  const wild = { learningRate: 0.5, schedule: "constant" } as const;
  const full = await trained(wild);
  const early = await trained({ ...wild, earlyStop: 0.2 });
  assert.deepEqual(full.looks, [10, 10, 10], "ten steps between two looks");
  assert.ok(early.looks.every((looks) => looks >= 3 && looks <= 10), `${early.looks}`);
  assert.ok(early.looks.some((looks) => looks < 8), `${early.looks}`);
  // later units have other inputs than in the full training, the first has not
  assert.ok(early.errors[0]! < full.errors[0]!, `${early.errors} ${full.errors}`);
  assert.ok(early.errors[2]! < 0.8 * early.before[2]!, "what was learnt until then is kept");
  const patient = await trained({ ...wild, earlyStop: 1 });
  assert.deepEqual(patient.looks, [10, 10, 10]);
  assert.ok(patient.errors[0]! <= early.errors[0]!, "the best of all looks");
});

Deno.test("parseRecipe() refuses early stopping without what it looks at", () => {
  const refused = (recipe: object, problem: RegExp) =>
    assert.throws(() => parseRecipe(recipe), problem);
  refused({ earlyStop: 0.3, heldOut: 0 }, /earlyStop: found 0.3 with heldOut 0, expected inputs/);
  refused({ earlyStop: 0.3, method: "joint" }, /found 0.3 with method "joint", which trains no/);
  refused({ earlyStop: 0.01 }, /earlyStop: found 0.01, expected a number from 0.1 to 1 or null/);
  assert.equal(parseRecipe({ earlyStop: 0.3, method: "qat" }).earlyStop, 0.3);
});
