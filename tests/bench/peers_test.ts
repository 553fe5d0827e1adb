import assert from "node:assert/strict";
import {
  BATCH,
  convolutionInputs,
  inputs,
  lstmInputs,
  NCHW_TO_NHWC,
  NHWC_TO_NCHW,
  transpose,
} from "../../bench/peers/cases.ts";
import { lstmReference } from "../_reference_lstm.ts";
import { convolutionElements, lstmElements, matmulElements } from "../../bench/peers/reference.ts";
import { missingLines, peerTable } from "../../bench/peers/table.ts";
import { parseArguments } from "../../bench/peers.ts";
import { UsageError } from "../../src/cli/flags.ts";
import {
  convSpec,
  referenceBackwardInput,
  referenceBackwardWeight,
  referenceForward,
} from "../_reference_conv.ts";

Deno.test("inputs() gives the numbers that pytorch/protocol.py gives", () => {
  // protocol.inputs(3, 7, 2.0) and protocol.inputs(100000, 1)[-1]
  assert.deepEqual([...inputs(3, 7, 2)], [
    1.8864811658859253,
    -0.11052927374839783,
    1.8872487545013428,
  ]);
  assert.equal(inputs(100000, 1).at(-1), 0.8243772387504578);
});

Deno.test("transpose() reorders axes and back", () => {
  const data = Float32Array.from({ length: 2 * 3 * 4 * 5 }, (_, i) => i);
  const last = transpose(data, [2, 3, 4, 5], NCHW_TO_NHWC);
  assert.equal(last[((1 * 4 + 2) * 5 + 3) * 3 + 1], ((1 * 3 + 1) * 4 + 2) * 5 + 3);
  assert.deepEqual(transpose(last, [2, 4, 5, 3], NHWC_TO_NCHW), data);
});

Deno.test("convolutionElements() agrees with the reference of the kernels' tests", () => {
  const convolution = { channels: 4, size: 8 };
  const { x, w, dy } = convolutionInputs(convolution);
  const spec = convSpec({ batch: BATCH, size: [8, 8], channels: [4, 4] });
  const last = (data: Float32Array, shape: readonly number[]) =>
    Float64Array.from(transpose(data, shape, NCHW_TO_NHWC));
  const [lx, lw, ldy] = [
    last(x, [BATCH, 4, 8, 8]),
    last(w, [4, 4, 3, 3]),
    last(dy, [BATCH, 4, 8, 8]),
  ];
  const first = (data: Float64Array, shape: readonly number[]) =>
    transpose(Float32Array.from(data), shape, NHWC_TO_NCHW);
  const expected = {
    y: first(referenceForward(spec, lx, lw), [BATCH, 8, 8, 4]),
    dx: first(referenceBackwardInput(spec, ldy, lw), [BATCH, 8, 8, 4]),
    dw: first(referenceBackwardWeight(spec, lx, ldy), [4, 3, 3, 4]),
  };
  for (const [name, elements] of Object.entries(convolutionElements(convolution))) {
    for (const [index, value] of elements) {
      const error = Math.abs(value - expected[name as keyof typeof expected][index]!);
      assert.ok(error < 1e-4, `${name}[${index}] differs by ${error}`); // the reference rounded to float32
    }
  }
});

Deno.test("lstmElements() are the LSTM's, and its gradients those of finite differences", () => {
  const lstm = { inputs: 2, hidden: 3, steps: 4, checked: [1] };
  const { x, w, b, dy } = lstmInputs(lstm);
  const of = (values: Record<"x" | "w" | "b", Float64Array>) =>
    lstmReference(
      { samples: 2, steps: 4, inputs: 2, hidden: 3, reverse: false },
      (n, t, i) => values.x[(n * 4 + t) * 2 + i]!,
      (row, i) => values.w[row * 5 + i]!,
      (row, k) => values.w[row * 5 + 2 + k]!,
      (row) => values.b[row]!,
    ).y.flat(2);
  const start = { x: Float64Array.from(x), w: Float64Array.from(w), b: Float64Array.from(b) };
  const elements = lstmElements(lstm);
  const y = of(start);
  assert.equal(elements.y.length, 12);
  for (const [i, value] of elements.y) assert.ok(Math.abs(value - y[i]!) < 1e-12);
  for (const [name, of_] of [["x", "dx"], ["w", "dw"], ["b", "db"]] as const) {
    for (const [i, value] of elements[of_]) {
      const loss = (step: number) => {
        const moved = { ...start, [name]: start[name].with(i, start[name][i]! + step) };
        return of(moved).reduce((sum, y, j) => sum + y * dy[j]!, 0);
      };
      const slope = (loss(1e-5) - loss(-1e-5)) / 2e-5;
      assert.ok(Math.abs(value - slope) < 1e-8, `${of_}[${i}] is ${value}, expected ${slope}`);
    }
  }
});

Deno.test("matmulElements() multiplies rows by columns", () => {
  const [[index, value] = [-1, NaN]] = matmulElements(1);
  assert.equal(index, 0);
  assert.equal(value, inputs(1, 4)[0]! * inputs(1, 5)[0]!);
});

Deno.test("peerTable() divides the peers' times by stilla's and shows gaps", () => {
  const time = (name: string, median: number) => (
    { case: name, metric: "time", unit: "ms", median, best: median, samples: 1 }
  );
  const rate = { ...time("a", 50), metric: "rate", unit: "GFLOP/s" };
  const table = peerTable([
    { peer: "stilla", rows: [time("a", 2), rate, time("b", 10)], missing: new Map() },
    { peer: "other", rows: [time("a", 5)], missing: new Map([["b", "too old"]]) },
    { peer: "silent", rows: [], missing: new Map() },
  ]);
  assert.deepEqual(table.split("\n").map((line) => line.replace(/ +/g, " ")), [
    "| case | peer | time | rate | time / stilla's |",
    "| ---- | ------ | ------: | -----------: | --------------: |",
    "| a | stilla | 2.00 ms | 50.0 GFLOP/s | |",
    "| | other | 5.00 ms | | 2.50 x |",
    "| b | stilla | 10.0 ms | | |",
    "| | other | none | | |",
  ]);
});

Deno.test("missingLines() says why a peer has no figure", () => {
  const result = { peer: "other", rows: [], missing: new Map([["b", "too old"]]) };
  assert.deepEqual(missingLines([result]), ["other: b: too old"]);
});

Deno.test("parseArguments() of bench/peers.ts has defaults and refuses what it does not know", () => {
  assert.deepEqual(parseArguments(["--only", "jax,tfjs", "--topics", "matmul"]), {
    data: undefined,
    samples: 11,
    peers: ["jax", "tfjs"],
    topics: ["matmul"],
    threads: 2,
    python: "/usr/bin/python3",
    out: undefined,
  });
  for (const words of ["--only jx", "--topics all", "--samples 0", "--threads x", "--sample 3"]) {
    assert.throws(
      () => parseArguments(words.split(" ")),
      (error) => error instanceof UsageError && !error.message.includes("\n"),
      words,
    );
  }
});
