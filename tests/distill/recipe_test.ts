import assert from "node:assert/strict";
import { FormatError } from "../../src/core/errors.ts";
import { stepsFor } from "../../src/distill/block_loop.ts";
import {
  batchNormPolicy,
  checkRecipePart,
  DEFAULT_RECIPE,
  parseRecipe,
  type Recipe,
  RECIPE_FIELDS,
} from "../../src/distill/recipe.ts";

const DYNAMIC = { method: "ptq", activationRanges: "dynamic" } as const;

Deno.test("parseRecipe() completes a recipe with the defaults", () => {
  const recipe = parseRecipe({ weightBits: 4, augment: { copies: 1 } });
  assert.deepEqual(recipe, {
    ...DEFAULT_RECIPE,
    weightBits: 4,
    augment: { copies: 1, shift: 4, flip: true },
  });
});

Deno.test("parseRecipe() gives back a complete recipe unchanged after JSON", () => {
  const recipe = parseRecipe({ method: "joint", mean: [1, 2, 3], learningRate: 0.02, steps: 0 });
  assert.deepEqual(parseRecipe(JSON.parse(JSON.stringify(recipe))), recipe);
});

Deno.test("RECIPE_FIELDS has every key of the recipe once, with its default", () => {
  const flat = Object.entries(DEFAULT_RECIPE).flatMap(([key, value]): [string, unknown][] =>
    key === "augment"
      ? Object.entries(value as object).map(([inner, v]) => [`augment.${inner}`, v])
      : [[key, value]]
  );
  assert.deepEqual(
    RECIPE_FIELDS.map((field) => [field.key, field.default]).sort(),
    flat.sort(),
  );
  for (const { key, about, expected } of RECIPE_FIELDS) {
    assert.ok(about !== "" && expected !== "", key);
  }
});

Deno.test("parseRecipe() names file, key, value and what was expected, in one line", () => {
  const cases: readonly (readonly [value: unknown, message: string | RegExp])[] = [
    [{ weightBits: 9 }, "weightBits: found 9, expected an integer from 2 to 8"],
    [{ weightBits: 1 }, "weightBits: found 1, expected an integer from 2 to 8"],
    [{ weightBits: 4.5 }, "weightBits: found 4.5, expected an integer from 2 to 8"],
    [{ weightBits: "4" }, 'weightBits: found "4", expected an integer from 2 to 8'],
    [{ weightBits: null }, "weightBits: found null, expected an integer from 2 to 8"],
    [{ activationBits: 9 }, "activationBits: found 9, expected an integer from 2 to 8 or null"],
    [{ weightGroup: 1 }, "weightGroup: found 1, expected an integer of at least 2 or null"],
    [
      { weightGroup: 32, method: "ptq" },
      "weightGroup: found 32 with activationBits 8, expected null: groups are for weights alone",
    ],
    [
      { weightGroup: 32, activationBits: null },
      'weightGroup: found 32 with method "blockwise", which trains a scale a channel, expected ptq',
    ],
    [
      { weightGroup: 32, activationBits: null, method: "ptq", weightGranularity: "tensor" },
      'weightGroup: found 32 with weightGranularity "tensor", expected channel',
    ],
    [
      { weightGroup: 32, activationBits: null, method: "ptq", batchNorm: "live" },
      /batchNorm: found "live" with weightGroup, which works on weights with batch norm folded in/,
    ],
    [
      { activationRanges: "dynamic" },
      'activationRanges: found "dynamic" with method "blockwise", which trains with known ranges, expected ptq',
    ],
    [
      { ...DYNAMIC, activationBits: 4 },
      'activationRanges: found "dynamic" with activationBits 4, expected 8',
    ],
    [
      { ...DYNAMIC, activationBits: null },
      'activationRanges: found "dynamic" with activationBits null, expected 8',
    ],
    [
      { ...DYNAMIC, activationGrid: "symmetric" },
      /^r\.json: activationRanges: found "dynamic" with activationGrid "symmetric", expected auto /,
    ],
    [
      { ...DYNAMIC, batchNorm: "live", reestimateBatchNorm: true },
      /activationRanges: found "dynamic" with reestimateBatchNorm, which needs known ranges/,
    ],
    [
      {
        ...DYNAMIC,
        overrides: [{ layers: "a", weightBits: 4 }, { layers: "b", activationBits: 6 }],
      },
      'activationRanges: found "dynamic" with activationBits 6 in overrides[1], expected 8 or null',
    ],
    [{ firstLastBits: 0 }, "firstLastBits: found 0, expected an integer from 2 to 8"],
    [{ weightBit: 4 }, 'weightBit: unknown key, did you mean "weightBits"?'],
    [{ qqqqqq: 4 }, "qqqqqq: unknown key"],
    [{ augment: { copy: 1 } }, 'augment.copy: unknown key, did you mean "augment.copies"?'],
    [
      { augment: { copies: 0 } },
      "augment.copies: found 0, expected an integer from 1 to 16 or null",
    ],
    [
      { unit: "blok" },
      /unit: found "blok", expected one of layer, block, merged, stage, network or null/,
    ],
    [{ groups: ["conv1"] }, 'groups: found "conv1", expected a list of texts'],
    [{ groups: [".."] }, 'groups: found "..", expected a list of texts'],
    [{ rollBack: 1 }, "rollBack: found 1, expected true or false or null"],
    [{ augment: { flip: 1 } }, "augment.flip: found 1, expected true or false"],
    [{ method: "blokwise" }, /method: found "blokwise", expected one of ptq, qat, layerwise, /],
    [{ learningRate: 0 }, "learningRate: found 0, expected a number above 0 or null"],
    [{ learningRate: Infinity }, /learningRate: found Infinity/],
    [{ heldOut: 0.9 }, "heldOut: found 0.9, expected a number from 0 to 0.5"],
    [{ heldOut: NaN }, /heldOut: found NaN/],
    [{ seed: -1 }, /seed: found -1/],
    [{ samples: 0 }, "samples: found 0, expected an integer of at least 1"],
    [{ mean: [] }, "mean: found [], expected a list of numbers"],
    [{ mean: [0, "1"] }, 'mean: found "1", expected a list of numbers'],
    [{ std: [1, 0, 1] }, "std: found 0, expected numbers above 0"],
    [{ mean: [1, 2], std: [1, 2, 3] }, /mean: found 2 numbers but std has 3/],
    [{ labels: "y.npy" }, "labels: labels were given but nothing to evaluate"],
    [{ method: "qat", calibration: "x.npy" }, /calibrationLabels: method "qat" trains with labels/],
    [{ weightRounding: "gptx" }, 'weightRounding: found "gptx", expected one of nearest, gptq'],
    [
      { method: "joint", weightRounding: "gptq" },
      'weightRounding: found "gptq" with method "joint", expected ptq, layerwise or blockwise',
    ],
    [{ overrides: 3 }, "overrides: found 3, expected a list of overrides"],
    [{ overrides: [3] }, "overrides[0]: found 3, expected a JSON object"],
    [{ overrides: [{ layers: "a" }] }, /^r\.json: overrides\[0\]: sets nothing/],
    [
      { overrides: [{ layers: "a", weightBits: 3 }, { operators: "Conv", weightBits: 9 }] },
      "overrides[1].weightBits: found 9, expected an integer from 2 to 8",
    ],
    [
      { overrides: [{ layers: "a", weigthBits: 4 }] },
      'overrides[0].weigthBits: unknown key, did you mean "weightBits"?',
    ],
    [{ overrides: [{ layers: "a", zeros: 4 }] }, "overrides[0].zeros: unknown key"],
    [{ override: [] }, 'override: unknown key, did you mean "overrides"?'],
    [{ skipLayers: "a" }, 'skipLayers: found "a", expected a list of texts'],
    [{ skipOperators: ["MatMul"] }, /skipOperators: found "MatMul", expected a list of Conv, De/],
    [{ migration: 1.5 }, "migration: found 1.5, expected a number from 0 to 1 or null"],
    [
      { biasCorrection: "empirical" },
      'biasCorrection: found "empirical" with method "blockwise", which trains biases, expected ptq',
    ],
    [
      { migration: 0.5, equalization: "crossLayer" },
      'migration: found 0.5 with equalization "crossLayer", which it would undo, expected one of the two',
    ],
    [
      { absorbBiases: true, batchNorm: "live" },
      'batchNorm: found "live" with absorbBiases, which works on weights with batch norm folded in, ' +
      "expected auto or folded",
    ],
    [
      { weightGranularity: "tensor" },
      'weightGranularity: found "tensor" with method "blockwise", which trains a scale a channel, expected ptq',
    ],
    [
      { weightGranularity: "tensor", method: "ptq", batchNorm: "live" },
      'weightGranularity: found "tensor" with batchNorm "live", expected auto or folded',
    ],
    [{ calibrationSamples: 0 }, /calibrationSamples: found 0, expected an integer of at least 1/],
    [
      { activationPercentile: 101 },
      /activationPercentile: found 101, expected a number from 1 to 100/,
    ],
    [{ activationExponent: 0 }, /activationExponent: found 0, expected a number above 0/],
    [{ activationObserver: "kll" }, /found "kll", expected one of mse, .*, kl, aciqLaplace, /],
    [{ method: "eptq", weightRounding: "gptq" }, /weightRounding: found "gptq" with method "eptq"/],
    [{ out: 3 }, "out: found 3, expected a text or null"],
    [[1], "found [1], expected a JSON object"],
    [null, "found null, expected a JSON object"],
  ];
  for (const [value, message] of cases) {
    assert.throws(() => parseRecipe(value, "r.json"), (error) => {
      assert.ok(error instanceof FormatError);
      assert.doesNotMatch(error.message, /\n/);
      if (typeof message === "string") assert.equal(error.message, `r.json: ${message}`);
      else assert.match(error.message, message);
      return true;
    });
  }
});

Deno.test("checkRecipePart() lets keys be completed by another part", () => {
  assert.equal(checkRecipePart({ labels: "y.npy" }), undefined);
  assert.equal(checkRecipePart({ label: "y.npy" })?.key, "label");
});

Deno.test("batchNormPolicy() folds from 3 bits on, and takes what the recipe says", () => {
  const policy = (changes: Partial<Recipe>) => batchNormPolicy(parseRecipe(changes));
  assert.equal(policy({ weightBits: 3, activationBits: 3 }), "folded");
  assert.equal(policy({ weightBits: 2, activationBits: 4 }), "live");
  assert.equal(policy({ weightBits: 4, activationBits: 2 }), "live");
  assert.equal(policy({ method: "qat", weightBits: 2, activationBits: 2 }), "live");
  assert.equal(policy({ method: "qat", batchNorm: "frozen" }), "frozen");
  // What rewrites folded weights leaves nothing else to train.
  const low = { weightBits: 2, activationBits: 2 } as const;
  assert.equal(policy({ ...low, equalization: "crossLayer" }), "folded");
  assert.equal(policy({ ...low, absorbBiases: true }), "folded");
  assert.equal(policy({ ...low, method: "qat", migration: 0 }), "folded");
  assert.equal(policy({ ...low, method: "ptq", biasCorrection: "analytic" }), "folded");
  assert.equal(policy({ method: "ptq", weightBits: 2, weightGranularity: "tensor" }), "folded");
});

Deno.test("stepsFor() gives fewer steps to units that lose little, in sixths", () => {
  assert.deepEqual(
    [NaN, 1, 0.15, 0.149, 0.01, 0.0057, 0.0056, 0.002, 1e-4, 0]
      .map((error) => stepsFor(300, error)),
    [300, 300, 300, 200, 200, 200, 150, 100, 50, 50],
  );
  assert.equal(stepsFor(3, 0), 1);
});
