// The weights of a graph's layers in float64, changed in place by passes that move factors and constants between layers,
// and rounded once at the end. Row o of a weight makes output channel o; column i reads input feature i.
import { ndArray, sizeOf } from "../core/nd_array.ts";
import { numbersOf } from "./arguments.ts";
import { numberAttribute } from "./attributes.ts";
import { type ChannelReader, hasPlainWeights } from "./channel_traces.ts";
import { biasName } from "./fold_batch_norm.ts";
import type { Graph } from "./graph.ts";
import { finishEdit, rewriteInitializer, startEdit, uniqueName } from "./rewrite.ts";

/** Weight and bias of a Conv [O, I / group, ...] or a Gemm [O, I]. */
export interface LayerWeights {
  readonly shape: readonly number[];
  readonly group: number;
  readonly weight: Float64Array;
  /** [O]; absent where the layer has none. */
  bias?: Float64Array;
}

/** Weights by node name. */
export type WeightTable = ReadonlyMap<string, LayerWeights>;

/**
 * Copies the weights of all layers.
 *
 * @param graph channels first, simplified, batch norm folded
 * @returns weights of the layers that {@linkcode traceChannels} can reach or start from
 */
export function readLayerWeights(graph: Graph): WeightTable {
  const table = new Map<string, LayerWeights>();
  for (const node of graph.nodes) {
    if (!hasPlainWeights(graph, node)) continue;
    const weight = graph.initializers.get(node.inputs[1]!)!;
    const bias = graph.initializers.get(node.inputs[2] ?? "");
    table.set(node.name, {
      shape: weight.shape,
      group: numberAttribute(node, "group", 1),
      weight: Float64Array.from(numbersOf(weight)),
      ...(bias && { bias: Float64Array.from(numbersOf(bias)) }),
    });
  }
  return table;
}

/**
 * Puts weights back.
 *
 * @param graph the graph they were read from
 * @param table the weights; a bias that was not there before gets a name
 * @returns the new graph, rounded to float32
 */
export function writeLayerWeights(graph: Graph, table: WeightTable): Graph {
  const edit = startEdit(graph);
  graph.nodes.forEach((node, i) => {
    const layer = table.get(node.name);
    if (layer === undefined) return;
    const [x, w, b = ""] = node.inputs as [string, string, string?];
    const weight = ndArray("float32", layer.shape, Float32Array.from(layer.weight));
    const inputs = [x, rewriteInitializer(graph, edit, w, weight)];
    if (layer.bias) {
      const bias = ndArray("float32", [layer.bias.length], Float32Array.from(layer.bias));
      if (b === "") {
        inputs.push(uniqueName(graph, edit, biasName(inputs[1]!)));
        edit.initializers.set(inputs[2]!, bias);
      } else {
        inputs.push(rewriteInitializer(graph, edit, b, bias));
      }
    }
    edit.nodes[i] = { ...node, inputs };
  });
  return finishEdit(graph, edit);
}

/**
 * Gives every layer a bias, of zeros where it has none.
 *
 * @param graph channels first, simplified, batch norm folded
 * @returns the new graph
 */
export function addBiases(graph: Graph): Graph {
  const table = readLayerWeights(graph);
  for (const layer of table.values()) layer.bias ??= new Float64Array(layer.shape[0]!);
  return writeLayerWeights(graph, table);
}

/** [O]: largest magnitude of each row. */
export function outputRanges({ shape, weight }: LayerWeights): Float64Array {
  const length = weight.length / shape[0]!;
  return Float64Array.from({ length: shape[0]! }, (_, o) => {
    let largest = 0;
    for (let i = o * length; i < (o + 1) * length; i++) {
      largest = Math.max(largest, Math.abs(weight[i]!));
    }
    return largest;
  });
}

/** Largest magnitude of what multiplies each of `channels` channels in a reader, written where it is larger. */
export function raiseToInputRanges(
  layer: LayerWeights,
  reader: ChannelReader,
  ranges: Float64Array,
): void {
  forEachColumn(layer, reader, ranges.length, (c, start, length) => {
    for (let i = start; i < start + length; i++) {
      ranges[c] = Math.max(ranges[c]!, Math.abs(layer.weight[i]!));
    }
  });
}

/** Multiplies the output channels by factors. */
export function scaleOutputs({ weight, bias }: LayerWeights, factors: Float64Array): void {
  const length = weight.length / factors.length;
  for (let i = 0; i < weight.length; i++) weight[i]! *= factors[Math.floor(i / length)]!;
  bias?.forEach((value, o) => bias[o] = value * factors[o]!);
}

/** Multiplies what reads the channels by factors. */
export function scaleInputs(
  layer: LayerWeights,
  reader: ChannelReader,
  factors: Float64Array,
): void {
  forEachColumn(layer, reader, factors.length, (c, start, length) => {
    for (let i = start; i < start + length; i++) layer.weight[i]! *= factors[c]!;
  });
}

/** Adds to the bias what inputs of these values would add to the output, far from any padding. */
export function addInputs(
  layer: LayerWeights,
  reader: ChannelReader,
  values: Float64Array,
): void {
  const bias = layer.bias ??= new Float64Array(layer.shape[0]!);
  forEachColumn(layer, reader, values.length, (c, start, length, o) => {
    for (let i = start; i < start + length; i++) bias[o]! += layer.weight[i]! * values[c]!;
  });
}

/** Visits the kernels [start, start + length) of output o that read channel c of `channels`. */
function forEachColumn(
  { shape, group }: LayerWeights,
  { first, features }: ChannelReader,
  channels: number,
  visit: (c: number, start: number, length: number, o: number) => void,
): void {
  const [outputs = 1, inputs = 1] = shape;
  const length = sizeOf(shape.slice(2));
  for (let o = 0; o < outputs; o++) {
    const base = Math.floor(o * group / outputs) * inputs;
    for (let i = 0; i < inputs; i++) {
      const c = Math.floor((base + i) / features) - first;
      if (c >= 0 && c < channels) visit(c, (o * inputs + i) * length, length, o);
    }
  }
}
