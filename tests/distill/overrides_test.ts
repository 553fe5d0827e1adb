import assert from "node:assert/strict";
import { createStudent } from "../../src/distill/create_student.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { layerSettings, overrideProblem } from "../../src/distill/overrides.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import { toChannelsLast } from "../../src/graph/channels_last.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const MODEL = makeGraph(["N", 3, 4, 4], [
  node("Conv", "x u", "a", {}, "stem/conv"),
  node("Conv", "a v", "b", { group: 4 }, "block.1/conv"),
  node("Conv", "b w", "c", {}, "block.10/conv"),
  node("GlobalAveragePool", "c", "d", {}, "pool"),
  node("Flatten", "d", "e"),
  node("Gemm", "e z", "y", { transB: 1 }, "fc"),
], { u: [4, 3, 1, 1], v: [4, 1, 1, 1], w: [6, 4, 1, 1], z: [2, 6] });
const { graph, layouts } = toChannelsLast(MODEL, inferShapes(MODEL, 1));
const NODES = graph.nodes.filter(({ name }) => !name.startsWith("Flatten"));

type Rules = Partial<Pick<Recipe, "overrides" | "skipLayers" | "skipOperators">>;
const settings = (rules: Rules) => Object.fromEntries(layerSettings(NODES, layouts, rules));
const names = (layers: string) => Object.keys(settings({ overrides: [{ layers, weightBits: 2 }] }));

Deno.test("layerSettings() matches whole names, * any characters, ? one, and nothing else specially", () => {
  assert.deepEqual(names("*"), ["stem/conv", "block.1/conv", "block.10/conv", "pool", "fc"]);
  assert.deepEqual(names("block*"), ["block.1/conv", "block.10/conv"]);
  assert.deepEqual(names("block.?/conv"), ["block.1/conv"]);
  assert.deepEqual(names("f?"), ["fc"]);
  assert.throws(() => names("block.1"), RangeError, "a part is not enough");
  assert.throws(() => names("block?1.conv"), RangeError, "a dot is a dot");
  assert.throws(() => names("(fc|pool)"), RangeError);
});

Deno.test("layerSettings() puts names over operators, and later entries over earlier ones", () => {
  const found = settings({
    overrides: [
      { layers: "block*", weightBits: 5 },
      { layers: "block.1/*", weightBits: 6, weightGrid: "symmetric" },
      { operators: "Conv", weightBits: 3, activationBits: 3 },
      { operators: "DepthwiseConv", activationBits: 7, weightObserver: "minmax" },
    ],
  });
  assert.deepEqual(found["stem/conv"], { weightBits: 3, activationBits: 3 });
  assert.deepEqual(found["block.1/conv"], {
    weightBits: 6,
    activationBits: 7,
    weightObserver: "minmax",
    weightGrid: "symmetric",
  });
  assert.deepEqual(found["block.10/conv"], { weightBits: 5, activationBits: 3 });
  assert.equal(found["fc"], undefined);
});

Deno.test("layerSettings() takes layers out of the skip lists again", () => {
  const quantize = (rules: Rules) =>
    Object.entries(settings(rules)).map(([name, value]) => [name, value.quantize]);
  assert.deepEqual(quantize({ skipLayers: ["stem*", "fc"] }), [["stem/conv", false], [
    "fc",
    false,
  ]]);
  assert.deepEqual(quantize({ skipOperators: ["DepthwiseConv", "GlobalAveragePool"] }), [
    ["block.1/conv", false],
    ["pool", false],
  ]);
  const overrides = [{ layers: "block.1/conv", quantize: true }];
  const found = settings({ skipOperators: ["Conv"], skipLayers: ["block*"], overrides });
  assert.deepEqual(found["block.1/conv"], { quantize: true });
  assert.deepEqual(found["block.10/conv"], { quantize: false });
});

Deno.test("layerSettings() names the nearest layers for a pattern that matches none", () => {
  const message = (rules: Rules) => {
    try {
      settings(rules);
    } catch (error) {
      assert.ok(error instanceof RangeError);
      return error.message;
    }
  };
  assert.equal(
    message({
      overrides: [{ layers: "fc", weightBits: 2 }, { layers: "blok1/conv*", weightBits: 2 }],
    }),
    'overrides[1].layers: "blok1/conv*" matches no layer, the nearest are "block.1/conv", "block.10/conv"',
  );
  assert.equal(
    message({ skipLayers: ["fx"] }),
    'skipLayers[0]: "fx" matches no layer, the nearest is "fc"',
  );
  assert.equal(
    message({ skipLayers: ["head.classifier"] }),
    'skipLayers[0]: "head.classifier" matches no layer, the layers are "stem/conv", "block.1/conv", "block.10/conv", .. "fc"',
  );
});

Deno.test("overrideProblem() wants a subject, a setting, and no bits for a layer that stays float", () => {
  assert.match(overrideProblem({ weightBits: 4 })!, /found neither, expected "layers" or/);
  assert.match(overrideProblem({ layers: "a", operators: "Conv", weightBits: 4 })!, /found both/);
  assert.match(overrideProblem({ layers: "a" })!, /sets nothing/);
  assert.match(
    overrideProblem({ layers: "a", quantize: false, weightBits: 4 })!,
    /found weightBits beside "quantize": false/,
  );
  assert.equal(overrideProblem({ layers: "a", quantize: true, weightBits: 4 }), undefined);
});

const BITS = { weightBits: 4, activationBits: 3, firstLastBits: 8 };
const bits = (rules: Rules) => {
  const network = prepareNetwork(MODEL, { ...BITS, ...rules }, false);
  return {
    weights: Object.fromEntries(network.weightBits),
    activations: Object.fromEntries(network.activationBits),
  };
};

Deno.test("prepareNetwork() gives overridden layers their bits, first and last too", () => {
  const found = bits({
    overrides: [
      { operators: "Gemm", weightBits: 6, activationBits: 5 },
      { layers: "block.10*", weightBits: 2, activationBits: 7 },
    ],
  });
  assert.deepEqual(found.weights, {
    "stem/conv": 8,
    "block.1/conv": 4,
    "block.10/conv": 2,
    fc: 6,
  });
  assert.deepEqual(found.activations, { x: 8, a: 3, b: 7, c: 5, e: 5 }, "a pool follows fc");
});

Deno.test("prepareNetwork() quantizes a tensor to the most bits that a layer asks for", () => {
  const model = makeGraph(["N", 3, 4, 4], [
    node("Conv", "x u", "a", {}, "first"),
    node("Conv", "a v", "b", {}, "left"),
    node("Conv", "a w", "c", {}, "right"),
    node("Add", "b c", "d"),
    node("Conv", "d z", "y", {}, "last"),
  ], { u: [4, 3, 1, 1], v: [4, 4, 1, 1], w: [4, 4, 1, 1], z: [2, 4, 1, 1] });
  const shared = (rules: Rules) =>
    prepareNetwork(model, { ...BITS, ...rules }, false).activationBits.get("a");
  const left = (activationBits: number) => ({ layers: "left", activationBits });
  const right = (activationBits: number) => ({ layers: "right", activationBits });
  assert.equal(shared({}), 3);
  assert.equal(shared({ overrides: [left(6)] }), 6);
  assert.equal(shared({ overrides: [left(2)] }), 3, "the right one still asks for 3");
  assert.equal(shared({ overrides: [left(2), right(2)] }), 2);
  assert.equal(shared({ overrides: [left(5), right(4)] }), 5);
  assert.equal(
    shared({ skipLayers: ["left"], overrides: [left(6)] }),
    3,
    "a float layer asks none",
  );
  const float = { layers: "left", activationBits: null };
  assert.equal(shared({ overrides: [float] }), undefined, "float is more than any bits");
  const weightOnly = (rules: Rules) =>
    prepareNetwork(model, { ...BITS, activationBits: null, ...rules }, false);
  assert.deepEqual([...weightOnly({}).activationBits], []);
  assert.deepEqual(weightOnly({}).weightBits, prepareNetwork(model, BITS, false).weightBits);
  const last = { layers: "last", activationBits: 5 };
  assert.deepEqual([...weightOnly({ overrides: [last] }).activationBits], [["d", 5]]);
  assert.equal(shared({ skipLayers: ["left"] }), 3, "the right one still reads it");
  assert.equal(shared({ skipLayers: ["left", "right"] }), undefined);
});

Deno.test("prepareNetwork() leaves skipped layers, what only they read, and pools before them float", () => {
  const last = bits({ skipLayers: ["fc"] });
  assert.deepEqual(last.weights, { "stem/conv": 8, "block.1/conv": 4, "block.10/conv": 4 });
  assert.deepEqual(last.activations, { x: 8, a: 3, b: 3 });
  const asked = bits({ skipLayers: ["fc"], overrides: [{ layers: "pool", quantize: true }] });
  assert.deepEqual(asked.activations, { x: 8, a: 3, b: 3, c: 8 });
  const pool = bits({ skipOperators: ["GlobalAveragePool"] });
  assert.deepEqual(pool.activations, { x: 8, a: 3, b: 3, e: 8 });
  const first = bits({ skipLayers: ["stem*"] });
  assert.equal(first.activations["x"], undefined);
  assert.equal(first.activations["a"], 3, "the second layer is not the first");
  assert.throws(() => bits({ skipLayers: ["*"] }), {
    name: "RangeError",
    message: /every layer is skipped/,
  });
});

Deno.test("createStudent() gives overridden layers their own grid and observer", () => {
  const recipe = { method: "ptq", weightGrid: "symmetric", weightObserver: "minmax" } as const;
  const student = (rules: Rules) =>
    createStudent(prepareNetwork(MODEL, { ...BITS, ...rules }, false), [], recipe).layers;
  const plain = student({});
  const own = student({
    overrides: [
      { layers: "block.10*", weightGrid: "offset" },
      { layers: "fc", weightBits: 3, weightObserver: "mse" },
    ],
    skipLayers: ["block.1/*"],
  });
  assert.deepEqual([...own.keys()], ["stem/conv", "block.10/conv", "fc"]);
  assert.deepEqual(own.get("stem/conv"), plain.get("stem/conv"));
  const lowest = (layer: string, from = own) => new Set(from.get(layer)!.quantMin);
  assert.deepEqual(lowest("block.10/conv", plain), new Set([-8]));
  assert.ok(lowest("block.10/conv").size > 1, "lopsided channels have an offset");
  assert.deepEqual(own.get("fc")!.bits, 3);
  const min = student({ overrides: [{ layers: "fc", weightBits: 3 }] }).get("fc")!;
  assert.notDeepEqual(own.get("fc")!.logScale, min.logScale);
});
