import assert from "node:assert/strict";
import { binaryForward } from "../../kernels/elementwise.ts";
import { Tape } from "../../src/autograd/tape.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { fuseLayers } from "../../src/graph/layers.ts";
import type { ActivationQuantizer, OpContext, Trainable } from "../../src/ops/context.ts";
import { recordSteps } from "../../src/ops/ops.ts";
import { channelsLast } from "../_check_op.ts";
import { assertClose, forEachTarget, randomArray } from "../_gpu.ts";
import { numericGradient } from "../_reference.ts";
import { fakeQuantized } from "../_reference_quant.ts";
import { evaluate, fromArray } from "../graph/_evaluate.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const QUANTIZERS = {
  r: { scale: 0.3, zeroPoint: 0, quantMin: 0, quantMax: 7 },
  a: { scale: 0.7, zeroPoint: 2, quantMin: -4, quantMax: 3 },
  y: { scale: 0.4, zeroPoint: -1, quantMin: -3, quantMax: 2 },
} as const;
type Quantized = keyof typeof QUANTIZERS;

// Conv and Relu in one step, an Add whose residual is quantized, a pool with a quantizer of its own
const { graph, shapes } = channelsLast(makeGraph(["N", 3, 3, 4], [
  node("Conv", "x w b", "c", { pads: [1, 1, 1, 1] }),
  node("Relu", "c", "r"),
  node("Conv", "r v", "d"),
  node("Add", "d r", "a"),
  node("AveragePool", "a", "y", { kernel_shape: [2, 2] }),
], { w: [5, 3, 3, 3], b: [5], v: [5, 5, 1, 1] }));

/** How they quantize: fused into the layers; as steps of their own, for the zero points or for a part of each value. */
const MODES = [
  { name: "in its layers", zeroPoints: false },
  { name: "with zero points", zeroPoints: true },
  { name: "a part of each value", zeroPoints: true, part: { step: 2, steps: 8 } },
] as const;
type Mode = typeof MODES[number];

for (const mode of MODES) {
  forEachTarget(
    `recordSteps() quantizes by the straight-through definition, ${mode.name}`,
    async (device) => {
      const x = randomArray(5, 2 * 3 * 4 * 3), dy = randomArray(6, 2 * 2 * 3 * 5);
      const host = reference(x, dy, "part" in mode ? (mode.part.step + 1) / mode.part.steps : 1);
      const inference = await run(device, mode, x, undefined);
      const training = await run(device, mode, x, dy);
      // values of the grid, off by the rounding of scale * code
      assertClose(inference.y!, host.y!, { rtol: 1e-6, atol: 1e-6 }, "inference");
      assert.deepEqual(training.y, inference.y, "inference gives what training gives");
      const scales = ["r", "a", "y"].map((name) => `scale of ${name}`);
      const zeroPoints = ["r", "a", "y"].map((name) => `zero point of ${name}`);
      const wanted = ["dx", "dw", "db", "dv", ...scales, ...(mode.zeroPoints ? zeroPoints : [])];
      for (const name of wanted) {
        const expected = host[name]!;
        const largest = Math.max(...expected.map(Math.abs));
        assert.ok(largest > 0, name);
        // float32 sums of up to 120 products
        assertClose(training[name]!, expected, { rtol: 1e-4, atol: 1e-5 * largest }, name);
      }
    },
  );
}

/** Forward, and backward with the derivative of every quantizer replaced by its definition. */
function reference(
  x: Float64Array,
  dy: Float64Array,
  share: number,
): Record<string, Float64Array> {
  const result: Record<string, Float64Array> = {};
  const weights = (name: string) => fromArray(graph.initializers.get(name)!).data;
  const first = (at: Float64Array, w = weights("w"), b = weights("b")) =>
    part(["x"], { x: at, w, b }, "r");
  const second = (r: Float64Array, v = weights("v")) => part(["r"], { r, v }, "a");
  const pool = (a: Float64Array) => part(["a"], { a }, "y");
  const r = quantize("r", first(x), share), a = quantize("a", second(r.y), share);
  const y = quantize("y", pool(a.y), share);
  const keep = (name: string, { dscale, dzeroPoint }: typeof r, gradient: Float64Array) => {
    result[`scale of ${name}`] = sumChannels(dscale, gradient);
    result[`zero point of ${name}`] = sumChannels(dzeroPoint, gradient);
  };
  result.y = y.y;
  keep("y", y, dy);
  const dPool = times(dy, y.dx);
  const dA = numericGradient(pool, a.y, dPool);
  keep("a", a, dA);
  const dSecond = times(dA, a.dx);
  const dR = numericGradient((at) => second(at), r.y, dSecond);
  result.dv = numericGradient((v) => second(r.y, v), weights("v"), dSecond);
  keep("r", r, dR);
  const dFirst = times(dR, r.dx);
  result.dx = numericGradient((at) => first(at), x, dFirst);
  result.dw = numericGradient((w) => first(x, w), weights("w"), dFirst);
  result.db = numericGradient((b) => first(x, undefined, b), weights("b"), dFirst);
  return result;
}

/** The nodes from the first of `inputs` to `output`, on other arrays. */
function part(
  [input]: readonly [string],
  arrays: Record<string, Float64Array>,
  output: string,
): Float64Array {
  const initializers = new Map(graph.initializers);
  for (const [name, data] of Object.entries(arrays)) {
    const shape = graph.initializers.get(name)?.shape ?? shapes.get(name)!;
    initializers.set(name, { dtype: "float64", shape, data: Float64Array.from(data) });
  }
  const names = graph.nodes.map((n) => n.outputs[0]);
  const nodes = graph.nodes.slice(names.indexOf(input) + 1, names.indexOf(output) + 1);
  const piece: Graph = {
    ...graph,
    nodes,
    initializers,
    inputs: [{ name: input, dtype: "float32", shape: [] }],
  };
  const from = { shape: shapes.get(input)!, data: arrays[input]! };
  return evaluate(piece, from, "last").get(output)!.data;
}

function quantize(name: Quantized, u: Float64Array, share: number) {
  const { scale, zeroPoint, quantMin, quantMax } = QUANTIZERS[name];
  const all = Array.from(u, (value) => {
    const q = fakeQuantized(value, Math.fround(scale), zeroPoint, quantMin, quantMax);
    return {
      y: value + share * (q.y - value),
      dx: 1 - share + share * q.dx,
      dscale: share * q.dscale,
      dzeroPoint: share * q.dzeroPoint,
    };
  });
  const pick = (key: "y" | "dx" | "dscale" | "dzeroPoint") => Float64Array.from(all, (e) => e[key]);
  return {
    y: pick("y"),
    dx: pick("dx"),
    dscale: pick("dscale"),
    dzeroPoint: pick("dzeroPoint"),
  };
}

function times(a: Float64Array, b: Float64Array): Float64Array {
  return a.map((value, i) => value * b[i]!);
}

function sumChannels(terms: Float64Array, dy: Float64Array): Float64Array {
  const sums = new Float64Array(5);
  terms.forEach((term, i) => sums[i % 5]! += term * dy[i]!);
  return sums;
}

/** The engine: inference without dy, a training step's recording with it. */
async function run(
  device: Device,
  mode: Mode,
  x: Float64Array,
  dy: Float64Array | undefined,
): Promise<Record<string, Float32Array>> {
  const start = device.liveBytes;
  const owned: Tensor[] = [];
  const own = (tensor: Tensor): Tensor => {
    owned.push(tensor);
    return tensor;
  };
  const parameters = new Map<string, Trainable>();
  for (const [name, array] of graph.initializers) {
    const value = own(device.fromArray(array.shape, fromArray(array).data));
    parameters.set(name, { value, gradient: own(device.tensor(array.shape)) });
  }
  const { step, steps } = "part" in mode ? mode.part : { step: 0, steps: 1 };
  const state = own(device.fromArray([16], [step, ...Array<number>(15).fill(0)]));
  const partial = { share: { kind: "gradual", steps }, state } as const;
  const quantizers = new Map<string, ActivationQuantizer>();
  for (const [name, { scale, zeroPoint, quantMin, quantMax }] of Object.entries(QUANTIZERS)) {
    const qparams = own(device.fromArray([4], [scale, zeroPoint, quantMin, quantMax]));
    quantizers.set(name, {
      qparams,
      scaleSums: own(device.tensor([5])),
      ...(mode.zeroPoints && { zeroPointSums: own(device.tensor([5])) }),
      ...("part" in mode && { partial }),
    });
  }
  const plan = new Plan(device);
  const input = own(device.fromArray(shapes.get("x")!, x));
  const tape = new Tape(plan, (shape) => binaryForward({ operator: "add", a: shape, b: shape }));
  const context: OpContext = {
    recorder: plan,
    graph,
    shapes,
    values: new Map([["x", input]]),
    parameter: (name) => parameters.get(name)!,
    quantizer: (name) => quantizers.get(name),
    ...(dy && { tape }),
  };
  if (dy) tape.watch(input);
  recordSteps(context, fuseLayers(graph, new Set(quantizers.keys()), shapes));
  const y = context.values.get("y")!;
  if (dy) {
    tape.share(y, own(device.fromArray(y.shape, dy)));
    tape.backward();
  }
  plan.replay(2);
  const results: Record<string, Float32Array> = { y: await device.read(y) };
  if (dy) {
    results.dx = await device.read(tape.gradient(input)!);
    for (const [name, { gradient }] of parameters) {
      results[`d${name}`] = await device.read(gradient!);
    }
    for (const [name, { scaleSums, zeroPointSums }] of quantizers) {
      results[`scale of ${name}`] = await device.read(scaleSums!);
      if (zeroPointSums) results[`zero point of ${name}`] = await device.read(zeroPointSums);
    }
  }
  plan.dispose();
  for (const tensor of owned) device.release(tensor);
  assert.equal(device.liveBytes, start, "memory is given back");
  return results;
}
