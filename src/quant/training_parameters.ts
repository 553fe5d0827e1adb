// The part of a student that trains, on the GPU: one flat buffer of parameters (latent weights, log-scales, batch norm
// or biases, log-scales of activations), so that quantizing all weights, updating all scales and stepping the optimizer
// are one dispatch each. Every tensor starts at a multiple of 64 floats, the grain of the learning rates.
import { type Kernel, paddedSize } from "../../kernels/kernel.ts";
import { CHUNK_SIZE, wholeChunks } from "../../kernels/optimizer.ts";
import {
  hardenSoftRounding,
  initializeSoftRounding,
  softRoundWeights,
  softRoundWeightsBackward,
} from "../../kernels/soft_rounding.ts";
import {
  largestTanh,
  quantizeTanhWeights,
  quantizeTanhWeightsBackward,
} from "../../kernels/tanh_weights.ts";
import { encodeWeightRows } from "../../kernels/weight_quantization.ts";
import { ndArray } from "../core/nd_array.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import { pad, type Tensor, unpad, view } from "../gpu/tensor.ts";
import type { ActivationQuantizer, LiveBatchNorm, Trainable } from "../ops/context.ts";
import { FlatLayout, FlatParameters, type OptimizerSettings } from "../optim/flat_parameters.ts";
import { ActivationParameters, type ActivationTraining } from "./activation_parameters.ts";
import {
  biasRate,
  type LearningRates,
  scheduled,
  weightRate,
  weightScaleRate,
} from "./learning_rates.ts";
import type { LayerState, Student } from "./student.ts";
import { tanhParameters, tanhWeights } from "./tanh_weights.ts";
import {
  WEIGHT_QUANTIZERS,
  weightBackward,
  weightForward,
  type WeightQuantizer,
} from "./weight_quantizers.ts";
import { type LayerSlots, weightRows } from "./weight_rows.ts";

export type { LearningRates } from "./learning_rates.ts";
export type { WeightQuantizer } from "./weight_quantizers.ts";

/** How the parameters train. */
export interface TrainingOptions
  extends
    OptimizerSettings,
    Pick<ActivationTraining, "activationQuantizer" | "quantizedShare" | "features"> {
  readonly rates: LearningRates;
  readonly weightQuantizer: WeightQuantizer;
  /** Part of a batch's statistics in the running ones. */
  readonly batchNormMomentum: number;
  /** Weight of the rounding regulariser (softRounding). */
  readonly roundingRegularizer: number;
  /** Factor of that weight in a layer, by node name; 1 by default. */
  readonly roundingWeights?: ReadonlyMap<string, number>;
}

/** Trainable parameters of some layers and activations of a student. */
export class TrainingParameters implements Disposable {
  readonly #device: Device;
  readonly #student: Student;
  readonly #options: TrainingOptions;
  readonly #state: Tensor;
  readonly #slots: LayerSlots[] = [];
  readonly #activations: ActivationParameters;
  readonly #roundingStart: number;
  readonly #rowCount: number;
  readonly #flat: FlatParameters;
  readonly #tensors: Record<
    "weights" | "weightGradients" | "rows" | "largest" | "rowFactors",
    Tensor
  >;
  readonly #byWeight = new Map<string, Trainable>();
  readonly #byBias = new Map<string, Trainable>();
  readonly #batchNorms = new Map<string, LiveBatchNorm>();
  readonly #running: { layer: LayerState; mean: Tensor; variance: Tensor }[] = [];

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
    const { rates, weightQuantizer } = options;
    const soft = weightQuantizer === "softRounding";
    const { place, learnsScales = false } = WEIGHT_QUANTIZERS[weightQuantizer];
    const layout = new FlatLayout();
    let weightSize = 0;
    for (const name of layers) {
      const found = student.layers.get(name);
      if (found === undefined) throw new TypeError(`The student has no layer "${name}"`);
      const layer = place?.(found) ?? found;
      const channels = layer.logScale.length;
      const floats = paddedSize(layer.latent.shape);
      const { batchNorm, bias } = layer;
      this.#slots.push({
        layer,
        latent: layout.take(floats, soft ? 0 : weightRate(layer, rates)),
        logScale: layout.take(
          channels,
          learnsScales ? weightScaleRate(layer, rates, options.optimizer) : 0,
        ),
        gamma: layout.take(channels, batchNorm ? rates.biases : 0),
        beta: layout.take(channels, batchNorm || bias ? biasRate(rates) : 0),
        weight: weightSize,
      });
      weightSize += wholeChunks(floats);
    }
    this.#activations = new ActivationParameters(device, student, activations, layout, state, {
      ...options,
      rate: rates.activationScales,
      absolute: rates.absolute ?? false,
      weightDecay: rates.weightDecay ?? 0,
    });
    // Soft rounding keeps one variable for each weight, in the layout of the quantized weights.
    this.#roundingStart = layout.take(soft ? weightSize : 0, scheduled(rates, rates.weights));
    this.#flat = new FlatParameters(device, layout, this.#startValues(layout.size));
    const rowsOfSlots = this.#slots.map(weightRows);
    const rows = rowsOfSlots.flat();
    this.#rowCount = rows.length;
    const flat = (floats: number, label: string) =>
      device.tensor([Math.max(floats, CHUNK_SIZE)], { label });
    this.#tensors = {
      weights: flat(weightSize, "quantized weights"),
      weightGradients: flat(weightSize, "gradients of quantized weights"),
      rows: device.uint32(encodeWeightRows(rows), { label: "weight rows" }),
      largest: flat(weightQuantizer === "dorefa" ? rows.length * 4 : 0, "largest tanh of a row"),
      rowFactors: flat(options.roundingWeights ? rows.length : 0, "regulariser factor of a row"),
    };
    this.#load();
    if (options.roundingWeights) {
      const factors = this.#slots.flatMap(({ layer: { node } }, i) =>
        rowsOfSlots[i]!.map(() => options.roundingWeights!.get(node) ?? 1)
      );
      device.uploadRaw(this.#tensors.rowFactors, Float32Array.from(factors));
    }
    for (const slots of this.#slots) this.#addLayer(slots);
  }

  /** Quantized weight or bias by initializer name. */
  parameter(name: string): Trainable | undefined {
    return this.#byWeight.get(name) ?? this.#byBias.get(name);
  }

  /** Quantizer by tensor name. */
  quantizer(tensor: string): ActivationQuantizer | undefined {
    return this.#activations.quantizer(tensor);
  }

  /** Batch norm by node name. */
  batchNorm(node: string): LiveBatchNorm | undefined {
    return this.#batchNorms.get(node);
  }

  /** Records what precedes the forward pass: quantized weights and activation scales from the parameters. */
  recordForward(plan: Plan): void {
    const { rows, weights, largest } = this.#tensors;
    const parameters = this.#flat.values;
    const { target } = this.#device;
    const { weightQuantizer } = this.#options;
    const spec = { rows: this.#rowCount };
    const bound = { parameters, rows, w: weights };
    for (const following of this.#followingScales()) plan.run(...following);
    if (weightQuantizer === "dorefa") {
      plan.run(largestTanh(spec, target), { parameters, rows, largest });
      plan.run(quantizeTanhWeights(spec, target), { ...bound, largest });
    } else if (weightQuantizer === "softRounding") {
      plan.run(softRoundWeights(this.#softRounding(), target), bound);
    } else {
      plan.run(weightForward(weightQuantizer)(spec, target), bound);
    }
    this.#activations.recordForward(plan, parameters);
  }

  /** Records what follows the backward pass: gradients of latent weights and scales, and the optimizer's step. */
  recordStep(plan: Plan): void {
    const { target } = this.#device;
    const { rows, weightGradients: dw, largest, rowFactors } = this.#tensors;
    const { values: parameters, gradients } = this.#flat;
    const { weightQuantizer, roundingRegularizer: regularizer, roundingWeights } = this.#options;
    const bound = { parameters, dw, rows, gradients };
    const spec = { rows: this.#rowCount };
    if (weightQuantizer === "softRounding") {
      const weighted = roundingWeights !== undefined;
      const softSpec = { ...this.#softRounding(), regularizer, weighted };
      plan.run(softRoundWeightsBackward(softSpec, target), {
        ...bound,
        state: this.#state,
        ...(weighted && { row_factors: rowFactors }),
      });
    } else if (weightQuantizer === "dorefa") {
      plan.run(quantizeTanhWeightsBackward(spec, target), { ...bound, largest });
    } else {
      plan.run(weightBackward(weightQuantizer)(spec, target), bound);
    }
    this.#activations.recordBackward(plan, parameters, gradients);
    this.#flat.recordStep(plan, this.#state, this.#options);
  }

  /** Reads the trained parameters back into the student. */
  async store(): Promise<void> {
    const soft = this.#options.weightQuantizer === "softRounding";
    // The last step moved the weights that the scales follow.
    for (const following of this.#followingScales()) this.#device.run(...following);
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
      const stored = unpad(layer.latent.shape, flat.slice(slots.latent, slots.latent + floats));
      const latent = this.#options.weightQuantizer === "dorefa"
        ? tanhWeights(layer, stored)
        : stored;
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
    this.#activations.store(flat, this.#student);
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    this.#flat[Symbol.dispose]();
    this.#activations[Symbol.dispose]();
    for (const tensor of Object.values(this.#tensors)) this.#device.release(tensor);
    for (const { mean, variance } of this.#running) {
      this.#device.release(mean);
      this.#device.release(variance);
    }
  }

  /** The kernel that puts scales where the weights are now, if they follow. */
  #followingScales(): [kernel: Kernel, bindings: Record<string, Tensor>][] {
    const { scale: kernel } = WEIGHT_QUANTIZERS[this.#options.weightQuantizer];
    if (kernel === undefined) return [];
    const bindings = { rows: this.#tensors.rows, parameters: this.#flat.values };
    return [[kernel({ rows: this.#rowCount }, this.#device.target), bindings]];
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
      const values = this.#options.weightQuantizer === "dorefa"
        ? tanhParameters(layer)
        : layer.latent.data;
      flat.set(pad(layer.latent.shape, values), latent);
      flat.set(layer.logScale, logScale);
      if (layer.batchNorm) {
        flat.set(layer.batchNorm.gamma, gamma);
        flat.set(layer.batchNorm.beta, beta);
      } else if (layer.bias) {
        flat.set(layer.bias, beta);
      }
    }
    this.#activations.writeStart(flat);
    return flat;
  }

  /** Uploads what the parameters do not hold. */
  #load(): void {
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
