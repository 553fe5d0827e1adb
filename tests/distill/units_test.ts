import assert from "node:assert/strict";
import { unitsOf } from "../../src/distill/units.ts";
import { channelsLast } from "../_check_op.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const SAME = { pads: [1, 1, 1, 1] }, DOWN = { pads: [1, 1, 1, 1], strides: [2, 2] };

/** A stem, two residual blocks of 4 channels, two of 8 of which the first halves the image, and a head. */
const RESNET = channelsLast(makeGraph(["N", 3, 8, 8], [
  node("Conv", "x w", "a", SAME),
  node("Relu", "a", "stem"),
  node("Conv", "stem w1", "b", SAME),
  node("Relu", "b", "c"),
  node("Conv", "c w2", "d", SAME),
  node("Add", "d stem", "e"),
  node("Relu", "e", "one"),
  node("Conv", "one w3", "f", SAME),
  node("Relu", "f", "g"),
  node("Conv", "g w4", "h", SAME),
  node("Add", "h one", "i"),
  node("Relu", "i", "two"),
  node("Conv", "two w5", "j", DOWN),
  node("Relu", "j", "k"),
  node("Conv", "k w6", "l", SAME),
  node("Conv", "two w7", "m", { strides: [2, 2] }),
  node("Add", "l m", "n"),
  node("Relu", "n", "three"),
  node("Conv", "three w8", "o", SAME),
  node("Add", "o three", "p"),
  node("Relu", "p", "four"),
  node("GlobalAveragePool", "four", "q"),
  node("Flatten", "q", "r"),
  node("Gemm", "r w9", "y", { transB: 1 }),
], {
  w: [4, 3, 3, 3],
  ...{ w1: [4, 4, 3, 3], w2: [4, 4, 3, 3], w3: [4, 4, 3, 3], w4: [4, 4, 3, 3] },
  ...{ w5: [8, 4, 3, 3], w6: [8, 8, 3, 3], w7: [8, 4, 1, 1], w8: [8, 8, 3, 3] },
  w9: [5, 8],
}));

/** The last tensor of every unit. */
function ends(...parameters: Parameters<typeof unitsOf>): string[] {
  return unitsOf(...parameters).map(({ outputs }) => outputs[0]!);
}

Deno.test("unitsOf() cuts into layers, blocks, stages of one shape, or not at all", () => {
  assert.deepEqual(
    ends(RESNET, "layer"),
    // The shortcut stands behind the layers that it passes; pooling goes with the layer before.
    ["stem", "c", "one", "g", "two", "k", "l", "three", "r", "y"],
  );
  assert.deepEqual(ends(RESNET, "block"), ["stem", "one", "two", "three", "four", "y"]);
  assert.deepEqual(ends(RESNET, "stage"), ["two", "four", "y"]);
  assert.deepEqual(ends(RESNET, "network"), ["y"]);
  for (const kind of ["layer", "block", "merged", "stage", "network"] as const) {
    const nodes = unitsOf(RESNET, kind).flatMap((unit) => unit.nodes.map(({ name }) => name));
    assert.deepEqual(nodes.toSorted(), RESNET.graph.nodes.map(({ name }) => name).toSorted(), kind);
  }
});

Deno.test("unitsOf() merges the neighbours that differ most in capacity", () => {
  // 288, 288 and 288 * 1.6 + 576 + 32 * 1.6 weights: of six blocks one pair is merged
  assert.deepEqual(ends(RESNET, "merged"), ["stem", "one", "three", "four", "y"]);
});

Deno.test("unitsOf() merges pairs, counts strides, and leaves both ends alone", () => {
  // 72, 16, 16, 32 * 1.6, 64, 72, 81 and 270 weights
  const sizes = [[4, 2, 3, 3], [4, 4], [4, 4], [8, 4], [8, 8], [9, 8], [9, 9], [30, 9]];
  const weights = sizes.map(([o, i, h = 1, w = 1], n) => [`w${n}`, [o!, i!, h, w]] as const);
  const chain = channelsLast(makeGraph(
    ["N", 2, 8, 8],
    sizes.map((_, i) =>
      node("Conv", `${i === 0 ? "x" : `t${i - 1}`} w${i}`, i === 7 ? "y" : `t${i}`, {
        ...(i === 0 ? SAME : {}),
        ...(i === 3 ? { strides: [2, 2] } : {}),
      })
    ),
    Object.fromEntries(weights),
  ));
  // The largest differences are at both ends; then 35 before t3, 13 behind it but t3 is taken, and 9 before t6.
  assert.deepEqual(ends(chain, "merged"), ["t0", "t1", "t3", "t4", "t6", "y"]);
});

Deno.test("unitsOf() joins the units of a group", () => {
  assert.deepEqual(
    ends(RESNET, "layer", ["Conv_b..Conv_d", "Conv_o..Gemm_y"]),
    ["stem", "one", "g", "two", "k", "l", "three", "y"],
  );
  // Groups join whole units, and may meet.
  assert.deepEqual(ends(RESNET, "block", ["Conv_d..Conv_f", "Conv_h..Conv_j"]), [
    "stem",
    "three",
    "four",
    "y",
  ]);
  assert.deepEqual(ends(RESNET, "block", ["Conv_b..Conv_d"]), ends(RESNET, "block"));
});

Deno.test("unitsOf() refuses groups of unknown layers and of the wrong order", () => {
  assert.throws(() => unitsOf(RESNET, "layer", ["Conv_b..Conv_zz"]), {
    name: "RangeError",
    message: /^groups: the network has no layer "Conv_zz"/,
  });
  assert.throws(() => unitsOf(RESNET, "block", ["Conv_f..Conv_b"]), {
    name: "RangeError",
    message: 'groups: "Conv_f..Conv_b" ends before it begins, expected layers in execution order',
  });
});
