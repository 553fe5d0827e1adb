// Forward passes of a part of a network: recorded once for each batch size, replayed for every batch. The teacher runs
// on its own weights and no quantizers, the deployed student on the values of its integers.
import type { NdArray } from "../core/nd_array.ts";
import { GRID_SIZE } from "../../kernels/threshold_quantize.ts";
import type { Tape } from "../autograd/tape.ts";
import type { Device } from "../gpu/device.ts";
import { Plan } from "../gpu/plan.ts";
import { type Tensor, view } from "../gpu/tensor.ts";
import type { ChannelsLastGraph } from "../graph/channels_last.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { fuseLayers } from "../graph/layers.ts";
import type { ActivationQParams } from "../graph/quantized_graph.ts";
import type { ActivationQuantizer, OpContext } from "../ops/context.ts";
import { recordDynamicQuantize } from "../ops/dynamic_quantize.ts";
import { recordSteps } from "../ops/ops.ts";
import type { Student } from "../quant/student.ts";
import { thresholdGrid } from "../quant/thresholds.ts";
import { type Frontier, type Residence, RowSet, type RowStorage } from "./frontier.ts";
import { type Network, nodesBetween, shapesForBatch } from "./network.ts";

/** A part of a channels-last graph between tensors. */
export interface Part {
  readonly source: ChannelsLastGraph;
  readonly nodes: readonly Node[];
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}

/** The part of a graph between tensors. */
export function partBetween(
  source: ChannelsLastGraph,
  inputs: readonly string[],
  outputs: readonly string[],
): Part {
  return { source, nodes: nodesBetween(source.graph, inputs, outputs), inputs, outputs };
}

/** The part as a graph of its own (initializers are those of the whole). */
export function graphOf({ source, nodes, inputs, outputs }: Part): Graph {
  const info = (name: string) => ({
    name,
    dtype: "float32" as const,
    shape: source.shapes.get(name) ?? [],
  });
  return { ...source.graph, nodes, inputs: inputs.map(info), outputs: outputs.map(info) };
}

/** Weights and quantizers of one copy of the network on the GPU. */
export class NetworkValues implements Disposable {
  readonly #device: Device;
  readonly #parameters = new Map<string, Tensor>();
  readonly #quantizers = new Map<string, ActivationQuantizer>();
  readonly #qparams: ReadonlyMap<string, ActivationQParams>;
  readonly #owned: Tensor[] = [];
  /** Names of the layers that quantize their input with the range it has at run time. */
  readonly dynamicLayers: ReadonlySet<string>;
  /** The quantizer of layers that have none. */
  readonly passThrough: ActivationQuantizer;

  /**
   * @param device where they lie
   * @param arrays arrays by initializer name, channels last
   * @param quantizers quantizers by tensor name
   * @param dynamicLayers names of the layers that quantize their input with the range it has at run time
   */
  constructor(
    device: Device,
    arrays: ReadonlyMap<string, NdArray>,
    quantizers: ReadonlyMap<string, ActivationQParams>,
    dynamicLayers: ReadonlySet<string> = new Set(),
  ) {
    this.#device = device;
    this.dynamicLayers = dynamicLayers;
    this.passThrough = { qparams: device.tensor([4], { label: "no quantizer" }) };
    this.#owned.push(this.passThrough.qparams);
    this.#qparams = quantizers;
    for (const [name, array] of arrays) {
      const shape = array.shape.length === 0 ? [1] : array.shape;
      const tensor = device.fromArray(shape, array.data as Float32Array, { label: name });
      this.#parameters.set(name, tensor);
      this.#owned.push(tensor);
    }
    for (const [name, grid] of quantizers) {
      const { scale, zeroPoint, quantMin, quantMax, thresholds } = grid;
      const label = `qparams ${name}`;
      const qparams = thresholds
        ? device.fromArray([GRID_SIZE], thresholdGrid(grid), { label })
        : device.fromArray([4], [scale, zeroPoint, quantMin, quantMax], { label });
      const count = thresholds?.length ?? 0;
      this.#quantizers.set(name, {
        qparams: view(qparams, 0, [4], label),
        ...(thresholds && { thresholds: { count, grid: qparams } }),
      });
      this.#owned.push(qparams);
    }
  }

  /** Tensor by initializer name. */
  parameter(name: string): Tensor {
    const tensor = this.#parameters.get(name);
    if (tensor === undefined) throw new TypeError(`There is no initializer "${name}"`);
    return tensor;
  }

  /** Quantizer by tensor name. */
  quantizer(name: string): ActivationQuantizer | undefined {
    return this.#quantizers.get(name);
  }

  /** How a tensor's rows are stored in few bits: exactly where it carries a quantizer, which has 256 levels at most. */
  rowStorage(name: string): RowStorage {
    return this.#qparams.get(name) ?? "float16";
  }

  /** Names of the tensors that carry quantizers. */
  get quantized(): ReadonlySet<string> {
    return new Set(this.#quantizers.keys());
  }

  /** Gives the memory back. */
  [Symbol.dispose](): void {
    for (const tensor of this.#owned) this.#device.release(tensor);
    this.#owned.length = 0;
  }
}

/** The teacher's values: float32, nothing quantized. */
export function teacherValues(device: Device, network: Network): NetworkValues {
  return new NetworkValues(device, network.teacher.graph.initializers, new Map());
}

/**
 * The deployed student's values, for the layers of a part: what the exported integers stand for.
 *
 * @param device where to put them
 * @param network the network
 * @param student its student
 * @param part the part that will run
 * @param quantized whether its activations are quantized
 * @returns values for {@linkcode recordForward}
 */
export function studentValues(
  device: Device,
  network: Network,
  student: Student,
  part: Part,
  quantized = true,
): NetworkValues {
  const arrays = new Map<string, NdArray>();
  const tensors = new Set(part.inputs);
  for (const node of part.nodes) {
    for (const name of node.inputs) {
      const array = network.teacher.graph.initializers.get(name);
      if (array !== undefined) arrays.set(name, array);
    }
    for (const name of node.outputs) tensors.add(name);
  }
  for (const node of part.nodes) {
    const layer = student.layers.get(node.name);
    if (layer === undefined) continue;
    const frozen = student.freezeLayer(node.name);
    arrays.set(layer.weight, frozen.weightValues);
    if (layer.biasName !== undefined && frozen.biasValues) {
      arrays.set(layer.biasName, frozen.biasValues);
    }
  }
  const quantizers = quantized
    ? Array.from(student.activations).filter(([name]) => tensors.has(name))
    : [];
  const dynamicLayers = quantized ? student.dynamicLayers : new Set<string>();
  return new NetworkValues(device, arrays, new Map(quantizers), dynamicLayers);
}

/**
 * Records the forward pass of a part.
 *
 * @param plan where to record
 * @param part what to run
 * @param values weights and quantizers
 * @param inputs tensors by name, with the batch as first size; an input that carries a quantizer is already quantized
 * @param keep further tensors that must stay readable
 * @param tape when gradients are wanted
 * @returns every tensor by name; only outputs, inputs and kept ones are still valid at the end
 */
export function recordForward(
  plan: Plan,
  part: Part,
  values: NetworkValues,
  inputs: ReadonlyMap<string, Tensor>,
  keep: ReadonlySet<string> = new Set(),
  tape?: Tape,
): Map<string, Tensor> {
  const batch = inputs.values().next().value?.shape[0] ?? 1;
  const graph = graphOf(part);
  const shapes = shapesForBatch(part.source, batch);
  const context: OpContext = {
    recorder: plan,
    graph,
    shapes,
    values: new Map(inputs),
    parameter: (name) => ({ value: values.parameter(name) }),
    quantizer: (name) => values.quantizer(name),
    dynamicLayers: values.dynamicLayers,
    keep,
    // A quantizer of scale 0 lets values pass, but no gradient.
    ...(tape ? { tape } : { passThrough: values.passThrough }),
  };
  recordSteps(context, fuseLayers(graph, new Set([...values.quantized, ...keep]), shapes));
  return context.values;
}

/**
 * Records the part in front of a layer, up to what the layer multiplies.
 *
 * @param plan where to record
 * @param front what to run; it gives the layer's input
 * @param values weights and quantizers
 * @param inputs tensors by name, as {@linkcode recordForward} takes them
 * @param layer the layer
 * @returns the layer's input, quantized
 */
export function recordLayerInput(
  plan: Plan,
  front: Part,
  values: NetworkValues,
  inputs: ReadonlyMap<string, Tensor>,
  layer: Node,
): Tensor {
  const x = recordForward(plan, front, values, inputs).get(layer.inputs[0]!)!;
  return values.dynamicLayers.has(layer.name) ? recordDynamicQuantize(plan, x) : x;
}

/** How {@linkcode advance} runs, and what becomes of the outputs. */
export interface AdvanceOptions {
  /** Rows at a time. */
  readonly batch: number;
  /** How an output is stored, by name; float32 by default. */
  readonly storage?: (name: string) => RowStorage;
  /** Where the outputs lie, on the GPU by default. */
  readonly residence?: Residence;
}

/**
 * Runs a part over all rows of its inputs.
 *
 * @param device where to run
 * @param part what to run
 * @param values weights and quantizers
 * @param from its inputs
 * @param options batch and storage; an output that float16 cannot hold is stored as float32
 * @returns its outputs, as new row sets
 */
export async function advance(
  device: Device,
  part: Part,
  values: NetworkValues,
  from: Frontier,
  { batch, storage = () => "float32", residence = "gpu" }: AdvanceOptions,
): Promise<Frontier> {
  const sets = part.inputs.map((name) => {
    const set = from.get(name);
    if (set === undefined) throw new TypeError(`The frontier lacks "${name}"`);
    return [name, set] as const;
  });
  const rows = sets[0]?.[1].rows ?? 0;
  const to: Frontier = new Map();
  for (const name of part.outputs) {
    const shape = part.source.shapes.get(name)?.slice(1) ?? [];
    to.set(name, new RowSet(device, rows, shape, name, { storage: storage(name), residence }));
  }
  // One plan for all, the last batch partly filled: another batch size would be compiled anew.
  using plan = new Plan(device);
  const inputs = new Map(
    sets.map(([name, set]) => [name, plan.tensor([batch, ...set.rowShape], name)]),
  );
  const results = recordForward(plan, part, values, inputs);
  for (let row = 0; row < rows; row += batch) {
    const count = Math.min(batch, rows - row);
    for (const [name, set] of sets) set.copyOut(row, count, inputs.get(name)!);
    plan.replay();
    for (const [name, set] of to) await set.copyIn(results.get(name)!, row, count);
  }
  for (const [name, set] of to) {
    if (await set.isAccurate()) continue;
    set[Symbol.dispose]();
    const again = partBetween(part.source, part.inputs, [name]);
    const [exact] = (await advance(device, again, values, from, { batch, residence })).values();
    to.set(name, exact!);
  }
  return to;
}

/**
 * Largest batch whose tensors can all be bound and together stay within a budget.
 *
 * @param device the device
 * @param source the graph
 * @param wanted upper bound
 * @param budget bytes for all activations together
 * @returns at least 1
 */
export function fittingBatch(
  device: Pick<Device, "maxTensorBytes">,
  { graph, shapes }: ChannelsLastGraph,
  wanted: number,
  budget = 1 << 30,
): number {
  let largest = 0, sum = 0;
  for (const [name, shape] of shapes) {
    if (graph.initializers.has(name)) continue;
    const bytes = shape.reduce((product, n) => product * n, 4);
    largest = Math.max(largest, bytes);
    sum += bytes;
  }
  const fit = Math.min(device.maxTensorBytes / (largest * 4 / 3), budget / sum);
  return Math.max(1, Math.min(wanted, Math.floor(fit)));
}
