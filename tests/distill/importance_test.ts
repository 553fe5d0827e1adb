import assert from "node:assert/strict";
import { RowSet } from "../../src/distill/frontier.ts";
import { fisherImportance, hessianImportance } from "../../src/distill/importance.ts";
import { partBetween, teacherValues } from "../../src/distill/inference.ts";
import { type Network, prepareNetwork } from "../../src/distill/network.ts";
import { DEFAULT_RECIPE } from "../../src/distill/recipe.ts";
import type { Session } from "../../src/distill/session.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Student } from "../../src/quant/student.ts";
import { assertClose, randomArray, testDevice } from "../_gpu.ts";
import { distillationReference } from "../_reference.ts";
import { derivative, sum } from "../_reference_quant.ts";
import { evaluate } from "../graph/_evaluate.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const ROWS = 5, BATCH = 2; // the last batch is smaller
const SHAPE = [4, 3, 5] as const, SIZE = 60; // of r, d and e
const PROBES = 4;

/** A residual network of one block: r, d = conv(r), e = d + r, a nonlinear head. */
function network(classes: number): Network {
  const graph = makeGraph(["N", 3, 4, 3], [
    node("Conv", "x w", "c", { pads: [1, 1, 1, 1] }),
    node("Relu", "c", "r"),
    node("Conv", "r v", "d"),
    node("Add", "d r", "e"),
    node("Sigmoid", "e", "s"),
    node("GlobalAveragePool", "s", "f"),
    node("Flatten", "f", "g"),
    node("Gemm", "g u", "y", { transB: 1 }),
  ], { w: [5, 3, 3, 3], v: [5, 5, 1, 1], u: [classes, 5] });
  return prepareNetwork(graph, { weightBits: 4, activationBits: 4, firstLastBits: 8 }, false);
}

Deno.test("fisherImportance() is the squared gradient of the divergence at the network's end", async () => {
  await withSession(network(3), async ({ session, rows, read }) => {
    // At d, while r is alive too, for the residual.
    const rest = partBetween(session.network.teacher, ["d", "r"], ["y"]);
    const values = ["d", "r"].map((_, i) =>
      [10 + i, 20 + i].map((seed) => randomArray(seed, ROWS * SIZE))
    );
    const [student, teacher] = [0, 1].map((side) =>
      new Map(["d", "r"].map((name, i) => [name, rows(SHAPE, values[i]![side]!)]))
    );
    const found = await fisherImportance(session, rest, student!, teacher!);
    const of = (data: Float64Array, row: number) => data.slice(row * SIZE, (row + 1) * SIZE);
    const expected: number[] = [];
    for (let row = 0; row < ROWS; row++) {
      const [d, r] = values.map((pair) => of(pair[0]!, row)) as [Float64Array, Float64Array];
      const wanted = host(session.network, ["d", of(values[0]![1]!, row)], [
        "r",
        of(values[1]![1]!, row),
      ]);
      const divergence = (at: Float64Array) =>
        distillationReference(wanted, host(session.network, ["d", at], ["r", r]), 3, 1)[0]!;
      d.forEach((value, i) => {
        const slope = derivative((moved) => divergence(d.with(i, moved)), value);
        expected.push((slope / BATCH) ** 2); // the loss is the mean over the batch
      });
    }
    const actual = await read(found.rows);
    // squares of float32 gradients, and of central differences
    const scale = Math.max(...expected);
    assertClose(actual, expected, { rtol: 1e-3, atol: 1e-5 * scale }, "importance");
    assertClose([found.mean], [sum(expected) / expected.length], { rtol: 1e-3, atol: 0 }, "mean");
    found.rows[Symbol.dispose]();
    for (const set of [...student!.values(), ...teacher!.values()]) set[Symbol.dispose]();
  });
});

const TENSORS = ["x", "r", "e", "y"] as const;

Deno.test("hessianImportance() of one output is the largest channel's squared gradient", async () => {
  await withSession(network(1), async ({ session, rows, read }) => {
    const x = randomArray(30, ROWS * 36);
    const set = rows([4, 3, 3], x);
    const part = partBetween(session.network.teacher, ["x"], ["y"]);
    const found = await hessianImportance(session, part, new Map([["x", set]]), TENSORS);
    for (const name of TENSORS) {
      // A projection of one output is the output or its negative.
      const expected = Array.from(
        { length: ROWS },
        (_, row) =>
          PROBES *
          largestChannel(jacobian(session.network, name, x.slice(row * 36, (row + 1) * 36))[0]!),
      );
      const { rows: sums, mean } = found.get(name)!;
      // squares of float32 gradients, and of central differences
      assertClose(await read(sums), expected, { rtol: 1e-3, atol: 0 }, name);
      assertClose([mean], [sum(expected) / ROWS], { rtol: 1e-3, atol: 0 }, `mean of ${name}`);
      assert.ok(name === "y" || new Set(expected).size === ROWS, "samples differ");
      sums[Symbol.dispose]();
    }
    set[Symbol.dispose]();
  });
});

Deno.test("hessianImportance() draws random signs for every output of every sample", async () => {
  await withSession(network(2), async ({ session, rows, read }) => {
    const x = randomArray(31, ROWS * 36);
    const set = rows([4, 3, 3], x);
    const part = partBetween(session.network.teacher, ["x"], ["y"]);
    const found = (await hessianImportance(session, part, new Map([["x", set]]), ["e"])).get("e")!;
    const counts = Array.from(await read(found.rows), (value, row) => {
      const [a, b] = jacobian(session.network, "e", x.slice(row * 36, (row + 1) * 36));
      const same = largestChannel(a!.map((v, i) => v + b![i]!));
      const opposite = largestChannel(a!.map((v, i) => v - b![i]!));
      const equal = [0, 1, 2, 3, 4].findIndex((count) => {
        const expected = count * same + (PROBES - count) * opposite;
        return Math.abs(value / expected - 1) < 1e-3; // as above
      });
      assert.ok(equal >= 0, `${value} of sample ${row} is no sum of ${same} and ${opposite}`);
      return equal;
    });
    assert.ok(new Set(counts).size > 1, `equal signs: ${counts}`);
    found.rows[Symbol.dispose]();
    set[Symbol.dispose]();
  });
});

/** The gradients of every output with respect to a tensor, for one sample. */
function jacobian(net: Network, tensor: string, x: Float64Array): Float64Array[] {
  const start = host(net, ["x", x], undefined, tensor);
  const classes = host(net, [tensor, start]).length;
  return Array.from(
    { length: classes },
    (_, k) =>
      start.map((value, i) =>
        derivative((moved) => host(net, [tensor, start.with(i, moved)])[k]!, value)
      ),
  );
}

/** Of a gradient with the channels last: 3 of x, 5 inside, at the end each output by itself. */
function largestChannel(gradient: Float64Array): number {
  const channels = gradient.length === 36 ? 3 : gradient.length === SIZE ? 5 : gradient.length;
  const sums = new Float64Array(channels);
  gradient.forEach((value, i) => sums[i % channels]! += value * value);
  return Math.max(...sums);
}

/** The network in float64 from one tensor on (and another that lies before it), for one sample. */
function host(
  { teacher }: Network,
  [name, data]: readonly [string, Float64Array],
  other?: readonly [string, Float64Array],
  until = "y",
): Float64Array {
  const { graph, shapes } = teacher;
  if (name === until) return data;
  const nodes = graph.nodes.slice(graph.nodes.findIndex(({ outputs }) => outputs[0] === name) + 1);
  const initializers = new Map(graph.initializers);
  if (other) {
    const [second, values] = other;
    initializers.set(second, {
      dtype: "float64",
      shape: shapes.get(second)!,
      data: Float64Array.from(values),
    });
  }
  const inputs = [{ name, dtype: "float32" as const, shape: [] }];
  const from = { shape: shapes.get(name)!, data };
  return evaluate({ ...graph, nodes, initializers, inputs }, from, "last").get(until)!.data;
}

interface Tools {
  readonly session: Session;
  readonly rows: (shape: readonly number[], data: Float64Array) => RowSet;
  readonly read: (set: RowSet) => Promise<Float32Array>;
}

async function withSession(net: Network, test: (tools: Tools) => Promise<void>): Promise<void> {
  const device: Device = await testDevice();
  const start = device.liveBytes;
  const rows = (shape: readonly number[], data: Float64Array) => {
    const set = new RowSet(device, ROWS, shape, "rows");
    set.upload(0, Float32Array.from(data));
    return set;
  };
  {
    using teacher = teacherValues(device, net);
    using none = new RowSet(device, 1, [1], "no samples");
    const session: Session = {
      device,
      network: net,
      student: new Student([], []),
      teacher,
      samples: { train: none, clean: 1, heldOut: none, black: new Float32Array(1) },
      recipe: DEFAULT_RECIPE,
      batch: BATCH,
      frontier: { residence: "gpu", compact: false },
      report: () => {},
      compiling: {},
      rolledBack: new Set(),
    };
    const read = async (set: RowSet) => {
      const all = device.tensor([ROWS, ...set.rowShape]);
      set.copyOut(0, ROWS, all);
      const values = await device.read(all);
      device.release(all);
      return values;
    };
    await test({ session, rows, read });
  }
  assert.equal(device.liveBytes, start, "memory is given back");
}
