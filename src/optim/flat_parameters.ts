// Many parameters in one flat buffer, with the optimizer's moments beside it, so that a step is one dispatch. Each
// parameter starts at a multiple of 64 floats, which is also the grain of the learning rates.
import { adam, CHUNK_SIZE, sgd, wholeChunks } from "../../kernels/optimizer.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import { type Tensor, view } from "../gpu/tensor.ts";

/** How fast a parameter trains. */
export interface ParameterRate {
  /** Times the schedule's factor. */
  readonly scheduled?: number;
  /** The same in every step. */
  readonly constant?: number;
  /** Decoupled weight decay (AdamW). */
  readonly decay?: number;
}

/** Where parameters lie in a flat buffer, in floats. */
export class FlatLayout {
  #size = 0;
  readonly #rates: { readonly start: number; readonly end: number; rate: ParameterRate }[] = [];

  /** Floats of the buffer so far; a multiple of 64. */
  get size(): number {
    return this.#size;
  }

  /**
   * Reserves a place.
   *
   * @param floats physical size of the parameter
   * @param rate its learning rate, with the schedule if it is a number; 0 keeps it as it is
   * @returns where it starts
   */
  take(floats: number, rate: number | ParameterRate): number {
    const start = this.#size;
    this.#size += wholeChunks(floats);
    this.#rates.push({
      start,
      end: this.#size,
      rate: typeof rate === "number" ? { scheduled: rate } : rate,
    });
    return start;
  }

  /** @returns [size / 64, 4]: what the optimizer knows of every 64 floats (kernels/optimizer.ts) */
  learningRates(): Float32Array<ArrayBuffer> {
    const result = new Float32Array(this.#size / CHUNK_SIZE * 4);
    for (const { start, end, rate } of this.#rates) {
      const { scheduled = 0, constant = 0, decay = 0 } = rate;
      for (let chunk = start / CHUNK_SIZE; chunk < end / CHUNK_SIZE; chunk++) {
        result.set([scheduled, constant, decay], chunk * 4);
      }
    }
    return result;
  }
}

/** Decay of Adam's moments. */
export interface AdamDecay {
  /** Of the mean of the gradients. */
  readonly beta1: number;
  /** Of the mean of their squares. */
  readonly beta2: number;
}

/** How parameters are stepped. */
export interface OptimizerSettings extends AdamDecay {
  /** Adam, the default, or stochastic gradient descent with Nesterov momentum beta1. */
  readonly optimizer?: "adam" | "sgd";
}

/** Parameters, gradients and the optimizer's moments on the GPU. */
export class FlatParameters implements Disposable {
  readonly #device: Device;
  readonly #size: number;
  /** All parameters. */
  readonly values: Tensor;
  /** Their gradients. */
  readonly gradients: Tensor;
  readonly #moment1: Tensor;
  readonly #moment2: Tensor;
  readonly #learningRates: Tensor;

  /**
   * @param device where they lie
   * @param layout the places of all parameters
   * @param values [layout.size] what they start from, in physical layout
   */
  constructor(device: Device, layout: FlatLayout, values: Float32Array<ArrayBuffer>) {
    this.#device = device;
    this.#size = layout.size;
    const flat = (label: string) => device.tensor([this.#size], { label });
    this.values = flat("parameters");
    this.gradients = flat("gradients");
    this.#moment1 = flat("moment1");
    this.#moment2 = flat("moment2");
    const rates = layout.learningRates();
    this.#learningRates = device.fromArray([rates.length], rates, { label: "learning rates" });
    device.uploadRaw(this.values, values);
  }

  /**
   * A parameter and the place of its gradient.
   *
   * @param start where it starts, from {@linkcode FlatLayout.take}
   * @param shape its shape
   * @param label name for messages
   * @returns views on the buffers
   */
  trainable(
    start: number,
    shape: readonly number[],
    label: string,
  ): { readonly value: Tensor; readonly gradient: Tensor } {
    return {
      value: view(this.values, start, shape, label),
      gradient: view(this.gradients, start, shape, `gradient of ${label}`),
    };
  }

  /**
   * Records a step of the optimizer over all parameters.
   *
   * @param plan where to record
   * @param state the training state of kernels/schedule.ts
   * @param settings the optimizer, and the decay of its moments as the state was made for
   */
  recordStep(plan: Plan, state: Tensor, settings: OptimizerSettings): void {
    const { optimizer = "adam", beta1, beta2 } = settings;
    const { target } = this.#device;
    const size = this.#size;
    const bound = {
      parameters: this.values,
      gradients: this.gradients,
      moment1: this.#moment1,
      learning_rates: this.#learningRates,
      state,
    };
    if (optimizer === "sgd") {
      plan.run(sgd({ size, momentum: beta1, nesterov: true }, target), bound);
    } else {
      const kernel = adam({ size, beta1, beta2, epsilon: 1e-8 }, target);
      plan.run(kernel, { ...bound, moment2: this.#moment2 });
    }
  }

  /** @returns all values, in physical layout */
  read(): Promise<Float32Array<ArrayBuffer>> {
    return this.#device.readRaw(this.values);
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    for (
      const tensor of [
        this.values,
        this.gradients,
        this.#moment1,
        this.#moment2,
        this.#learningRates,
      ]
    ) this.#device.release(tensor);
  }
}
