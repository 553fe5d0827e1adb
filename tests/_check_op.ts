// Checks an operator as the engine runs it: forward as in inference (fused) and as in training, and every gradient by
// finite differences of a float64 evaluation of the same graph.
import assert from "node:assert/strict";
import { binaryForward } from "../kernels/elementwise.ts";
import { Tape } from "../src/autograd/tape.ts";
import type { NdArray } from "../src/core/nd_array.ts";
import type { Device } from "../src/gpu/device.ts";
import { Plan } from "../src/gpu/plan.ts";
import type { Tensor } from "../src/gpu/tensor.ts";
import { numberAttribute } from "../src/graph/attributes.ts";
import { type ChannelsLastGraph, toChannelsLast } from "../src/graph/channels_last.ts";
import { foldBatchNorm } from "../src/graph/fold_batch_norm.ts";
import type { Graph } from "../src/graph/graph.ts";
import { isLayer } from "../src/graph/layer_kinds.ts";
import { fuseLayers } from "../src/graph/layers.ts";
import { inferShapes } from "../src/graph/shape_inference.ts";
import type { LiveBatchNorm, OpContext, Trainable } from "../src/ops/context.ts";
import { recordSteps } from "../src/ops/ops.ts";
import { assertClose, randomArray } from "./_gpu.ts";
import { inner } from "./_reference.ts";
import { evaluate, type Values } from "./graph/_evaluate.ts";

/** Arrays by name, float64. */
type Arrays = Map<string, Values>;

/** What is special about an operator. */
export interface CheckOptions {
  /** Initializers that have gradients besides those of layers and batch norms. */
  readonly train?: readonly string[];
  /** Whether batch norms use the statistics of the batch. */
  readonly live?: boolean;
  /** The operator in float64, where the evaluator of graphs does not know it. */
  readonly reference?: (x: Values) => Float64Array;
  /** Multiplies the random input. */
  readonly scale?: number;
}

/**
 * Fails unless the engine computes the graph and its gradients as float64 does.
 *
 * @param device where to run
 * @param graph from `x` to one output, channels first, as ONNX has it
 * @param options what is special
 */
export async function checkOp(
  device: Device,
  graph: Graph,
  options: CheckOptions = {},
): Promise<void> {
  const start = device.liveBytes;
  const source = channelsLast(graph);
  const xShape = source.shapes.get("x")!;
  const x: Values = {
    shape: xShape,
    data: randomArray(100, sizeOf(xShape), { scale: options.scale ?? 1 }),
  };
  const forward = (changed: Arrays): Float64Array =>
    options.reference?.(changed.get("x") ?? x) ??
      host(source.graph, changed.get("x") ?? x, changed, options.live ?? false);
  const expected = forward(new Map());
  const scale = largest(expected);
  // float32 sums of up to some hundred products, and two or three float32 functions
  const tolerance = { rtol: 1e-5, atol: 1e-5 * scale };

  const folded = options.live ? undefined : channelsLast(foldBatchNorm(graph));
  if (folded) assertClose(await infer(device, folded, x), expected, tolerance, "inference");

  const trained = await train(device, source, x, options);
  assertClose(trained.y, expected, tolerance, "training");
  for (const [name, gradient] of trained.gradients) {
    const at = name === "x" ? x : values(source.graph.initializers.get(name)!);
    const numeric = differences(
      at,
      (moved) => inner(forward(new Map([[name, moved]])), trained.dy),
    );
    const picked = Array.from(numeric.keys(), (i) => gradient[i]!);
    const wanted = [...numeric.values()];
    assert.equal(gradient.length, at.data.length, name);
    assert(largest(wanted) > 0, `the gradient of ${name} is zero everywhere`);
    const close = { rtol: 1e-4, atol: 3e-5 * largest(wanted) };
    assertClose(picked, wanted, close, `gradient of ${name}`);
  }
  assert.equal(device.liveBytes, start, "memory is given back");
}

/** Channels-last form of a network for a batch of two. */
export function channelsLast(graph: Graph): ChannelsLastGraph {
  return toChannelsLast(graph, inferShapes(graph, 2));
}

async function infer(device: Device, source: ChannelsLastGraph, x: Values): Promise<Float32Array> {
  const owned = new Map<string, Tensor>();
  using plan = new Plan(device);
  const input = device.fromArray(x.shape, x.data, { label: "x" });
  const context = contextOf(plan, source, input, (name) => ({
    value: uploaded(device, owned, source.graph, name),
  }));
  recordSteps(context, fuseLayers(source.graph, new Set(), source.shapes));
  plan.replay(2);
  const y = await device.read(context.values.get(outputOf(source.graph))!);
  for (const tensor of [input, ...owned.values()]) device.release(tensor);
  return y;
}

/** Result and gradients of a training step's recording, run twice so that it meets its own leftovers. */
async function train(
  device: Device,
  source: ChannelsLastGraph,
  x: Values,
  { train = [], live = false }: CheckOptions,
): Promise<{
  y: Float32Array;
  dy: Float64Array;
  gradients: Map<string, Float32Array>;
}> {
  const { graph } = source;
  const owned = new Map<string, Tensor>();
  const gradients = new Map<string, Tensor>();
  const trainable = (name: string): Trainable => {
    const value = uploaded(device, owned, graph, name);
    if (!gradients.has(name)) gradients.set(name, device.tensor(value.shape));
    return { value, gradient: gradients.get(name)! };
  };
  const weights = new Set<string>();
  const batchNorms = new Map<string, LiveBatchNorm>();
  const state = device.fromArray([16], [0, 0, 0, 0, live ? 1 : 0, ...Array(11).fill(0)]);
  let bias: string | undefined;
  for (const node of graph.nodes) {
    if (isLayer(node)) {
      node.inputs.slice(1).forEach((name) => weights.add(name));
      bias = node.inputs[2];
    }
    if (node.opType !== "BatchNormalization") continue;
    const [gamma, beta, mean, variance] = node.inputs.slice(1) as [string, string, string, string];
    const shift = bias === undefined ? undefined : graph.initializers.get(bias)!.data;
    const running = values(graph.initializers.get(mean)!).data.map((value, c) =>
      value - Number(shift?.[c] ?? 0)
    );
    owned.set(mean, device.fromArray([running.length], running));
    if (bias !== undefined) weights.delete(bias); // has no effect, or its gradient is beta's
    batchNorms.set(node.name, {
      gamma: trainable(gamma),
      beta: trainable(beta),
      runningMean: owned.get(mean)!,
      runningVariance: uploaded(device, owned, graph, variance),
      epsilon: numberAttribute(node, "epsilon", 1e-5),
      momentum: 0.1,
      state,
    });
  }
  const plan = new Plan(device);
  const input = device.fromArray(x.shape, x.data, { label: "x" });
  const tape = new Tape(plan, (shape) => binaryForward({ operator: "add", a: shape, b: shape }));
  tape.watch(input);
  for (const name of train) tape.watch(uploaded(device, owned, graph, name));
  const context: OpContext = {
    ...contextOf(
      plan,
      source,
      input,
      (name) =>
        weights.has(name) ? trainable(name) : { value: uploaded(device, owned, graph, name) },
    ),
    batchNorm: (name) => batchNorms.get(name),
    tape,
  };
  recordSteps(context, fuseLayers(graph, new Set(), source.shapes));
  const y = context.values.get(outputOf(graph))!;
  const dy = randomArray(101, sizeOf(y.shape));
  const upstream = device.fromArray(y.shape, dy, { label: "dy" });
  tape.share(y, upstream);
  tape.backward();
  plan.replay(2);
  const results = new Map<string, Float32Array>();
  for (const [name, tensor] of gradients) results.set(name, await device.read(tensor));
  for (const name of ["x", ...train]) {
    const leaf = name === "x" ? input : owned.get(name)!;
    const gradient = tape.gradient(leaf);
    assert(gradient !== undefined, `there is no gradient of ${name}`);
    results.set(name, await device.read(gradient));
  }
  const result = { y: await device.read(y), dy, gradients: results };
  plan.dispose();
  for (const tensor of [...owned.values(), ...gradients.values(), input, upstream, state]) {
    device.release(tensor);
  }
  return result;
}

function contextOf(
  plan: Plan,
  { graph, shapes }: ChannelsLastGraph,
  x: Tensor,
  parameter: OpContext["parameter"],
): OpContext {
  return {
    recorder: plan,
    graph,
    shapes,
    values: new Map([["x", x]]),
    parameter,
    quantizer: () => undefined,
  };
}

/** The tensor of an initializer, uploaded once. */
function uploaded(device: Device, owned: Map<string, Tensor>, graph: Graph, name: string): Tensor {
  const present = owned.get(name);
  if (present !== undefined) return present;
  const { shape, data } = values(graph.initializers.get(name)!);
  const tensor = device.fromArray(shape.length === 0 ? [1] : shape, data, { label: name });
  owned.set(name, tensor);
  return tensor;
}

/** The graph in float64, with some arrays changed; batch norms on the batch's statistics when live. */
function host(graph: Graph, x: Values, changed: Arrays, live: boolean): Float64Array {
  const initializers = new Map<string, NdArray>();
  const use = (name: string, { shape, data }: Values) =>
    initializers.set(name, { dtype: "float64", shape, data: Float64Array.from(data) });
  for (const [name, array] of graph.initializers) use(name, changed.get(name) ?? values(array));
  const copy = { ...graph, initializers };
  for (const node of live ? graph.nodes : []) {
    if (node.opType !== "BatchNormalization") continue;
    const input = evaluate(copy, x, "last").get(node.inputs[0]!)!;
    const channels = input.shape.at(-1)!, rows = input.data.length / channels;
    const mean = new Float64Array(channels), variance = new Float64Array(channels);
    input.data.forEach((value, i) => mean[i % channels]! += value / rows);
    input.data.forEach((value, i) =>
      variance[i % channels]! += (value - mean[i % channels]!) ** 2 / rows
    );
    use(node.inputs[3]!, { shape: [channels], data: mean });
    use(node.inputs[4]!, { shape: [channels], data: variance });
  }
  return evaluate(copy, x, "last").get(outputOf(graph))!.data;
}

/** Central differences by element: all of a small array, every so manieth of a big one. */
function differences(at: Values, loss: (moved: Values) => number): Map<number, number> {
  const step = 1e-5, result = new Map<number, number>();
  const stride = Math.max(1, Math.floor(at.data.length / 24));
  for (let i = 0; i < at.data.length; i += stride) {
    const move = (by: number) => loss({ ...at, data: at.data.with(i, at.data[i]! + by) });
    result.set(i, (move(step) - move(-step)) / (2 * step));
  }
  return result;
}

function values(array: NdArray): Values {
  return { shape: array.shape, data: Float64Array.from(array.data as ArrayLike<number>, Number) };
}

function outputOf(graph: Graph): string {
  return graph.outputs[0]!.name;
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function largest(data: ArrayLike<number>): number {
  return Array.from(data).reduce((max, value) => Math.max(max, Math.abs(value)), 0);
}
