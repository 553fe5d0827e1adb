import { deepEqual, equal, ok, throws } from "node:assert/strict";
import { UnsupportedError } from "../../src/core/errors.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import type { Attribute, Graph, Node } from "../../src/graph/graph.ts";
import { inferShapes } from "../../src/graph/shape_inference.ts";
import { simplify } from "../../src/graph/simplify.ts";
import { LSTM_GOLDENS, LSTM_INPUT } from "../formats/_lstm_goldens.ts";
import { evaluate } from "./_evaluate.ts";
import { int64, makeGraph, node } from "./_graphs.ts";
import { assertSame, randomValues } from "./_networks.ts";

const T = 4, I = 3, H = 2;
const WEIGHTS = { W: [1, 4 * H, I], R: [1, 4 * H, H], B: [1, 8 * H] };
const BOTH = { W: [2, 4 * H, I], R: [2, 4 * H, H], B: [2, 8 * H] };
/** x [N, T, I] with the steps first. */
const STEPS = node("Transpose", "x", "t", { perm: [1, 0, 2] });

function operators({ nodes }: Graph): string {
  return nodes.map(({ opType }) => opType).join(" ");
}

/** Simplifies; the result is the same function, for more than one batch, and needs no other pass. */
function simplified(graph: Graph): Graph {
  const result = simplify(graph);
  for (const batch of [1, 3]) {
    const x = randomValues(batch, [batch, T, I]);
    const expected = evaluate(graph, x).get("y")!;
    assertSame(evaluate(result, x).get("y")!, expected, 1e-6);
    deepEqual(inferShapes(result, batch).get("y"), expected.shape);
  }
  deepEqual(simplify(result), result);
  return result;
}

for (const { name, graph, x, y } of LSTM_GOLDENS) {
  Deno.test(`simplify() keeps what PyTorch computes: ${name}`, () => {
    const result = simplify(graph);
    const values = { shape: LSTM_INPUT, data: Float64Array.from(x) };
    const [output] = result.outputs;
    const found = evaluate(result, values).get(output!.name)!;
    equal(found.data.length, y.length);
    const error = Math.max(...found.data.map((value, i) => Math.abs(value - y[i]!)));
    ok(error < 1e-6, `${error}`);
    ok(!/Transpose|Expand|Gather|Squeeze/.test(operators(result)), operators(result));
  });
}

Deno.test("simplify() joins an LSTM's weights and adds up its biases", () => {
  const result = simplified(makeGraph(["N", T, I], [
    STEPS,
    node("LSTM", "t W R B", "Y", { hidden_size: H }),
    node("Squeeze", "Y one", "s"),
    node("Transpose", "s", "y", { perm: [1, 0, 2] }),
  ], { ...WEIGHTS, one: int64(1) }));
  const [lstm, ...rest] = result.nodes;
  deepEqual(rest, []);
  deepEqual(lstm!.inputs, ["x", "W", "B"]);
  deepEqual(lstm!.attributes, { direction: "forward", hidden_size: H, layout: 1 });
  deepEqual(result.initializers.get("W")!.shape, [4 * H, I + H]);
  deepEqual(result.initializers.get("B")!.shape, [4 * H]);
});

Deno.test("simplify() takes Y_h of one backward direction by Squeeze, without a bias", () => {
  const result = simplified(makeGraph(["N", T, I], [
    STEPS,
    node("LSTM", "t W R", "- h", { hidden_size: H, direction: "reverse" }),
    node("Squeeze", "h zero", "y"),
  ], { W: WEIGHTS.W, R: WEIGHTS.R, zero: int64(0) }));
  equal(operators(result), "LSTM Slice Flatten");
  equal(result.nodes[0]!.attributes.direction, "reverse");
});

Deno.test("simplify() splits both directions and joins what they give", () => {
  const result = simplified(makeGraph(["N", T, I], [
    STEPS,
    node("LSTM", "t W R B", "Y", { hidden_size: H, direction: "bidirectional" }),
    node("Transpose", "Y", "u", { perm: [0, 2, 1, 3] }),
    node("Reshape", "u shape", "s"),
    node("Transpose", "s", "y", { perm: [1, 0, 2] }),
  ], { ...BOTH, shape: int64(0, 0, -1) }));
  equal(operators(result), "LSTM LSTM Concat");
  equal(result.nodes.map(({ attributes }) => attributes.direction).join(" "), "forward reverse ");
});

Deno.test("simplify() gathers a state among those of layers and directions", () => {
  const result = simplified(makeGraph(["N", T, I], [
    STEPS,
    node("LSTM", "t W R B", "- h", { hidden_size: H, direction: "bidirectional" }),
    node("LSTM", "t W R B", "- g", { hidden_size: H, direction: "bidirectional" }),
    node("Concat", "h g", "all", { axis: 0 }),
    node("Gather", "all index", "s", { axis: 0 }),
    node("Gather", "all other", "u", { axis: 0 }),
    node("Sub", "s u", "y"),
  ], {
    ...BOTH,
    index: ndArray("int64", [], BigInt64Array.of(-3n)),
    other: ndArray("int64", [], BigInt64Array.of(2n)),
  }));
  // of four the second, the first LSTM's backwards, and the third, the second LSTM's forwards
  equal(operators(result), "LSTM Slice Flatten LSTM Slice Flatten Sub");
  deepEqual(
    result.nodes.map(({ attributes }) => attributes.direction).filter((d) => d !== undefined),
    ["reverse", "forward"],
  );
});

Deno.test("simplify() takes an LSTM that has its samples first", () => {
  for (const direction of ["forward", "bidirectional"]) {
    const initializers = direction === "forward" ? WEIGHTS : BOTH;
    const result = simplified(makeGraph(["N", T, I], [
      node("LSTM", "x W R B", "Y", { hidden_size: H, direction, layout: 1 }),
      node("Reshape", "Y shape", "y"),
    ], { ...initializers, shape: int64(0, 0, -1) }));
    equal(operators(result), direction === "forward" ? "LSTM" : "LSTM LSTM Concat");
  }
});

Deno.test("simplify() merges Transposes of three axes", () => {
  const result = simplified(makeGraph(["N", T, I], [
    node("Transpose", "x", "t", { perm: [1, 2, 0] }),
    node("Transpose", "t", "u", { perm: [2, 1, 0] }),
    node("Relu", "u", "y"),
  ]));
  equal(operators(result), "Transpose Relu");
  deepEqual(result.nodes[0]!.attributes.perm, [0, 2, 1]);
});

Deno.test("simplify() expands constants", () => {
  const graph = makeGraph(["N", T, I], [
    node("Expand", "c shape", "e"),
    node("Add", "x e", "y"),
  ], {
    c: ndArray("float32", [T, 1], Float32Array.of(1, 2, 3, 4)),
    shape: int64(1, T, I),
  });
  const { nodes, initializers } = simplify(graph);
  equal(nodes.length, 1);
  const expanded = initializers.get(nodes[0]!.inputs[1]!)!;
  deepEqual(expanded.shape, [1, T, I]);
  deepEqual([...expanded.data], [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
});

Deno.test("simplify() drops lengths and states that are the usual ones", () => {
  const batch = 2;
  const graph = makeGraph([batch, T, I], [
    STEPS,
    node("LSTM", "t W R B lengths zeros zeros", "- h", { hidden_size: H }),
    node("Squeeze", "h zero", "y"),
  ], {
    ...WEIGHTS,
    lengths: int64(T, T),
    zeros: ndArray("float32", [1, batch, H], new Float32Array(batch * H)),
    zero: int64(0),
  });
  deepEqual(simplify(graph).nodes[0]!.inputs, ["x", "W", "B"]);
});

Deno.test("simplify() takes a mean over steps from before a Transpose", () => {
  for (const opset of [13, 18]) {
    const graph = makeGraph(
      ["N", T, I],
      [
        STEPS,
        node("ReduceMean", opset < 18 ? "t" : "t axes", "y", {
          ...(opset < 18 && { axes: [0] }),
          keepdims: 0,
        }),
      ],
      { axes: int64(0) },
      { opset },
    );
    equal(operators(simplified(graph)), "ReduceMean");
  }
});

Deno.test("simplify() keeps a Transpose that what is left behind it would need", () => {
  const graph = makeGraph(
    ["N", T, I],
    [
      node("Transpose", "x", "t", { perm: [0, 2, 1] }),
      node("Gather", "t index", "g", { axis: 0 }),
      node("Relu", "t", "r"),
      node("ReduceMean", "r", "y", { axes: [2], keepdims: 0 }),
    ],
    { index: ndArray("int64", [], BigInt64Array.of(0n)) },
    { outputs: ["y", "g"] },
  );
  equal(operators(simplify(graph)), "Transpose Slice Squeeze Relu ReduceMean");
});

/** Attributes, inputs, outputs and readers of LSTMs that are refused, and why. */
const REFUSED: readonly (readonly [
  Record<string, Attribute>,
  string,
  string,
  readonly Node[],
  RegExp,
])[] = [
  [{ activations: ["Relu", "Tanh", "Tanh"] }, "", "Y", [], /activations are Relu, Tanh, Tanh, /],
  [{ clip: 3 }, "", "Y", [], /attribute clip is not supported/],
  [{ input_forget: 1 }, "", "Y", [], /input_forget is 1, expected 0/],
  [{}, " - - - p", "Y", [], /peepholes are not supported/],
  [{}, " short", "Y", [], /sequence_lens "short" must be a constant, all 4/],
  [{}, " - ones", "Y", [], /initial_h "ones" must be a constant, all 0/],
  [{}, "", "- - y", [], /its cell state "y" is read/],
  [{}, "", "y", [], /"y", with four axes, is an output of the network/],
  [{}, "", "- y", [], /"y", with an axis of directions, is an output/],
  [{}, "", "Y", [node("Relu", "Y", "y")], /"Y" of an LSTM may be read by a Squeeze/],
  [{ layout: 1 }, "", "- h", [], /Y_h of layout 1 is read/],
];

for (const [attributes, inputs, outputs, readers, message] of REFUSED) {
  Deno.test(`simplify() refuses an LSTM: ${message.source}`, () => {
    const reader = [...readers, node("Squeeze", "Y one", "y")].slice(0, 1);
    const nodes = [
      STEPS,
      node("LSTM", `t W R B${inputs}`, outputs, { hidden_size: H, ...attributes }, "cell"),
      ...(outputs === "Y" ? reader : []),
      ...(outputs === "- h" ? [node("Relu", "h", "y")] : []),
    ];
    const graph = makeGraph([2, T, I], nodes, {
      ...WEIGHTS,
      p: [1, 3 * H],
      one: int64(1),
      short: int64(T, T - 1),
      ones: ndArray("float32", [1, 2, H], new Float32Array(2 * H).fill(1)),
    });
    throws(() => simplify(graph), (error) => {
      ok(error instanceof UnsupportedError, String(error));
      ok(!error.message.includes("\n"));
      return message.test(error.message);
    });
  });
}

Deno.test("simplify() refuses to join directions that do not lie beside one another", () => {
  const graph = makeGraph([2, T, I], [
    STEPS,
    node("LSTM", "t W R B", "Y", { direction: "bidirectional" }),
    node("Reshape", "Y shape", "y"),
  ], { ...BOTH, shape: int64(T, 2, 2 * H) });
  throws(() => simplify(graph), /may be read by a Squeeze/);
});

for (
  const [changed, message] of [
    [{ W: [1, 4 * H, I + 1] }, /W is \[1, 8, 4\], expected \[1, 8, 3\]/],
    [{ R: [2, 4 * H, H] }, /R is \[2, 8, 2\], expected \[1, 8, 2\]/],
    [{ B: [1, 4 * H] }, /B is \[1, 8\], expected \[1, 16\]/],
  ] as const
) {
  Deno.test(`simplify() names an LSTM's ${message.source}`, () => {
    const nodes = [STEPS, node("LSTM", "t W R B", "Y"), node("Squeeze", "Y one", "y")];
    const graph = makeGraph([2, T, I], nodes, { ...WEIGHTS, ...changed, one: int64(1) });
    throws(() => simplify(graph), message);
  });
}
