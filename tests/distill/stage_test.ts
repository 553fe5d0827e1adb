import assert from "node:assert/strict";
import { lastStage } from "../../src/distill/methods/reconstruct.ts";
import { activationExponentFor, type PresetName, PRESETS } from "../../src/distill/presets.ts";
import { parseRecipe, type Recipe } from "../../src/distill/recipe.ts";
import { BLOCKWISE, learningRates, type Stage, stagesFor } from "../../src/distill/stage.ts";

Deno.test("stagesFor() leaves a method as it is unless the recipe says something", () => {
  for (const { stages } of Object.values(PRESETS)) {
    assert.deepEqual(stagesFor(stages, parseRecipe({})), stages);
  }
});

Deno.test("stagesFor() gives every stage what the recipe sets", () => {
  const cases: readonly (readonly [Partial<Recipe>, (stage: Stage) => unknown, unknown])[] = [
    [{ unit: "merged" }, (stage) => stage.unit, "merged"],
    [{ inputMode: "nearest" }, (stage) => stage.inputMode, "nearest"],
    [{ activationTraining: "gradual" }, (stage) => stage.activations, "gradual"],
    [{ weightQuantizer: "minMax" }, (stage) => stage.weightQuantizer, "minMax"],
    [{ activationQuantizer: "range" }, (stage) => stage.activationQuantizer, "range"],
    [{ loss: "fisher" }, (stage) => stage.loss.kind, "fisher"],
    [{ schedule: "cosine" }, (stage) => stage.optimization.schedule, "cosine"],
    [{ batchSize: 7 }, (stage) => stage.batch, 7],
    [{ rollBack: true }, (stage) => stage.rollBack, true],
    [{ rollBack: false }, (stage) => stage.rollBack, false],
  ];
  for (const [changes, look, expected] of cases) {
    for (const { stages } of [PRESETS.brecq, PRESETS.layerwise]) {
      const found = stagesFor(stages, parseRecipe(changes));
      assert.deepEqual(found.map(look), stages.map(() => expected), JSON.stringify(changes));
    }
  }
  // What belongs to the setting stays: the exponent beside the kind, the moments beside the schedule.
  const [, second] = stagesFor(PRESETS.brecq.stages, parseRecipe({ loss: "hessian" }));
  assert.deepEqual(second!.loss, { kind: "hessian", exponent: 2.4, scale: "channelSum" });
});

Deno.test("stagesFor() changes the steps of later stages in proportion, and gives all units all", () => {
  const steps = (stages: readonly Stage[], changes: Partial<Recipe>) =>
    stagesFor(stages, parseRecipe(changes)).map((stage) => stage.steps);
  assert.deepEqual(steps(PRESETS.brecq.stages, {}), [20_000, 5000]);
  assert.deepEqual(steps(PRESETS.brecq.stages, { steps: 100 }), [100, 25]);
  assert.deepEqual(steps(PRESETS.brecq.stages, { steps: 0 }), [0, 0]);
  assert.equal(stagesFor([BLOCKWISE], parseRecipe({ steps: 50 }))[0]!.adaptive, false);
  assert.equal(stagesFor([BLOCKWISE], parseRecipe({}))[0]!.adaptive, true);
});

Deno.test("learningRates() grow with the root of the batch, and follow the recipe's own rate", () => {
  const rates = (batch: number, changes: Partial<Recipe> = {}) =>
    learningRates(BLOCKWISE, parseRecipe(changes), batch);
  assert.deepEqual(rates(16), BLOCKWISE.rates);
  const { weights, weightScales, activationScales, biases } = BLOCKWISE.rates;
  const doubled = [weights, weightScales, activationScales, biases].map((rate) => 2 * rate);
  assert.deepEqual(Object.values(rates(64)), doubled);
  // A rate of the recipe is that of the weights, whatever the batch, and takes the others with it.
  const own = rates(64, { learningRate: 3 * weights });
  assert.equal(own.weights, 3 * weights);
  assert.ok(Math.abs(own.biases / biases - 3) < 1e-12);
});

Deno.test("learningRates() of published methods are what they are, with all that goes with them", () => {
  const [amct] = PRESETS.amct.stages as [Stage];
  assert.deepEqual(learningRates(amct, parseRecipe({}), 512), amct.rates);
  const own = learningRates(amct, parseRecipe({ learningRate: 2e-3 }), 32);
  assert.deepEqual(own, {
    ...amct.rates,
    weights: 2e-3,
    activationScales: 0.2,
    biases: 2e-3,
  });
  // Where no weight trains, a rate for weights says nothing.
  const [, scales] = PRESETS.brecq.stages as [Stage, Stage];
  assert.deepEqual(learningRates(scales, parseRecipe({ learningRate: 1 }), 32), scales.rates);
});

Deno.test("lastStage() trains the network at two bits, and with many samples below eight", () => {
  const at = (
    weightBits: number,
    activationBits: number | null,
    batchSize: number | null = null,
  ) => (
    { weightBits, activationBits, batchSize }
  );
  const steps = (bits: number | null, clean: number, name: PresetName = "blockwise") =>
    lastStage(name, at(4, bits), clean).steps;
  assert.deepEqual(
    [896, 224, 4375, 50_000].map((clean) => steps(2, clean)),
    [784, 196, 3829, 4000],
  );
  const own = lastStage("blockwise", at(2, 2, 128), 896);
  assert.deepEqual([own.batch, own.steps], [128, 196], "as many passes");
  assert.equal(lastStage("blockwise", at(2, 2), 896).batch, 32);
  assert.equal(lastStage("blockwise", at(4, 4), 4375).batch, 64);
  assert.deepEqual([896, 2999, 3000, 4375].map((clean) => steps(4, clean)), [0, 0, 657, 958]);
  assert.equal(steps(null, 4375), 958);
  assert.equal(lastStage("blockwise", at(8, 8), 50_000).steps, 0);
  for (const name of ["layerwise", "brecq", "amct"] as const) assert.equal(steps(2, 4375, name), 0);
  assert.ok(
    lastStage("blockwise", at(4, 2), 896).factor > lastStage("blockwise", at(4, 4), 4375).factor,
  );
});

Deno.test("activationExponentFor() leaves stilla's methods to the output, others have the usual one", () => {
  const exponent = (changes: Partial<Recipe>) => activationExponentFor(parseRecipe(changes));
  assert.equal(exponent({}), null);
  assert.equal(exponent({ method: "ptq" }), null);
  assert.equal(exponent({ method: "brecq" }), 2.4);
  assert.equal(exponent({ method: "eptq" }), 2.4);
  assert.equal(exponent({ method: "brecq", activationExponent: 1 }), 1);
});
