// The parameters of an fp32 network in training: weights, biases, gammas and betas in one flat buffer, and the running
// statistics of its batch norms.
import { paddedSize } from "../../kernels/kernel.ts";
import { type NdArray, ndArray } from "../core/nd_array.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import { pad, type Tensor, unpad } from "../gpu/tensor.ts";
import { numberAttribute } from "../graph/attributes.ts";
import type { ChannelsLastGraph } from "../graph/channels_last.ts";
import type { Node } from "../graph/graph.ts";
import { LAYER_OPERATORS } from "../graph/layer_kinds.ts";
import { toOriginalLayout } from "../graph/weight_layout.ts";
import type { LiveBatchNorm, Trainable } from "../ops/context.ts";
import { type AdamDecay, FlatLayout, FlatParameters } from "../optim/flat_parameters.ts";
import type { StepParameters } from "./training.ts";

/** How they train. */
export interface FloatTrainingOptions extends AdamDecay {
  readonly learningRate: number;
  /** Part of a batch's statistics in the running ones. */
  readonly batchNormMomentum: number;
}

/** An initializer that trains. */
interface Slot {
  readonly name: string;
  readonly shape: readonly number[];
  readonly start: number;
}

/** The running statistics of a batch norm, on the GPU. */
interface RunningStatistics {
  readonly mean: Tensor;
  readonly variance: Tensor;
  /** Names of their initializers. */
  readonly names: readonly [mean: string, variance: string];
  /** Bias of the layer before: training leaves it out, because the batch norm takes it away again. */
  readonly bias: ArrayLike<number>;
}

/** Everything that trains in an fp32 network. */
export class FloatParameters implements StepParameters {
  readonly #device: Device;
  readonly #source: ChannelsLastGraph;
  readonly #state: Tensor;
  readonly #options: FloatTrainingOptions;
  readonly #flat: FlatParameters;
  readonly #slots: readonly Slot[];
  readonly #trainables: ReadonlyMap<string, Trainable>;
  readonly #running: RunningStatistics[] = [];
  readonly #batchNorms = new Map<string, LiveBatchNorm>();
  #stored: ReadonlyMap<string, NdArray> | undefined;

  /**
   * @param device where to train
   * @param source the network; every batch norm stands right behind a layer
   * @param state the training state of kernels/schedule.ts
   * @param options learning rate and momentum
   */
  constructor(
    device: Device,
    source: ChannelsLastGraph,
    state: Tensor,
    options: FloatTrainingOptions,
  ) {
    this.#device = device;
    this.#source = source;
    this.#state = state;
    this.#options = options;
    const layout = new FlatLayout();
    this.#slots = trainableNames(source.graph.nodes).map((name) => {
      const { shape } = this.#initializer(name);
      return { name, shape, start: layout.take(paddedSize(shape), options.learningRate) };
    });
    const values = new Float32Array(layout.size);
    for (const { name, shape, start } of this.#slots) {
      values.set(pad(shape, this.#initializer(name).data), start);
    }
    const flat = this.#flat = new FlatParameters(device, layout, values);
    this.#trainables = new Map(
      this.#slots.map(({ name, shape, start }) => [name, flat.trainable(start, shape, name)]),
    );
    for (const node of source.graph.nodes) {
      if (node.opType === "BatchNormalization") this.#addBatchNorm(node);
    }
  }

  /** Weight or bias by initializer name. */
  parameter(name: string): Trainable | undefined {
    return this.#trainables.get(name);
  }

  /** Nothing is quantized. */
  quantizer(): undefined {
    return undefined;
  }

  /** Batch norm by node name. */
  batchNorm(node: string): LiveBatchNorm | undefined {
    return this.#batchNorms.get(node);
  }

  /** The forward pass reads the parameters as they are. */
  recordForward(): void {}

  /** Records the optimizer's step. */
  recordStep(plan: Plan): void {
    this.#flat.recordStep(plan, this.#state, this.#options);
  }

  /** Reads everything back from the GPU. */
  async store(): Promise<void> {
    const values = await this.#flat.read();
    const stored = new Map<string, NdArray>();
    for (const { name, shape, start } of this.#slots) {
      const data = unpad(shape, values.slice(start, start + paddedSize(shape)));
      const array = ndArray("float32", shape, data);
      const layout = this.#source.layouts.get(name);
      stored.set(name, layout ? toOriginalLayout(array, layout) : array);
    }
    for (const { mean, variance, names, bias } of this.#running) {
      const means = (await this.#device.read(mean)).map((value, c) => value + (bias[c] ?? 0));
      stored.set(names[0], ndArray("float32", [means.length], means));
      const variances = await this.#device.read(variance);
      stored.set(names[1], ndArray("float32", [variances.length], variances));
    }
    this.#stored = stored;
  }

  /**
   * The trained arrays, after {@linkcode FloatParameters.store}.
   *
   * @returns arrays by initializer name, channels first
   */
  get stored(): ReadonlyMap<string, NdArray> {
    if (this.#stored === undefined) throw new TypeError("The parameters have not been stored yet");
    return this.#stored;
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    this.#flat[Symbol.dispose]();
    for (const { mean, variance } of this.#running) {
      this.#device.release(mean);
      this.#device.release(variance);
    }
  }

  #addBatchNorm(node: Node): void {
    const [, gamma, beta, meanName, varianceName] = node.inputs as [
      string,
      string,
      string,
      string,
      string,
    ]; // BatchNormalization has five inputs, checked at import
    const bias = this.#biasBefore(node);
    const upload = (name: string, data: Float32Array) =>
      this.#device.fromArray([data.length], data, { label: name });
    const means = this.#initializer(meanName).data;
    const mean = upload(meanName, means.map((value, c) => value - (bias[c] ?? 0)));
    const variance = upload(varianceName, this.#initializer(varianceName).data);
    this.#running.push({ mean, variance, names: [meanName, varianceName], bias });
    this.#batchNorms.set(node.name, {
      gamma: this.#trainables.get(gamma)!,
      beta: this.#trainables.get(beta)!,
      runningMean: mean,
      runningVariance: variance,
      epsilon: numberAttribute(node, "epsilon", 1e-5),
      momentum: this.#options.batchNormMomentum,
      state: this.#state,
    });
  }

  #biasBefore(node: Node): ArrayLike<number> {
    const layer = this.#source.graph.nodes.find(({ outputs }) => outputs[0] === node.inputs[0]);
    const name = layer?.inputs[2] ?? "";
    return name === "" ? [] : this.#initializer(name).data;
  }

  /** All initializers of a channels-last graph are float32. */
  #initializer(name: string): NdArray<"float32"> {
    const array = this.#source.graph.initializers.get(name);
    if (array === undefined) throw new TypeError(`There is no initializer "${name}"`);
    return array as NdArray<"float32">;
  }
}

/** Weights and biases of layers, gammas and betas of batch norms: each once, in node order. */
function trainableNames(nodes: readonly Node[]): string[] {
  const layers = new Set([...LAYER_OPERATORS, "BatchNormalization"]);
  const names = nodes
    .filter((node) => layers.has(node.opType))
    .flatMap((node) => node.inputs.slice(1, 3))
    .filter((name) => name !== "");
  return [...new Set(names)];
}
