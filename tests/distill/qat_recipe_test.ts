import assert from "node:assert/strict";
import { parseRecipe } from "../../src/distill/recipe.ts";

const REFUSED: readonly (readonly [recipe: object, problem: RegExp])[] = [
  [{ optimizer: "sgd" }, /optimizer: found "sgd" with method "blockwise", expected qat/],
  [{ progressive: [4, 3] }, /progressive: found bits with method "blockwise", expected qat/],
  [
    { method: "qat", weightBits: 2, activationBits: 2, progressive: [3, 4] },
    /progressive: found 3, 4, expected ever fewer bits, all more than 2/,
  ],
  [
    { method: "qat", weightBits: 4, activationBits: 8, progressive: [4] },
    /progressive: found 4, expected ever fewer bits, all more than 4/,
  ],
  [{ method: "qat", progressive: [9] }, /progressive: found 9, expected/],
  [
    { reestimateBatchNorm: true },
    /reestimateBatchNorm: batch norm is folded, expected "batchNorm"/,
  ],
  [{ warmup: 1.5 }, /warmup: found 1.5, expected a number from 0 to 1 or null/],
  [{ optimizer: "lion" }, /optimizer: found "lion", expected one of adam, sgd or null/],
  [{ schedule: "linear" }, /schedule: .*expected one of cosine, step, constant or null/],
  [{ weightQuantizer: "pact" }, /weightQuantizer: .*one of lsq, ewgs, ste, minMax, dorefa/],
  [
    { activationQuantizer: "log" },
    /activationQuantizer: .*one of lsq, lsqPlus, pact, ewgs, dorefa, range, n2uq/,
  ],
  [
    { activationQuantizer: "n2uq", activationBits: 4 },
    /activationQuantizer: found "n2uq" with method "blockwise", expected qat/,
  ],
  [
    { method: "qat", activationQuantizer: "n2uq", activationBits: 5 },
    /activationQuantizer: found "n2uq" with activationBits 5, expected 2 to 4/,
  ],
  [
    {
      method: "qat",
      activationQuantizer: "n2uq",
      activationBits: 4,
      activationTraining: "dropped",
    },
    /found "n2uq" with activationTraining "dropped", expected quantized/,
  ],
];

for (const [recipe, problem] of REFUSED) {
  Deno.test(`parseRecipe() refuses ${JSON.stringify(recipe)}`, () => {
    assert.throws(() => parseRecipe(recipe), problem);
  });
}

Deno.test("parseRecipe() takes what QAT trains with", () => {
  const bits = { method: "qat", weightBits: 2, activationBits: 4 } as const;
  const recipe = { ...bits, optimizer: "sgd", schedule: "step", warmup: 0, progressive: [4, 3] };
  assert.deepEqual(parseRecipe(recipe).progressive, [4, 3]);
  const n2uq = { ...bits, activationQuantizer: "n2uq", weightQuantizer: "n2uq" };
  assert.equal(parseRecipe(n2uq).activationQuantizer, "n2uq");
  assert.equal(parseRecipe({ ...bits, reestimateBatchNorm: true }).reestimateBatchNorm, true);
  assert.equal(parseRecipe({ reestimateBatchNorm: true, batchNorm: "live" }).batchNorm, "live");
});
