// Evens out the ranges of channels without changing the function: where a positively homogeneous path leads from one
// layer to others, a channel may be made s times smaller by the first and s times larger by what reads it.
// Cross-layer equalization (DFQ, Nagel et al. 2019) chooses s from the weights alone, so that each channel is as wide in
// both layers; migration (SmoothQuant, Xiao et al. 2023; AMCT's DMQ) from activations and weights.
import {
  type ChannelReader,
  type ChannelTrace,
  isHomogeneous,
  traceChannels,
} from "./channel_traces.ts";
import type { Graph } from "./graph.ts";
import {
  outputRanges,
  raiseToInputRanges,
  readLayerWeights,
  scaleInputs,
  scaleOutputs,
  type WeightTable,
  writeLayerWeights,
} from "./layer_weights.ts";
import { inferShapes } from "./shape_inference.ts";

/** How long equalization goes on. */
export interface EqualizeOptions {
  /** It is done when no channel changes by more than this factor minus 1. */
  readonly tolerance?: number;
  /** Most passes over all layers. */
  readonly passes?: number;
}

/** A network with other ranges and the same function. */
export interface Rescaled {
  readonly graph: Graph;
  /** [O] by layer: what its outputs were divided by. */
  readonly scales: ReadonlyMap<string, Float64Array>;
  /** Why the outputs of the other layers stayed as they were. */
  readonly skipped: ReadonlyMap<string, string>;
}

/**
 * Equalizes weight ranges across layers: largest |w| of every output channel = largest |w| that reads it, in one layer
 * or several. A depthwise layer takes part on both sides, so the three ranges around it become the cube root of their
 * product. Channels that are zero on a side are left alone; so is a Clip at 6 with what surrounds it.
 *
 * @param graph channels first, simplified, batch norm folded
 * @param options when to stop
 * @returns the network with float32 weights, rounded once
 */
export function equalizeLayers(
  graph: Graph,
  { tolerance = 1e-4, passes = 200 }: EqualizeOptions = {},
): Rescaled {
  return rescale(graph, (traces, weights, apply) => {
    for (let pass = 0, change = Infinity; pass < passes && change >= tolerance; pass++) {
      change = 0;
      for (const trace of traces) {
        const wanted = outputRanges(weights.get(trace.layer.name)!);
        const read = readRanges(trace, weights);
        const scales = wanted.map((r, c) => r > 0 && read[c]! > 0 ? Math.sqrt(r / read[c]!) : 1);
        apply(trace, scales);
        for (const s of scales) change = Math.max(change, Math.abs(s - 1));
      }
    }
  });
}

/**
 * Moves a part of the activations' ranges into the weights that read them: channel j of a tensor is divided by
 * s_j = max |x_j|^a / max |w_j|^(1 - a).
 *
 * @param graph channels first, simplified, batch norm folded
 * @param inputRanges max |x_j| of the channels of every layer's input, by node name
 * @param strength a, 0 to 1: how much of the range goes into the weights
 * @returns the network with float32 weights, rounded once
 */
export function migrateRanges(
  graph: Graph,
  inputRanges: ReadonlyMap<string, ArrayLike<number>>,
  strength: number,
): Rescaled {
  return rescale(graph, (traces, weights, apply) => {
    for (const trace of traces) {
      const read = readRanges(trace, weights);
      apply(
        trace,
        read.map((w, c) => {
          const seen = (reader: ChannelReader) =>
            inputRanges.get(reader.node.name)?.[reader.first + c] ?? 0;
          const x = Math.max(...trace.readers.map(seen));
          return x > 0 && w > 0 ? x ** strength / w ** (1 - strength) : 1;
        }),
      );
    }
  });
}

/** Chooses scales for each trace and applies them. */
function rescale(
  graph: Graph,
  choose: (
    traces: readonly ChannelTrace[],
    weights: WeightTable,
    apply: (trace: ChannelTrace, scales: Float64Array) => void,
  ) => void,
): Rescaled {
  const weights = readLayerWeights(graph);
  const traces = traceChannels(graph, inferShapes(graph, 1), isHomogeneous);
  const skipped = new Map<string, string>();
  for (const { layer, obstacle } of traces) {
    const reason = obstacle ??
      (weights.has(layer.name) ? undefined : "its weights are no constants");
    if (reason !== undefined) skipped.set(layer.name, reason);
  }
  const scales = new Map<string, Float64Array>();
  choose(traces.filter(({ layer }) => !skipped.has(layer.name)), weights, (trace, factors) => {
    const { layer: { name }, readers } = trace;
    scaleOutputs(weights.get(name)!, factors.map((s) => 1 / s));
    for (const reader of readers) scaleInputs(weights.get(reader.node.name)!, reader, factors);
    const before = scales.get(name);
    scales.set(name, before ? before.map((s, c) => s * factors[c]!) : factors);
  });
  return { graph: writeLayerWeights(graph, weights), scales, skipped };
}

/** [channels]: largest |w| that reads each channel. */
function readRanges({ readers, channels }: ChannelTrace, weights: WeightTable): Float64Array {
  const ranges = new Float64Array(channels);
  for (const reader of readers) raiseToInputRanges(weights.get(reader.node.name)!, reader, ranges);
  return ranges;
}
