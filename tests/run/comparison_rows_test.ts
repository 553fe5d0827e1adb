import assert from "node:assert/strict";
import { DEFAULT_RECIPE } from "../../src/distill/recipe.ts";
import { comparisonCells, parseRows } from "../../src/run/comparison_rows.ts";

Deno.test("parseRows() reads names and recipes", () => {
  const rows = [
    { name: " round-to-nearest, min-max ", recipe: { method: "ptq", weightObserver: "minmax" } },
    { name: "default" },
  ];
  assert.deepEqual(parseRows(rows, "rows.json"), [
    { ...rows[0], name: "round-to-nearest, min-max" },
    { name: "default", recipe: {} },
  ]);
});

Deno.test("parseRows() names the row and the key that is wrong, and the nearest known one", () => {
  const row = (recipe: unknown) => [{ name: "a", recipe }];
  const cases: readonly (readonly [value: unknown, message: string])[] = [
    [{}, 'expected a list of rows {"name": "...", "recipe": {...}}'],
    [[], 'expected a list of rows {"name": "...", "recipe": {...}}'],
    [[3], "row 1: expected a JSON object"],
    [[{ nam: "a" }], 'row 1: nam: unknown key, did you mean "name"?'],
    [[{ name: "a", bits: 3 }], "row 1: bits: unknown key, expected name and recipe"],
    [[{ name: " " }], "row 1: name: expected a text"],
    [row([]), "row 1: recipe: expected a JSON object"],
    [
      row({ weightObservr: "mse" }),
      'row "a": weightObservr: unknown key, did you mean "weightObserver"?',
    ],
    [
      row({ augment: { copy: 1 } }),
      'row "a": augment.copy: unknown key, did you mean "augment.copies"?',
    ],
    [row({ steps: -1 }), 'row "a": steps: found -1, expected an integer of at least 0 or null'],
    [row({ weightBits: 4 }), 'row "a": weightBits: is set by the columns (--bits)'],
    [row({ seed: 4 }), 'row "a": seed: is set by --seeds'],
    [row({ mean: [0] }), 'row "a": mean: is common to all rows'],
    [[...row({}), ...row({})], 'row "a": stands twice'],
  ];
  for (const [value, message] of cases) {
    assert.throws(() => parseRows(value, "r.json"), { message: `r.json: ${message}` });
  }
});

Deno.test("comparisonCells() completes every recipe: common keys, the row's, bits and seed", () => {
  const base = { ...DEFAULT_RECIPE, samples: 64, augment: { copies: 3, shift: 2, flip: false } };
  const rows = [
    { name: "a", recipe: { method: "ptq", augment: { copies: 1 } } },
    { name: "b", recipe: { samples: 32 } },
  ];
  const bits = [{ weightBits: 4, activationBits: 8 }];
  const cells = comparisonCells({ base, rows, bits, seeds: [3, 4] });
  assert.deepEqual(cells.map(({ name, row, column }) => [name, row, column]), [
    ["a W4A8 seed 3", 0, 0],
    ["b W4A8 seed 3", 1, 0],
    ["a W4A8 seed 4", 0, 0],
    ["b W4A8 seed 4", 1, 0],
  ]);
  assert.deepEqual(cells[0]!.recipe, {
    ...base,
    method: "ptq",
    weightBits: 4,
    seed: 3,
    augment: { copies: 1, shift: 2, flip: false },
  });
  assert.deepEqual([cells[3]!.recipe.samples, cells[3]!.recipe.seed], [32, 4]);
});

Deno.test("comparisonCells() refuses a row that does not go with the common keys", () => {
  const base = { ...DEFAULT_RECIPE, calibration: "x.npy" };
  const rows = [{ name: "q", recipe: { method: "qat" } }];
  const bits = [{ weightBits: 4, activationBits: 4 }];
  assert.throws(() => comparisonCells({ base, rows, bits, seeds: [0] }), {
    name: "RangeError",
    message:
      'Cannot compare "q W4A4 seed 0": calibrationLabels: method "qat" trains with labels, ' +
      "expected a file of them",
  });
});
