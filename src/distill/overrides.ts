// What a recipe says of some layers only: overrides by layer name pattern, by operator, and the skip lists. Read from the
// weakest to the strongest: the recipe's own keys, operators, layer names; later entries of one kind win.
import type { ChannelsLastGraph } from "../graph/channels_last.ts";
import type { Node } from "../graph/graph.ts";
import { nearestName } from "../core/nearest_name.ts";
import type { Recipe } from "./recipe.ts";

/** Operators that an override may name: those with weights, and the poolings that compute on integers. */
export const OVERRIDE_OPERATORS = [
  "Conv",
  "DepthwiseConv",
  "Gemm",
  "LSTM",
  "AveragePool",
  "GlobalAveragePool",
  "ReduceMean",
] as const satisfies OverrideOperator[];

/** An operator that an override may name; a depthwise convolution is a `Conv` too. */
export type OverrideOperator =
  | "Conv"
  | "DepthwiseConv"
  | "Gemm"
  | "LSTM"
  | "AveragePool"
  | "GlobalAveragePool"
  | "ReduceMean";

/** What differs from the recipe for the layers that a pattern, or an operator, stands for. */
export interface Override {
  /** Pattern of node names: `*` stands for any characters, `?` for one. Either this or `operators`. */
  readonly layers?: string;
  /** Operator of the layers. */
  readonly operators?: OverrideOperator;
  /** Bits of the weights, 2 to 8. */
  readonly weightBits?: number;
  /**
   * Bits of the tensor that the layer reads, 2 to 8; the most that any of its readers asks for count, and `null`, which
   * leaves it float, is more than any.
   */
  readonly activationBits?: number | null;
  /** Integer codes a weight channel may use. */
  readonly weightGrid?: Recipe["weightGrid"];
  /** How the weights' scales start. */
  readonly weightObserver?: Recipe["weightObserver"];
  /** False leaves the layer float. */
  readonly quantize?: boolean;
}

/** What overrides set for a layer. */
export type LayerSettings = Omit<Override, "layers" | "operators">;

/** The keys of a recipe that name layers. */
export type LayerRules = Partial<Pick<Recipe, "overrides" | "skipLayers" | "skipOperators">>;

/**
 * What is wrong with an override whose keys are right one by one.
 *
 * @param override a checked record
 * @returns found and expected, or undefined
 */
export function overrideProblem(
  { layers, operators, ...settings }: Override,
): string | undefined {
  if ((layers === undefined) === (operators === undefined)) {
    return `found ${layers === undefined ? "neither" : "both"}, expected "layers" or "operators"`;
  }
  const keys = Object.keys(settings);
  if (keys.length === 0) return "sets nothing, expected for example weightBits";
  if (settings.quantize === false && keys.length > 1) {
    const other = keys.find((key) => key !== "quantize");
    return `found ${other} beside "quantize": false, expected one of them`;
  }
  return undefined;
}

/**
 * What a recipe says of each node that it may name.
 *
 * @param nodes the layers and poolings of the network
 * @param layouts layouts of the weights, which tell depthwise convolutions
 * @param rules overrides and skip lists; skip lists are the first entries of their kind
 * @returns settings by node name, absent where nothing is said
 * @throws RangeError when a pattern matches no node
 */
export function layerSettings(
  nodes: readonly Node[],
  layouts: ChannelsLastGraph["layouts"],
  { overrides = [], skipLayers = [], skipOperators = [] }: LayerRules,
): Map<string, LayerSettings> {
  const result = new Map<string, LayerSettings>();
  const add = (node: Node, settings: LayerSettings) =>
    result.set(node.name, { ...result.get(node.name), ...settings });
  const isDepthwise = (node: Node) => layouts.get(node.inputs[1] ?? "")?.channelAxis === 2;
  const ofOperator = (operator: OverrideOperator) => (node: Node) =>
    operator === "DepthwiseConv"
      ? node.opType === "Conv" && isDepthwise(node)
      : node.opType === operator;
  const skipped = { quantize: false };
  for (const operator of skipOperators) {
    for (const node of nodes.filter(ofOperator(operator))) add(node, skipped);
  }
  for (const { operators, layers: _, ...settings } of overrides) {
    if (operators === undefined) continue;
    for (const node of nodes.filter(ofOperator(operators))) add(node, settings);
  }
  skipLayers.forEach((pattern, i) => {
    for (const node of matching(nodes, pattern, `skipLayers[${i}]`)) add(node, skipped);
  });
  overrides.forEach(({ layers, operators: _, ...settings }, i) => {
    if (layers === undefined) return;
    for (const node of matching(nodes, layers, `overrides[${i}].layers`)) add(node, settings);
  });
  return result;
}

/** Nodes whose name a pattern stands for; at least one. */
function matching(nodes: readonly Node[], pattern: string, key: string): Node[] {
  const expression = patternExpression(pattern);
  const found = nodes.filter(({ name }) => expression.test(name));
  if (found.length > 0) return found;
  throw new RangeError(`${key}: "${pattern}" matches no layer, ${hint(nodes, pattern)}`);
}

function patternExpression(pattern: string): RegExp {
  const source = pattern.replace(/[\\^$.+()[\]{}|/]/g, "\\$&")
    // Several stars in a row mean one, and would make the search slow.
    .replace(/\*+/g, ".*").replaceAll("?", ".");
  return new RegExp(`^${source}$`, "su");
}

/** At most this many names of layers in an error. */
const MOST_NAMES = 3;

function hint(nodes: readonly Node[], pattern: string): string {
  const names = nodes.map(({ name }) => name);
  const near: string[] = [];
  while (near.length < MOST_NAMES) {
    const name = nearestName(
      pattern.replace(/[*?]/g, ""),
      names.filter((candidate) => !near.includes(candidate)),
    );
    if (name === undefined) break;
    near.push(name);
  }
  const quoted = (list: readonly string[]) => list.map((name) => `"${name}"`).join(", ");
  if (near.length > 0) return `the nearest ${near.length > 1 ? "are" : "is"} ${quoted(near)}`;
  const more = names.length > MOST_NAMES ? `, .. "${names.at(-1)}"` : "";
  return `the layers are ${quoted(names.slice(0, MOST_NAMES))}${more}`;
}
