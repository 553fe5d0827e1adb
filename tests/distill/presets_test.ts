import assert from "node:assert/strict";
import {
  copiesFor,
  EPTQ,
  type PresetName,
  PRESETS,
  weightGridFor,
} from "../../src/distill/presets.ts";
import { DEFAULT_RECIPE, parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import type { Stage } from "../../src/distill/stage.ts";

/** What the papers and tools say of a stage. */
interface Published {
  readonly unit: Stage["unit"];
  readonly inputs: Stage["inputMode"];
  readonly activations: Stage["activations"];
  readonly weights: Stage["weightQuantizer"];
  readonly loss: readonly [exponent: number, scale: Stage["loss"]["scale"]];
  /** [weights, weightScales, activationScales, biases] */
  readonly rates: readonly [number, number, number, number];
  readonly schedule: Stage["optimization"]["schedule"];
  readonly steps: number;
  readonly batch: number;
  /** "lsq" unless said otherwise. */
  readonly activationQuantizer?: Stage["activationQuantizer"];
}

const SUM = [2, "channelSum"] as const, MEAN = [2, "mean"] as const;
const LAYER = {
  unit: "layer",
  inputs: "student",
  activations: "quantized",
  weights: "lsq",
} as const;
const BLOCK = { ...LAYER, unit: "block" } as const;
const CONSTANT = { schedule: "constant", batch: 32 } as const;
const ROUNDED = { ...CONSTANT, weights: "softRounding", loss: SUM } as const;
const OWN = {
  loss: [2, "variance"],
  rates: [0.01, 1e-3, 2e-3, 1e-3],
  schedule: "cosine",
  steps: 300,
  batch: 16,
} as const;

const TABLE: Readonly<Record<PresetName | "eptq", readonly Published[]>> = {
  layerwise: [{ ...LAYER, ...OWN }],
  blockwise: [{ ...BLOCK, ...OWN }],
  parallel: [{ ...LAYER, ...OWN, inputs: "teacher" }],
  // hicann/amct at 2be20da: AdamW 1e-3, clip bounds 0.1, the scales follow the weights; one epoch
  amct: [{
    ...LAYER,
    ...CONSTANT,
    inputs: "nearest",
    weights: "minMax",
    loss: MEAN,
    rates: [1e-3, 0, 0.1, 1e-3],
    steps: 32,
    activationQuantizer: "range",
  }],
  // Nagel et al. 2020 and aimet at c51b284: 10,000 iterations of 32, Adam 1e-3, activations float
  adaround: [{
    ...LAYER,
    ...ROUNDED,
    activations: "float",
    rates: [1e-3, 0, 0, 0],
    steps: 10_000,
  }],
  // itayhubara/CalibTIP at 8bffbe4: lr_w, lr_qpw (of ranges), lr_qpin (of bounds), lr_b; 1,000 iterations of 50
  adaquant: [{
    ...LAYER,
    ...CONSTANT,
    loss: MEAN,
    rates: [1e-5, 1e-3, 0.1, 1e-3],
    steps: 1000,
    batch: 50,
    activationQuantizer: "range",
  }],
  // yhhhli/BRECQ at e455d62: rounding, then the activations' scales by L_2.4 on the float network's inputs
  brecq: [
    { ...BLOCK, ...ROUNDED, activations: "float", rates: [1e-3, 0, 0, 0], steps: 20_000 },
    {
      ...BLOCK,
      inputs: "float",
      weights: "ste",
      loss: [2.4, "channelSum"],
      rates: [0, 0, 4e-4, 0],
      schedule: "cosine",
      steps: 5000,
      batch: 32,
    },
  ],
  // wimh966/QDrop at ef37616
  qdrop: [{
    ...BLOCK,
    ...ROUNDED,
    inputs: "mixed",
    activations: "dropped",
    rates: [1e-3, 0, 4e-5, 0],
    schedule: "cosine",
    steps: 20_000,
  }],
  // openppl-public/ppq at e39eecb
  ppq: [{ ...BLOCK, ...CONSTANT, loss: MEAN, rates: [5e-5, 5e-5, 5e-5, 5e-5], steps: 500 }],
  // ssi-research/eptq at 408963a; SonySemiconductorSolutions/mct-model-optimization at 2c8d568
  eptq: [{
    ...ROUNDED,
    unit: "network",
    inputs: "student",
    activations: "gradual",
    loss: [2, "variance"],
    rates: [3e-2, 0, 0, 1e-4],
    steps: 80_000,
  }],
};

for (const [name, published] of Object.entries(TABLE)) {
  Deno.test(`PRESETS: ${name} has the constants that are published of it`, () => {
    const stages = name === "eptq" ? [EPTQ] : PRESETS[name as PresetName].stages;
    const found = stages.map(({ loss, rates, optimization, ...stage }): Published => ({
      unit: stage.unit,
      inputs: stage.inputMode,
      activations: stage.activations,
      weights: stage.weightQuantizer,
      loss: [loss.exponent, loss.scale],
      rates: [rates.weights, rates.weightScales, rates.activationScales, rates.biases],
      schedule: optimization.schedule,
      steps: stage.steps,
      batch: stage.batch,
      activationQuantizer: stage.activationQuantizer,
    }));
    assert.deepEqual(
      found,
      published.map((stage) => ({ activationQuantizer: "lsq", ...stage })),
    );
  });
}

Deno.test("PRESETS: published methods use PyTorch's Adam, and rates in units of the parameters", () => {
  const own = ["layerwise", "blockwise", "parallel"];
  for (const [name, { stages }] of Object.entries(PRESETS)) {
    for (const { optimization, rates, ratesBatch, adaptive, rollBack } of stages) {
      if (own.includes(name)) continue;
      const { beta1, beta2, warmup, rounding } = optimization;
      assert.deepEqual([beta1, beta2, warmup], [0.9, 0.999, 0], name);
      // lambda 0.01 after a fifth of the steps, beta 20 to 2; falling as a cosine in AIMET alone
      const { betaDecay = "linear", ...published } = rounding;
      assert.deepEqual(Object.values(published), [0.01, 0.2, 20, 2], name);
      assert.equal(betaDecay, name === "adaround" ? "cosine" : "linear", name);
      assert.deepEqual([rates.absolute, ratesBatch, adaptive], [true, null, false], name);
      // only PPQ withdraws what became worse
      assert.equal(rollBack, name === "ppq", name);
    }
  }
  assert.equal(PRESETS.amct.stages[0]!.rates.weightDecay, 0.01); // AdamW of PyTorch
  assert.equal(PRESETS.adaquant.stages[0]!.rates.weightRanges, true);
  assert.equal(PRESETS.qdrop.stages[0]!.rates.constantWeights, true); // cosine is the scales' only
  assert.equal(EPTQ.loss.kind, "hessian");
  assert.equal(EPTQ.optimization.rounding.regularizer, 10); // REG_DEFAULT_SLA
});

Deno.test("copiesFor() and weightGridFor() take the recipe's word, then the method's", () => {
  const recipe = (changes: Partial<Recipe>) => parseRecipe(changes);
  const image = [1, 8, 8, 3];
  assert.equal(copiesFor(DEFAULT_RECIPE, image), 2);
  // neither features nor sequences can be shifted
  assert.equal(copiesFor(DEFAULT_RECIPE, [1, 64]), 1);
  assert.equal(copiesFor(DEFAULT_RECIPE, [1, 8, 8]), 1);
  for (const method of ["amct", "adaround", "adaquant", "brecq", "qdrop", "ppq", "eptq"] as const) {
    assert.equal(copiesFor(recipe({ method }), image), 1, method);
  }
  const augment = { copies: 3, shift: 0, flip: false };
  assert.equal(copiesFor(recipe({ method: "brecq", augment }), image), 3);
  const grid = (changes: Partial<Recipe>, bits: number) => weightGridFor(recipe(changes), bits);
  assert.deepEqual([grid({}, 8), grid({}, 4)], ["symmetric", "flip"]);
  const published = {
    offset: ["adaquant", "brecq", "qdrop"],
    symmetric: ["amct", "adaround", "eptq", "ppq"],
  } as const;
  for (const [expected, methods] of Object.entries(published)) {
    for (const method of methods) {
      assert.deepEqual([grid({ method }, 4), grid({ method }, 8)], [expected, expected], method);
    }
  }
  assert.equal(grid({ method: "brecq", weightGrid: "flip" }, 8), "flip");
});
