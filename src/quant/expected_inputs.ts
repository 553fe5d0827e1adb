// What a layer's inputs are on average, from batch norm alone: before the activation a channel is taken as normal with
// mean beta and deviation |gamma| (DFQ, Nagel et al. 2019, section 4.2.1).
import { clipArguments } from "../graph/arguments.ts";
import { numberAttribute, numbersAttribute } from "../graph/attributes.ts";
import type { ChannelStatistics, StatisticsTable } from "../graph/channel_statistics.ts";
import { isHomogeneous, traceChannels } from "../graph/channel_traces.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { inferShapes } from "../graph/shape_inference.ts";

/**
 * Expected value of each input channel.
 *
 * @param graph channels first, simplified, batch norm folded
 * @param statistics of the layers' outputs in this graph
 * @returns [C] by the reading layer, where all channels come from layers with statistics through an activation (Relu,
 * Clip, LeakyRelu) or none, and average pooling
 */
export function expectedInputs(
  graph: Graph,
  statistics: StatisticsTable,
): Map<string, Float64Array> {
  const shapes = inferShapes(graph, 1);
  const traces = traceChannels(
    graph,
    shapes,
    (node, ...rest) => node.opType === "Clip" || isHomogeneous(node, ...rest),
  );
  const found = new Map<string, Float64Array>();
  for (const { layer, readers } of traces) {
    const known = statistics.get(layer.name);
    if (known === undefined) continue;
    for (const { node, first, features, through } of readers) {
      const means = meanBehind(known, through, graph);
      if (means === undefined) continue;
      const inputs = shapes.get(node.inputs[0]!)![1]! / features;
      const all = found.get(node.name) ?? new Float64Array(inputs).fill(NaN);
      all.set(means, first);
      found.set(node.name, all);
    }
  }
  return new Map([...found].filter(([, means]) => !means.some(Number.isNaN)));
}

/**
 * E[min(max(x, low), high)] of a normal x: low P(x < low) + high P(x > high) + mean P(between) + deviation (phi(a) -
 * phi(b)), where a and b are the bounds in deviations from the mean. With low = 0 and high = Infinity it is E[relu(x)].
 *
 * @param mean of x
 * @param deviation of x, at least 0
 * @param low may be -Infinity
 * @param high may be Infinity
 * @returns the expected value
 */
export function clippedNormalMean(
  mean: number,
  deviation: number,
  low: number,
  high: number,
): number {
  if (deviation === 0) return Math.min(Math.max(mean, low), high);
  const a = (low - mean) / deviation, b = (high - mean) / deviation;
  const below = normalBelow(a), above = normalBelow(-b);
  return (below > 0 ? low * below : 0) + (above > 0 ? high * above : 0) +
    mean * (1 - below - above) + deviation * (normalDensity(a) - normalDensity(b));
}

/** Mean of each channel behind nodes; undefined where it cannot be told. */
function meanBehind(
  { mean, deviation }: ChannelStatistics,
  through: readonly Node[],
  graph: Graph,
): Float64Array | undefined {
  let means = mean, isNormal = true;
  const clipped = (low: number, high: number) =>
    mean.map((m, c) => clippedNormalMean(m, deviation[c]!, low, high));
  for (const node of through) {
    switch (node.opType) {
      case "Relu":
      case "Clip":
      case "LeakyRelu": {
        if (!isNormal) return undefined;
        const bounds = node.opType === "Clip"
          ? clipArguments(node, (name) => graph.initializers.get(name))
          : { min: 0, max: Infinity };
        const slope = node.opType === "LeakyRelu" ? numberAttribute(node, "alpha", 0.01) : 0;
        means = clipped(bounds.min, bounds.max).map((e, c) => slope * mean[c]! + (1 - slope) * e);
        isNormal = false;
        break;
      }
      case "AveragePool": {
        const pads = numbersAttribute(node, "pads") ?? [];
        const counted = numberAttribute(node, "count_include_pad", 0) !== 0;
        if (counted && pads.some((pad) => pad !== 0)) return undefined;
        isNormal = false;
        break;
      }
      case "GlobalAveragePool":
      case "ReduceMean":
        isNormal = false;
        break;
      case "MaxPool":
      case "GlobalMaxPool":
      case "PRelu":
      case "Pad":
        return undefined;
    }
  }
  return means;
}

function normalDensity(x: number): number {
  return Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
}

/** P(z < x) of a standard normal z, by its Taylor series (Marsaglia 2004); beyond 8 it is 0 or 1 in float64. */
function normalBelow(x: number): number {
  if (x < -8) return 0;
  if (x > 8) return 1;
  let sum = x, term = x;
  for (let i = 3, before = NaN; sum !== before; i += 2) {
    before = sum;
    term *= x * x / i;
    sum += term;
  }
  return Math.min(1, Math.max(0, 0.5 + sum * normalDensity(x)));
}
