// The student before any training: the teacher's weights, the best grid for each channel, the calibrated quantizers.
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { numberAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import {
  type ActivationState,
  type BatchNormState,
  type LayerState,
  Student,
} from "../quant/student.ts";
import { channelQParams, emptyQParams, type QParams, setChannel } from "../quant/qparams.ts";
import { groupRows, type WeightGroups, weightGroups } from "../quant/weight_groups.ts";
import { searchWeightQParams } from "../quant/weight_search.ts";
import { type InputPowers, weightImportance } from "./input_powers.ts";
import type { Network } from "./network.ts";
import { weightGridFor } from "./presets.ts";
import type { Recipe } from "./recipe.ts";

/** What of a recipe decides the start of the weights' scales. */
export type WeightRecipe =
  & Pick<Recipe, "method" | "weightGrid" | "weightObserver">
  & Partial<Pick<Recipe, "weightExponent" | "weightGranularity" | "weightGroup">>;

/**
 * Makes a student.
 *
 * @param network the network
 * @param activations calibrated quantizers
 * @param recipe grid, observer and granularity of the weights, unless the network's settings have their own
 * @param powers mean squares of the layers' inputs, which observer "hessian" needs
 * @returns the student; frozen as it is, it is the PTQ baseline
 */
export function createStudent(
  network: Network,
  activations: readonly ActivationState[],
  recipe: WeightRecipe,
  powers: InputPowers = new Map(),
): Student {
  const layers: LayerState[] = [];
  for (const [name, bits] of network.weightBits) {
    const node = nodeNamed(network.trained.graph.nodes, name);
    const own = { ...recipe, ...network.settings.get(name) };
    layers.push(layerState(network, node, bits, own, powers));
  }
  return new Student(layers, activations);
}

function layerState(
  network: Network,
  node: Node,
  bits: number,
  recipe: WeightRecipe,
  powers: InputPowers,
): LayerState {
  const { graph, layouts } = network.trained;
  const weight = node.inputs[1]!;
  // The channels-last graph holds float32 arrays only, and a layout for each layer's weight.
  const latent = graph.initializers.get(weight) as NdArray<"float32">;
  const layout = layouts.get(weight)!;
  const axis = layout.channelAxis;
  const { weightGroup = null } = recipe;
  const recurrent = node.opType === "LSTM";
  // Blocks of its columns would hold weights of inputs and states.
  const groups = weightGroup === null || recurrent ? undefined : weightGroups(layout, weightGroup);
  const bias = constant(network, node.inputs[2]);
  const folded = nodeNamed(network.teacher.graph.nodes, node.name);
  const biasName = folded.inputs[2] ?? "";
  const batchNorm = network.batchNorms.get(node.name);
  const dynamicInput = network.activationRanges === "dynamic" &&
    network.activationBits.has(node.inputs[0]!);
  const layer = {
    node: node.name,
    weight,
    ...(biasName !== "" && { biasName }),
    input: node.inputs[0]!,
    latent,
    layout,
    axis,
    ...(groups && { groups }),
    ...(dynamicInput && { dynamicInput }),
    ...(recurrent && { recurrent }),
    ...(batchNorm ? { batchNorm: batchNormState(network, batchNorm, bias) } : bias && { bias }),
  };
  return searchGrid(layer, bits, recipe, powers);
}

/** A layer without its grid. */
type LayerWithoutGrid = Omit<LayerState, "bits" | "logScale" | "quantMin" | "quantMax">;

/**
 * Puts a layer on the best grid of its weights.
 *
 * @param layer its grid, if it has one, is not looked at
 * @param bits of the grid
 * @param recipe grid, observer and granularity of the weights
 * @param powers mean squares of the layers' inputs, which observer "hessian" needs
 * @returns the layer on the grid
 */
export function searchGrid(
  layer: LayerWithoutGrid,
  bits: number,
  recipe: WeightRecipe,
  powers: InputPowers = new Map(),
): LayerState {
  // Of an LSTM's states nothing is known: all its weights count alike.
  const power = layer.recurrent ? undefined : powers.get(layer.input);
  const { scale, quantMin, quantMax } = weightQParams(
    layer.latent,
    layer.axis,
    bits,
    recipe,
    power,
    layer.groups,
  );
  return { ...layer, bits, logScale: scale.map(Math.log), quantMin, quantMax };
}

/** Scales and grids of a layer's output channels or groups; of one for the whole layer, every channel has a copy. */
function weightQParams(
  latent: NdArray<"float32">,
  axis: number,
  bits: number,
  recipe: WeightRecipe,
  power: Float64Array | undefined,
  groups: WeightGroups | undefined,
): QParams {
  const { weightObserver, weightExponent = 2.4, weightGranularity } = recipe;
  const isShared = weightGranularity === "tensor";
  // `distill` measures the powers of every layer's input where the recipe says "hessian".
  const importance = weightObserver === "hessian" && power
    ? weightImportance(latent.shape, axis, power)
    : undefined;
  const observed = weightObserver === "hessian"
    ? { p: 2 }
    : { observer: weightObserver, p: weightExponent };
  const options = { bits, grid: weightGridFor(recipe, bits), ...observed };
  if (groups) {
    const rowsOf = (values: Float64Array<ArrayBuffer>) =>
      groupRows(ndArray("float64", latent.shape, values), groups).data;
    return searchWeightQParams(groupRows(latent, groups), 0, {
      ...options,
      ...(importance && { importance: rowsOf(importance) }),
    });
  }
  const qparams = searchWeightQParams(latent, isShared ? -1 : axis, {
    ...options,
    ...(importance && { importance }),
  });
  if (!isShared) return qparams;
  const channels = emptyQParams(latent.shape[axis]!);
  for (let c = 0; c < latent.shape[axis]!; c++) setChannel(channels, c, channelQParams(qparams, 0));
  return channels;
}

/** The batch norm that follows a layer. A bias before it only shifts its mean. */
function batchNormState(
  network: Network,
  node: Node,
  bias: Float32Array<ArrayBuffer> | undefined,
): BatchNormState {
  const [gamma, beta, mean, variance] = [1, 2, 3, 4].map((i) => constant(network, node.inputs[i])!);
  return {
    node: node.name,
    gamma: gamma!,
    beta: beta!,
    mean: mean!.map((value, c) => value - (bias?.[c] ?? 0)),
    variance: variance!,
    epsilon: numberAttribute(node, "epsilon", 1e-5),
  };
}

function constant(
  network: Network,
  name: string | undefined,
): Float32Array<ArrayBuffer> | undefined {
  const array = name ? network.trained.graph.initializers.get(name) : undefined;
  return array && Float32Array.from(array.data as Float32Array);
}

function nodeNamed(nodes: readonly Node[], name: string): Node {
  const node = nodes.find((candidate) => candidate.name === name);
  if (node === undefined) throw new TypeError(`There is no node "${name}"`);
  return node;
}
