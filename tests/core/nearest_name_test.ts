import assert from "node:assert/strict";
import { nearestName } from "../../src/core/nearest_name.ts";

Deno.test("nearestName() finds slips and swaps, and leaves strangers alone", () => {
  const known = ["weight-bits", "activation-bits", "seed", "steps"];
  assert.equal(nearestName("wieght-bits", known), "weight-bits");
  assert.equal(nearestName("seeed", known), "seed");
  assert.equal(nearestName("temperature", known), undefined);
});
