// The part of a student that trains, on the GPU: one flat buffer of parameters (latent weights, log-scales, batch norm
// or biases, log-scales of activations), so that quantizing all weights, updating all scales and stepping the optimizer
// are one dispatch each. Every tensor starts at a multiple of 64 floats, the grain of the learning rates.
import {
  activationScaleGradients,
  encodeActivationScales,
  updateActivationScales,
} from "../../kernels/activation_scales.ts";
import { padded, paddedSize } from "../../kernels/kernel.ts";
import { CHUNK_SIZE } from "../../kernels/optimizer.ts";
import {
  hardenSoftRounding,
  initializeSoftRounding,
  softRoundWeights,
  softRoundWeightsBackward,
} from "../../kernels/soft_rounding.ts";
import {
  encodeWeightRows,
  quantizeWeights,
  quantizeWeightsBackward,
} from "../../kernels/weight_quantization.ts";
import { ndArray } from "../core/nd_array.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import { pad, type Tensor, unpad, view } from "../gpu/tensor.ts";
import type { ActivationQuantizer, LiveBatchNorm, Trainable } from "../ops/context.ts";
import { type AdamDecay, FlatLayout, FlatParameters } from "../optim/flat_parameters.ts";
import { type ActivationState, type LayerState, rootMeanSquare, type Student } from "./student.ts";
import { type LayerSlots, weightRows } from "./weight_rows.ts";

/** Learning rates of the groups of parameters. 0 keeps a group as it is. */
export interface LearningRates {
  /** Latent weights, in units of the root mean square of the layer's weights. */
  readonly weights: number;
  /** Logarithm of the weights' scales. */
  readonly weightScales: number;
  /** Logarithm of the activations' scales. */
  readonly activationScales: number;
  /** Batch norm's gamma and beta, or the bias. */
  readonly biases: number;
}

/** What is learned of a weight's rounding. */
export type WeightQuantizer = "lsq" | "ste" | "softRounding";

/** How the parameters train. */
export interface TrainingOptions extends AdamDecay {
  readonly rates: LearningRates;
  readonly weightQuantizer: WeightQuantizer;
  /** Part of a batch's statistics in the running ones. */
  readonly batchNormMomentum: number;
  /** Weight of the rounding regulariser (softRounding). */
  readonly roundingRegularizer: number;
}

/** Trainable parameters of some layers and activations of a student. */
export class TrainingParameters implements Disposable {
  readonly #device: Device;
  readonly #student: Student;
  readonly #options: TrainingOptions;
  readonly #state: Tensor;
  readonly #slots: LayerSlots[] = [];
  readonly #activations: ActivationState[];
  readonly #activationStart: number;
  readonly #roundingStart: number;
  readonly #rowCount: number;
  readonly #flat: FlatParameters;
  readonly #tensors: Record<
    | "weights"
    | "weightGradients"
    | "rows"
    | "qparams"
    | "scaleTerms"
    | "quantizers",
    Tensor
  >;
  readonly #byWeight = new Map<string, Trainable>();
  readonly #byBias = new Map<string, Trainable>();
  readonly #batchNorms = new Map<string, LiveBatchNorm>();
  readonly #running: { layer: LayerState; mean: Tensor; variance: Tensor }[] = [];
  readonly #quantizers = new Map<string, ActivationQuantizer>();

  /**
   * @param device where to train
   * @param student the source, and the target of {@linkcode TrainingParameters.store}
   * @param layers node names of the layers that train
   * @param activations tensors whose quantizers are needed, with the channels of each
   * @param state the training state of kernels/schedule.ts
   * @param options learning rates and quantizer
   */
  constructor(
    device: Device,
    student: Student,
    layers: readonly string[],
    activations: ReadonlyMap<string, number>,
    state: Tensor,
    options: TrainingOptions,
  ) {
    this.#device = device;
    this.#student = student;
    this.#options = options;
    this.#state = state;
    const { rates } = options;
    const soft = options.weightQuantizer === "softRounding";
    const layout = new FlatLayout();
    let weightSize = 0;
    for (const name of layers) {
      const layer = student.layers.get(name);
      if (layer === undefined) throw new TypeError(`The student has no layer "${name}"`);
      const channels = layer.logScale.length;
      const floats = paddedSize(layer.latent.shape);
      const { batchNorm, bias } = layer;
      this.#slots.push({
        layer,
        latent: layout.take(floats, soft ? 0 : rates.weights * rootMeanSquare(layer.latent.data)),
        logScale: layout.take(channels, options.weightQuantizer === "lsq" ? rates.weightScales : 0),
        gamma: layout.take(channels, batchNorm ? rates.biases : 0),
        beta: layout.take(channels, batchNorm || bias ? rates.biases : 0),
        weight: weightSize,
      });
      weightSize += roundUp(floats);
    }
    this.#activations = Array.from(activations.keys(), (tensor) => {
      const activation = student.activations.get(tensor);
      if (activation === undefined) throw new TypeError(`"${tensor}" has no quantizer`);
      return activation;
    });
    this.#activationStart = layout.take(this.#activations.length, rates.activationScales);
    // Soft rounding keeps one variable for each weight, in the layout of the quantized weights.
    this.#roundingStart = layout.take(soft ? weightSize : 0, rates.weights);
    this.#flat = new FlatParameters(device, layout, this.#startValues(layout.size));
    const rows = this.#slots.flatMap(weightRows);
    this.#rowCount = rows.length;
    const termStarts: number[] = [];
    let terms = 0;
    for (const channels of activations.values()) {
      termStarts.push(terms);
      terms += roundUp(padded(channels));
    }
    const table = this.#activations.map((_, i) => ({
      logScale: this.#activationStart + i,
      qparams: i * (CHUNK_SIZE / 4),
      scaleTerms: termStarts[i]! / 4,
      scaleTermCount: padded([...activations.values()][i]!) / 4,
    }));
    const flat = (floats: number, label: string) =>
      device.tensor([Math.max(floats, CHUNK_SIZE)], { label });
    this.#tensors = {
      weights: flat(weightSize, "quantized weights"),
      weightGradients: flat(weightSize, "gradients of quantized weights"),
      rows: device.uint32(encodeWeightRows(rows), { label: "weight rows" }),
      qparams: flat(this.#activations.length * CHUNK_SIZE, "activation qparams"),
      scaleTerms: flat(terms, "terms of the scale gradients"),
      quantizers: device.uint32(encodeActivationScales(table), { label: "activation quantizers" }),
    };
    this.#load();
    for (const slots of this.#slots) this.#addLayer(slots);
    this.#activations.forEach(({ tensor, learned }, i) => {
      const channels = activations.get(tensor)!;
      const learns = learned && options.rates.activationScales > 0;
      this.#quantizers.set(tensor, {
        qparams: view(this.#tensors.qparams, i * CHUNK_SIZE, [4], `qparams of ${tensor}`),
        ...(learns && {
          scaleSums: view(
            this.#tensors.scaleTerms,
            termStarts[i]!,
            [channels],
            `scale of ${tensor}`,
          ),
        }),
      });
    });
  }

  /** Quantized weight or bias by initializer name. */
  parameter(name: string): Trainable | undefined {
    return this.#byWeight.get(name) ?? this.#byBias.get(name);
  }

  /** Quantizer by tensor name. */
  quantizer(tensor: string): ActivationQuantizer | undefined {
    return this.#quantizers.get(tensor);
  }

  /** Batch norm by node name. */
  batchNorm(node: string): LiveBatchNorm | undefined {
    return this.#batchNorms.get(node);
  }

  /** Records what precedes the forward pass: quantized weights and activation scales from the parameters. */
  recordForward(plan: Plan): void {
    const { rows, weights, quantizers, qparams } = this.#tensors;
    const parameters = this.#flat.values;
    const { target } = this.#device;
    const kernel = this.#options.weightQuantizer === "softRounding"
      ? softRoundWeights(this.#softRounding(), target)
      : quantizeWeights({ rows: this.#rowCount }, target);
    plan.run(kernel, { parameters, rows, w: weights });
    if (this.#activations.length === 0) return;
    const count = this.#activations.length;
    plan.run(updateActivationScales({ count }, target), { parameters, quantizers, qparams });
  }

  /** Records what follows the backward pass: gradients of latent weights and scales, and the optimizer's step. */
  recordStep(plan: Plan): void {
    const { target } = this.#device;
    const t = this.#tensors;
    const { rows } = t;
    const { values: parameters, gradients } = this.#flat;
    if (this.#options.weightQuantizer === "softRounding") {
      const spec = {
        ...this.#softRounding(),
        regularizer: this.#options.roundingRegularizer,
      };
      plan.run(softRoundWeightsBackward(spec, target), {
        parameters,
        dw: t.weightGradients,
        state: this.#state,
        rows,
        gradients,
      });
    } else {
      const kernel = quantizeWeightsBackward({ rows: this.#rowCount }, target);
      plan.run(kernel, { parameters, dw: t.weightGradients, rows, gradients });
    }
    if (this.#activations.length > 0) {
      plan.run(activationScaleGradients({ count: this.#activations.length }, target), {
        quantizers: t.quantizers,
        qparams: t.qparams,
        scale_terms: t.scaleTerms,
        gradients,
      });
    }
    this.#flat.recordStep(plan, this.#state, this.#options);
  }

  /** Reads the trained parameters back into the student. */
  async store(): Promise<void> {
    const soft = this.#options.weightQuantizer === "softRounding";
    const flat = soft ? await this.#readHardened() : await this.#flat.read();
    const running = new Map<LayerState, { mean: Float32Array; variance: Float32Array }>();
    for (const { layer, mean, variance } of this.#running) {
      running.set(layer, {
        mean: await this.#device.read(mean),
        variance: await this.#device.read(variance),
      });
    }
    for (const slots of this.#slots) {
      const { layer } = slots;
      const channels = layer.logScale.length;
      const values = (start: number) => flat.slice(start, start + channels);
      const floats = paddedSize(layer.latent.shape);
      const latent = unpad(layer.latent.shape, flat.slice(slots.latent, slots.latent + floats));
      const statistics = running.get(layer);
      this.#student.setLayer({
        ...layer,
        latent: ndArray("float32", layer.latent.shape, latent),
        logScale: values(slots.logScale),
        ...(layer.bias && { bias: values(slots.beta) }),
        ...(layer.batchNorm && statistics && {
          batchNorm: {
            ...layer.batchNorm,
            gamma: values(slots.gamma),
            beta: values(slots.beta),
            mean: statistics.mean.slice(),
            variance: statistics.variance.slice(),
          },
        }),
      });
    }
    this.#activations.forEach((activation, i) => {
      if (!activation.learned) return;
      const scale = Math.fround(Math.exp(flat[this.#activationStart + i]!));
      this.#student.setActivation({ ...activation, scale });
    });
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    this.#flat[Symbol.dispose]();
    for (const tensor of Object.values(this.#tensors)) this.#device.release(tensor);
    for (const { mean, variance } of this.#running) {
      this.#device.release(mean);
      this.#device.release(variance);
    }
  }

  #softRounding(): { rows: number; roundingStart: number } {
    return { rows: this.#rowCount, roundingStart: this.#roundingStart / 4 };
  }

  /**
   * The parameters with latent weights on the grid. The kernels that trained them decide what is up and down, since the
   * host's exp may put a weight near a grid point on its other side. A copy, so that training may go on.
   */
  async #readHardened(): Promise<Float32Array<ArrayBuffer>> {
    const { values } = this.#flat;
    const parameters = this.#device.tensor(values.shape, { label: "hardened", zeroed: false });
    this.#device.copy(values, parameters);
    const kernel = hardenSoftRounding(this.#softRounding(), this.#device.target);
    this.#device.run(kernel, { parameters, rows: this.#tensors.rows });
    const hardened = await this.#device.readRaw(parameters);
    this.#device.release(parameters);
    return hardened;
  }

  /** The student's values, in the places of the slots. */
  #startValues(size: number): Float32Array<ArrayBuffer> {
    const flat = new Float32Array(size);
    for (const { layer, latent, logScale, gamma, beta } of this.#slots) {
      flat.set(pad(layer.latent.shape, layer.latent.data), latent);
      flat.set(layer.logScale, logScale);
      if (layer.batchNorm) {
        flat.set(layer.batchNorm.gamma, gamma);
        flat.set(layer.batchNorm.beta, beta);
      } else if (layer.bias) {
        flat.set(layer.bias, beta);
      }
    }
    this.#activations.forEach(({ scale }, i) => {
      flat[this.#activationStart + i] = Math.log(scale);
    });
    return flat;
  }

  /** Uploads what the parameters do not hold. */
  #load(): void {
    const qparams = new Float32Array(this.#activations.length * CHUNK_SIZE);
    this.#activations.forEach(({ scale, zeroPoint, quantMin, quantMax }, i) => {
      qparams.set([scale, zeroPoint, quantMin, quantMax], i * CHUNK_SIZE);
    });
    this.#device.uploadRaw(this.#tensors.qparams, qparams);
    if (this.#options.weightQuantizer === "softRounding") {
      this.#device.run(initializeSoftRounding(this.#softRounding(), this.#device.target), {
        parameters: this.#flat.values,
        rows: this.#tensors.rows,
      });
    }
  }

  #addLayer({ layer, gamma, beta, weight }: LayerSlots): void {
    const { weights, weightGradients } = this.#tensors;
    const { shape } = layer.latent;
    const channels = layer.logScale.length;
    this.#byWeight.set(layer.weight, {
      value: view(weights, weight, shape, layer.weight),
      gradient: view(weightGradients, weight, shape, `gradient of ${layer.weight}`),
    });
    const trainable = (start: number, label: string): Trainable =>
      this.#flat.trainable(start, [channels], label);
    const { batchNorm } = layer;
    if (batchNorm) {
      const mean = this.#device.fromArray([channels], batchNorm.mean, { label: "running mean" });
      const variance = this.#device.fromArray([channels], batchNorm.variance, {
        label: "running variance",
      });
      this.#running.push({ layer, mean, variance });
      this.#batchNorms.set(batchNorm.node, {
        gamma: trainable(gamma, `gamma of ${batchNorm.node}`),
        beta: trainable(beta, `beta of ${batchNorm.node}`),
        runningMean: mean,
        runningVariance: variance,
        epsilon: batchNorm.epsilon,
        momentum: this.#options.batchNormMomentum,
        state: this.#state,
      });
    } else if (layer.bias && layer.biasName !== undefined) {
      this.#byBias.set(layer.biasName, trainable(beta, layer.biasName));
    }
  }
}

function roundUp(floats: number): number {
  return Math.ceil(floats / CHUNK_SIZE) * CHUNK_SIZE;
}
