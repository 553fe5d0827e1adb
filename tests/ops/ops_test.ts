import assert from "node:assert/strict";
import { UnsupportedError } from "../../src/core/errors.ts";
import { fuseLayers } from "../../src/graph/layers.ts";
import type { Graph } from "../../src/graph/graph.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import type { OpContext } from "../../src/ops/context.ts";
import { executableOperators, recordSteps } from "../../src/ops/ops.ts";
import { channelsLast, checkOp, type CheckOptions } from "../_check_op.ts";
import { assertClose, forEachTarget, randomArray, testDevice } from "../_gpu.ts";
import { lstmReference } from "../_reference_lstm.ts";
import { clamp, roundTiesToEven } from "../_reference_quant.ts";
import { activationReference, logSoftmaxReference } from "../_reference.ts";
import { batchNormInputs, convBatchNorm, int64, makeGraph, node } from "../graph/_graphs.ts";

const IMAGE = ["N", 3, 5, 4];

/** One LSTM as graph/lstm.ts has it. */
function lstm(
  direction: "forward" | "reverse",
  { steps, inputs, hidden, bias = false }: {
    readonly steps: number;
    readonly inputs: number;
    readonly hidden: number;
    readonly bias?: boolean;
  },
): Graph {
  return makeGraph(
    ["N", steps, inputs],
    [node("LSTM", bias ? "x w b" : "x w", "y", { direction })],
    { w: [4 * hidden, inputs + hidden], ...(bias && { b: [4 * hidden] }) },
  );
}

/** Name, graph and options of each check; both kernel families run all of them. */
const CASES: readonly (readonly [string, Graph, CheckOptions?])[] = [
  [
    "Conv, stride, pads and bias",
    makeGraph(IMAGE, [node("Conv", "x w b", "y", { strides: [2, 1], pads: [1, 1, 0, 1] })], {
      w: [5, 3, 3, 3],
      b: [5],
    }),
  ],
  [
    "Conv, group",
    makeGraph(["N", 4, 4, 3], [node("Conv", "x w", "y", { group: 2, pads: [1, 0, 1, 0] })], {
      w: [6, 2, 3, 1],
    }),
  ],
  [
    "Conv, depthwise",
    makeGraph(
      ["N", 5, 5, 4],
      [node("Conv", "x w b", "y", { group: 5, strides: [2, 2], pads: [1, 1, 1, 1] })],
      { w: [5, 1, 3, 3], b: [5] },
    ),
  ],
  [
    "Gemm",
    makeGraph(["N", 7], [node("Gemm", "x w b", "y", { transB: 1 })], { w: [5, 7], b: [5] }),
  ],
  [
    "Gemm of sequences [N, T, C], Relu",
    makeGraph(["N", 3, 6], [
      node("Gemm", "x w b", "g", { transB: 1, rank: 3 }),
      node("Relu", "g", "y"),
    ], { w: [5, 6], b: [5] }),
  ],
  // units that fill vec4 and units that do not, one step, an input behind another layer
  ["LSTM", lstm("forward", { steps: 5, inputs: 3, hidden: 8, bias: true })],
  ["LSTM, reverse", lstm("reverse", { steps: 4, inputs: 6, hidden: 5, bias: true })],
  // 16 units and 16 rows: the gradient of the weights lies where products lay before
  ["LSTM of one step without bias", lstm("forward", { steps: 1, inputs: 4, hidden: 16 })],
  [
    "LSTM on LSTM, final state, Gemm",
    makeGraph(["N", 3, 2], [
      node("LSTM", "x v", "a", { direction: "forward" }),
      node("LSTM", "a w b", "s", { direction: "reverse" }),
      node("Slice", "s starts ends axes", "p"),
      node("Flatten", "p", "f"),
      node("Gemm", "f u", "y", { transB: 1 }),
    ], {
      v: [12, 5],
      w: [16, 7],
      b: [16],
      u: [2, 4],
      starts: int64(0),
      ends: int64(1),
      axes: int64(1),
    }),
  ],
  [
    "Flatten and Gemm, Tanh",
    makeGraph(["N", 3, 2, 2], [
      node("Flatten", "x", "f"),
      node("Gemm", "f w b", "g", { transB: 1 }),
      node("Tanh", "g", "y"),
    ], { w: [5, 12], b: [5] }),
  ],
  ["Conv, batch norm, residual, Relu: live", residualBlock(), { live: true }],
  ["Conv, batch norm, residual, Relu: frozen", residualBlock()],
  [
    "two Convs and the input in one sum: a tensor used three times",
    makeGraph(["N", 4, 3, 3], [
      node("Conv", "x v", "a"),
      node("Relu", "x", "r"),
      node("Conv", "x w", "b"),
      node("Add", "a b", "s"),
      node("Add", "s r", "t"),
      node("Add", "t x", "u"),
      node("Mul", "u u", "y"),
    ], { v: [4, 4, 1, 1], w: [4, 4, 1, 1] }),
  ],
  ["Add of a tensor to itself", makeGraph(["N", 5], [node("Add", "x x", "y")])],
  [
    "MaxPool",
    makeGraph(IMAGE, [
      node("MaxPool", "x", "y", { kernel_shape: [3, 2], strides: [2, 1], pads: [1, 0, 1, 1] }),
    ]),
  ],
  [
    "AveragePool",
    makeGraph(IMAGE, [
      node("AveragePool", "x", "y", { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] }),
    ]),
  ],
  [
    "AveragePool with its padding",
    makeGraph(IMAGE, [
      node("AveragePool", "x", "y", {
        kernel_shape: [2, 3],
        pads: [1, 1, 0, 1],
        count_include_pad: 1,
      }),
    ]),
  ],
  ["GlobalAveragePool", makeGraph(IMAGE, [node("GlobalAveragePool", "x", "y")])],
  [
    "ReduceMean to [N, C], Gemm",
    makeGraph(IMAGE, [
      node("ReduceMean", "x", "m", { axes: [2, 3], keepdims: 0 }),
      node("Gemm", "m w", "y", { transB: 1 }),
    ], { w: [2, 3] }),
  ],
  [
    "Concat of channels, one input twice",
    makeGraph(["N", 3, 2, 3], [
      node("Relu", "x", "r"),
      node("Concat", "x r x", "y", { axis: 1 }),
    ]),
  ],
  [
    "Slice of an image",
    makeGraph(["N", 5, 4, 5], [node("Slice", "x starts ends axes steps", "y")], {
      starts: int64(1, 3, 0),
      ends: int64(4, -100, 5),
      axes: int64(1, 2, 3),
      steps: int64(1, -1, 2),
    }),
    // the evaluator only steps forward: y[n, h, w, c] = x[n, 3 - h, 2 w, c + 1]
    {
      reference: ({ data }) =>
        Float64Array.from({ length: 2 * 4 * 3 * 3 }, (_, i) => {
          const c = i % 3, w = Math.floor(i / 3) % 3, h = Math.floor(i / 9) % 4;
          return data[((Math.floor(i / 36) * 4 + 3 - h) * 5 + 2 * w) * 5 + c + 1]!;
        }),
    },
  ],
  [
    "Slice of features",
    makeGraph(["N", 9], [node("Slice", "x starts ends axes", "y")], {
      starts: int64(2),
      ends: int64(7),
      axes: int64(1),
    }),
  ],
  [
    "Slice of a sequence [N, T, C]",
    makeGraph(["N", 4, 5], [node("Slice", "x starts ends axes", "y")], {
      starts: int64(1, 2),
      ends: int64(4, 5),
      axes: int64(1, 2),
    }),
  ],
  [
    "Pad",
    makeGraph(["N", 3, 2, 3], [node("Pad", "x pads", "y")], {
      pads: int64(0, 1, 0, 2, 0, 0, 1, 1),
    }),
  ],
  [
    "Reshape to [N, C] and back, Relu between",
    makeGraph(["N", 5, 1, 1], [
      node("Reshape", "x flat", "f"),
      node("Relu", "f", "r"),
      node("Reshape", "r image", "i"),
      node("Add", "i x", "y"),
    ], { flat: int64(0, -1), image: int64(0, 5, 1, 1) }),
  ],
  [
    "Transpose",
    makeGraph(["N", 3, 4], [node("Transpose", "x", "y", { perm: [0, 2, 1] })]),
  ],
  [
    "Add of a constant per channel",
    makeGraph(IMAGE, [node("Add", "x c", "y")], { c: [3, 1, 1] }),
    { train: ["c"] },
  ],
  [
    "Sub from a constant",
    makeGraph(["N", 5], [node("Sub", "c x", "y")], { c: [5] }),
    { train: ["c"] },
  ],
  [
    "Mul of an image by its means (squeeze and excitation)",
    makeGraph(IMAGE, [
      node("GlobalAveragePool", "x", "m"),
      node("Sigmoid", "m", "s"),
      node("Mul", "x s", "y"),
    ]),
  ],
  [
    "Div",
    makeGraph(["N", 5], [node("Sigmoid", "x", "s"), node("Div", "x s", "y")]),
  ],
  ["Softmax", makeGraph(["N", 10], [node("Softmax", "x", "y", { axis: -1 })])],
  [
    "LogSoftmax",
    makeGraph(["N", 10], [node("LogSoftmax", "x", "y", { axis: 1 })]),
    { reference: (x) => logSoftmaxReference(x.data as Float64Array<ArrayBuffer>, 10) },
  ],
  ...activations(),
];

// One Gemm is enough for the slow compilation of its GPU kernels.
const SOFTWARE_ONLY = new Set(["Flatten and Gemm, Tanh", "ReduceMean to [N, C], Gemm"]);

for (const [name, graph, options] of CASES) {
  const check = (device: Device) => checkOp(device, graph, options);
  if (SOFTWARE_ONLY.has(name)) {
    Deno.test(`recordSteps() ${name}`, async () => await check(await testDevice()));
  } else {
    forEachTarget(`recordSteps() ${name}`, check);
  }
}

Deno.test("recordSteps() names an operator that it does not know", async () => {
  const device = await testDevice();
  using plan = new Plan(device);
  const { graph, shapes } = channelsLast(
    makeGraph(["N", 4, 2, 2], [node("GlobalMaxPool", "x", "y")]),
  );
  const x = plan.tensor([2, 2, 2, 4], "x");
  const context = {
    recorder: plan,
    graph,
    shapes,
    values: new Map([["x", x]]),
    parameter: (name: string): never => assert.fail(name),
    quantizer: () => undefined,
  };
  assert.throws(
    () => recordSteps(context, fuseLayers(graph, new Set(), shapes)),
    (error) =>
      error instanceof UnsupportedError && error.opType === "GlobalMaxPool" &&
      error.message.includes("supported operators: Add, AveragePool"),
  );
});

Deno.test("executableOperators() are sorted and hold layers, activations and the rest", () => {
  const names = executableOperators();
  assert.deepEqual(names, names.toSorted());
  for (const name of ["Conv", "Gemm", "Relu", "Softmax", "Reshape"]) assert(names.includes(name));
});

function residualBlock(): Graph {
  const name = "bn";
  return makeGraph(["N", 5, 3, 4], [
    node("Conv", "x bn.weight cb", "c", { pads: [1, 1, 1, 1] }),
    node("BatchNormalization", batchNormInputs("c", name), "n", { epsilon: 1e-3 }),
    node("Add", "n x", "s"),
    node("Relu", "s", "y"),
  ], { ...convBatchNorm(name, [5, 5, 3, 3]), cb: [5] });
}

/** Each activation alone. */
function activations(): (readonly [string, Graph, CheckOptions?])[] {
  const list = [
    ["Relu", {}, { kind: "relu" }],
    ["Clip", { min: -0.5, max: 1 }, { kind: "clip", min: -0.5, max: 1 }],
    ["LeakyRelu", { alpha: 0.2 }, { kind: "leakyRelu", alpha: 0.2 }],
    ["Sigmoid", {}, { kind: "sigmoid" }],
    ["HardSigmoid", {}, { kind: "hardSigmoid", alpha: 0.2, beta: 0.5 }],
    ["HardSwish", {}, { kind: "hardSwish" }],
    ["Tanh", {}, { kind: "tanh" }],
    ["Gelu", {}, { kind: "gelu" }],
  ] as const;
  return list.map(([opType, attributes, activation]): [string, Graph, CheckOptions] => [
    opType,
    // Clip takes its bounds as attributes up to opset 10
    makeGraph(["N", 21], [node(opType, "x", "y", attributes)], {}, { opset: 10 }),
    {
      reference: (x) => Float64Array.from(x.data, (v) => activationReference(activation, v)),
      scale: 2,
    },
  ]);
}

Deno.test("recordSteps() refuses a mean over the channels of sequences", async () => {
  const graph = makeGraph(["N", 3, 4], [node("ReduceMean", "x", "y", { axes: [2], keepdims: 0 })]);
  await assert.rejects(
    checkOp(await testDevice(), graph),
    /axes are \[2\] of a tensor of rank 3; only height and width, or steps/,
  );
});

forEachTarget("recordSteps() quantizes states at run time", async (device) => {
  const [steps, inputs, hidden] = [6, 3, 5];
  const { graph, shapes } = channelsLast(
    lstm("reverse", { steps, inputs, hidden, bias: true }),
  );
  using plan = new Plan(device);
  const data = randomArray(4, 2 * steps * inputs);
  const arrays = [...graph.initializers].map(([name, { shape, data }]) =>
    [name, device.fromArray(shape, data as Float32Array)] as const
  );
  const x = device.fromArray([2, steps, inputs], data);
  const parameters = new Map(arrays);
  const context: OpContext = {
    recorder: plan,
    graph,
    shapes,
    values: new Map([["x", x]]),
    parameter: (name) => ({ value: parameters.get(name)! }),
    quantizer: () => undefined,
    dynamicLayers: new Set([graph.nodes[0]!.name]),
  };
  recordSteps(context, fuseLayers(graph, new Set(), shapes));
  plan.replay();
  const found = await device.read(context.values.get("y")!);
  const size = steps * inputs;
  const read = [0, 1].map((n) => onRange([...data.subarray(n * size, (n + 1) * size)]));
  const [w, b] = ["w", "b"].map((name) => graph.initializers.get(name)!.data as Float32Array);
  const columns = inputs + hidden;
  const { y } = lstmReference(
    { samples: 2, steps, inputs, hidden, reverse: true },
    (n, t, i) => read[n]![t * inputs + i]!,
    (row, i) => w![row * columns + i]!,
    (row, k) => w![row * columns + inputs + k]!,
    (row) => b![row]!,
    onRange,
  );
  // A state on the border of two codes would be off by a step: these are not.
  assertClose(found, y.flat(2), { rtol: 0, atol: 1e-5 }, "y");
  for (const tensor of [x, ...parameters.values()]) device.release(tensor);
});

/** DynamicQuantizeLinear and DequantizeLinear in float64. */
function onRange(values: readonly number[]): number[] {
  const low = Math.min(0, ...values), high = Math.max(0, ...values);
  const scale = (high - low) / 255 || 1;
  const zero = roundTiesToEven(-low / scale);
  return values.map((value) =>
    (clamp(roundTiesToEven(value / scale) + zero, 0, 255) - zero) * scale
  );
}
