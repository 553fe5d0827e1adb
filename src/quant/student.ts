// The student: trainable copies of the teacher's weights with their quantization grids, a quantizer for each quantized
// activation, and how all of it freezes into integers. It lives on the host; training copies a part of it to the GPU
// and back (training_parameters.ts).
import { type NdArray, ndArray } from "../core/nd_array.ts";
import { toOriginalLayout, type WeightLayout } from "../graph/weight_layout.ts";
import type { Graph } from "../graph/graph.ts";
import type { ActivationQParams, QTensor, QuantizedGraph } from "../graph/quantized_graph.ts";
import type { QParams } from "./qparams.ts";
import { GROUPED_AXIS, groupRows, ungroupRows, type WeightGroups } from "./weight_groups.ts";
import { dequantize, freezeBias, freezeWeight, smallestWeightScale } from "./freeze.ts";

/** Trainable batch norm of a layer, on the host. */
export interface BatchNormState {
  /** Name of the BatchNormalization node. */
  readonly node: string;
  readonly gamma: Float32Array<ArrayBuffer>;
  readonly beta: Float32Array<ArrayBuffer>;
  /** Running mean, with a bias of the layer already subtracted. */
  readonly mean: Float32Array<ArrayBuffer>;
  readonly variance: Float32Array<ArrayBuffer>;
  readonly epsilon: number;
}

/** One weighted layer of a student. */
export interface LayerState {
  /** Name of the layer's node. */
  readonly node: string;
  /** Name of the weight's initializer. */
  readonly weight: string;
  /** Name of the bias's initializer in the folded graph, if it has one. */
  readonly biasName?: string;
  /** Tensor the layer reads. */
  readonly input: string;
  /** Latent float32 weights, channels last. */
  readonly latent: NdArray<"float32">;
  readonly layout: WeightLayout;
  /** Axis of the output channels in `latent`. */
  readonly axis: number;
  readonly bits: number;
  /** [O], or one a group: natural logarithm of the scale. */
  readonly logScale: Float32Array<ArrayBuffer>;
  /** As many. */
  readonly quantMin: Int32Array<ArrayBuffer>;
  /** As many. */
  readonly quantMax: Int32Array<ArrayBuffer>;
  /** Whether weights take odd codes only (tanh_weights.ts). */
  readonly oddCodes?: boolean;
  /** Absent where all weights of an output channel share a scale. Layers with groups have no batch norm, nor train. */
  readonly groups?: WeightGroups;
  /** Whether its input is quantized to 8 bits with the range it has at run time, and has no quantizer of its own. */
  readonly dynamicInput?: boolean;
  /** Whether it is an LSTM, whose weight multiplies its state besides its input, and whose bias stays float. */
  readonly recurrent?: boolean;
  /** [O]; absent when there is batch norm or no bias. */
  readonly bias?: Float32Array<ArrayBuffer>;
  readonly batchNorm?: BatchNormState;
}

/** Quantizer of one activation. */
export interface ActivationState extends ActivationQParams {
  readonly tensor: string;
  /** False keeps the scale as calibrated (the network's input). */
  readonly learned: boolean;
  /** Between which its thresholds lie (thresholds.ts); absent where it has none. */
  readonly knots?: Float32Array<ArrayBuffer>;
}

/** A layer as integers, and as the float32 values they stand for. */
export interface FrozenLayer {
  /** Codes, channels last. */
  readonly weight: QTensor;
  /** int32 codes, if the layer has a bias and its input a quantizer. */
  readonly bias?: QTensor;
  /** scale * code, channels last. */
  readonly weightValues: NdArray<"float32">;
  /** scale * code of the bias; the bias itself where sums are not integers. */
  readonly biasValues?: NdArray<"float32">;
}

/** A fake-quantized copy of a network. */
export class Student {
  readonly #layers: Map<string, LayerState>;
  readonly #activations: Map<string, ActivationState>;

  /**
   * @param layers weighted layers, in execution order
   * @param activations quantizers
   */
  constructor(layers: Iterable<LayerState>, activations: Iterable<ActivationState>) {
    this.#layers = new Map(Array.from(layers, (layer) => [layer.node, layer]));
    this.#activations = new Map(Array.from(activations, (state) => [state.tensor, state]));
  }

  /** Weighted layers by node name, in execution order. */
  get layers(): ReadonlyMap<string, LayerState> {
    return this.#layers;
  }

  /** Quantizers by tensor name. */
  get activations(): ReadonlyMap<string, ActivationState> {
    return this.#activations;
  }

  /** Names of the layers whose input has its range at run time. */
  get dynamicLayers(): ReadonlySet<string> {
    const dynamic = [...this.#layers.values()].filter(({ dynamicInput }) => dynamicInput);
    return new Set(dynamic.map(({ node }) => node));
  }

  /** Replaces the state of a layer. */
  setLayer(layer: LayerState): void {
    this.#layers.set(layer.node, layer);
  }

  /** Replaces the state of a quantizer. */
  setActivation(state: ActivationState): void {
    this.#activations.set(state.tensor, state);
  }

  /**
   * Rounds a layer to the integers it will be exported with; batch norm is folded into scales and bias.
   *
   * @param node name of its node
   * @returns its integers and their values
   * @throws RangeError when a weight is not finite or a bias does not fit int32
   */
  freezeLayer(node: string): FrozenLayer {
    const layer = this.#layer(node);
    const { latent, axis, bits, batchNorm, oddCodes = false } = layer;
    const multiplier = batchNorm &&
      Float64Array.from(
        batchNorm.gamma,
        (gamma, c) => gamma / Math.sqrt(batchNorm.variance[c]! + batchNorm.epsilon),
      );
    const bias = batchNorm
      ? Float64Array.from(batchNorm.beta, (b, c) => b - batchNorm.mean[c]! * multiplier![c]!)
      : layer.bias;
    if (layer.groups) {
      const frozen = freezeGroups(layer, layer.groups);
      return { ...frozen, ...(layer.bias && { biasValues: vector(layer.bias) }) };
    }
    // Sums of a float input or state are no integers, so the bias stays float too.
    const inputScale = layer.recurrent ? undefined : this.#activations.get(layer.input)?.scale;
    const weight = freezeWeight({
      latent,
      qparams: gridOf(layer),
      axis,
      bits,
      oddCodes,
      ...(multiplier && { multiplier }),
      ...(bias && inputScale !== undefined && {
        smallestScale: smallestWeightScale(bias, inputScale),
      }),
    });
    const weightValues = dequantize(weight);
    if (bias === undefined) return { weight, weightValues };
    if (inputScale === undefined) {
      return { weight, weightValues, biasValues: vector(Float32Array.from(bias)) };
    }
    const frozenBias = freezeBias(bias, inputScale, weight.scale);
    return { weight, weightValues, bias: frozenBias, biasValues: dequantize(frozenBias) };
  }

  /**
   * Freezes the whole student for export.
   *
   * @param folded the teacher's graph, channels first, batch norm folded
   * @returns the graph with integer weights, biases and activation quantizers
   */
  freeze(folded: Graph): QuantizedGraph {
    const weights = new Map<string, QTensor>();
    const biases = new Map<string, QTensor>();
    const initializers = new Map(folded.initializers);
    for (const layer of this.#layers.values()) {
      const frozen = this.freezeLayer(layer.node);
      // Codes of at most 8 bits are int8; freezeWeight never makes int32.
      const codes = frozen.weight.values as NdArray<"int8">;
      const values = toOriginalLayout(codes, layer.layout);
      const axis = layer.groups ? GROUPED_AXIS : 0;
      weights.set(layer.weight, { ...frozen.weight, values, axis });
      initializers.set(layer.weight, toOriginalLayout(frozen.weightValues, layer.layout));
      if (layer.biasName !== undefined && frozen.biasValues) {
        if (frozen.bias) biases.set(layer.biasName, frozen.bias);
        initializers.set(layer.biasName, frozen.biasValues);
      }
    }
    const dynamicLayers = this.dynamicLayers;
    const activations = new Map<string, ActivationQParams>();
    for (const [tensor, state] of this.#activations) {
      const { scale, zeroPoint, quantMin, quantMax, bits, thresholds } = state;
      const qparams = { scale, zeroPoint, quantMin, quantMax, bits };
      activations.set(tensor, { ...qparams, ...(thresholds && { thresholds }) });
    }
    return {
      graph: { ...folded, initializers },
      weights,
      biases,
      activations,
      ...(dynamicLayers.size > 0 && { dynamicLayers }),
    };
  }

  #layer(node: string): LayerState {
    const layer = this.#layers.get(node);
    if (layer === undefined) throw new TypeError(`The student has no layer "${node}"`);
    return layer;
  }
}

/**
 * The weights of a layer on their grid, before a batch norm is folded into them.
 *
 * @param layer the layer
 * @returns scale * code of each weight
 */
export function weightsOnGrid(layer: LayerState): NdArray<"float32"> {
  return dequantize(freezeWeight({ ...layer, qparams: gridOf(layer) }));
}

/** The grids of a layer's channels. */
function gridOf({ logScale, quantMin, quantMax }: LayerState): QParams {
  const zeroPoint = new Int32Array(quantMin.length);
  return { scale: logScale.map(Math.exp), zeroPoint, quantMin, quantMax };
}

/** A layer whose weights have scales of groups. Its codes are channels last, its scales in the order of the file. */
function freezeGroups(
  layer: LayerState,
  groups: WeightGroups,
): Pick<FrozenLayer, "weight" | "weightValues"> {
  const { latent, bits } = layer;
  const rows = groupRows(latent, groups);
  const frozen = freezeWeight({ latent: rows, qparams: gridOf(layer), axis: 0, bits });
  // Codes of at most 8 bits are int8; freezeWeight never makes int32.
  const codes = frozen.values as NdArray<"int8">;
  const values = ungroupRows(codes, latent.shape, groups);
  const weightValues = ungroupRows(dequantize(frozen), latent.shape, groups);
  return { weight: { ...frozen, values, blockSize: groups.size }, weightValues };
}

/** Root mean square of an array; 1 for an array of zeros. */
export function rootMeanSquare(data: Float32Array): number {
  let sum = 0;
  for (const value of data) sum += value * value;
  return sum === 0 ? 1 : Math.sqrt(sum / data.length);
}

/** A float32 array of one axis. */
export function vector(data: Float32Array<ArrayBuffer>): NdArray<"float32"> {
  return ndArray("float32", [data.length], data);
}
