// The teacher running over calibration inputs batch by batch, with something recorded at some of its tensors. What is
// gathered lies in buffers of the observer's own, so memory does not grow with the inputs.
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { RowSet } from "./frontier.ts";
import { type NetworkValues, partBetween, recordForward } from "./inference.ts";
import type { Network } from "./network.ts";

/** Which inputs are looked at. */
export interface PassOptions {
  /** Inputs at a time. */
  readonly batch: number;
  /** How many of the inputs, from the first on; rounded down to whole batches. */
  readonly samples: number;
  /** How kernels are compiled ahead; without it they are compiled as they are needed. */
  readonly compiling?: CompileOptions;
}

/** Records what is to be gathered of a tensor, by its number. */
export type TensorObserver = (plan: Plan, tensor: Tensor, index: number) => void;

/** Passes over the same inputs with the same tensors kept. */
export class TeacherPass {
  readonly #device: Device;
  readonly #network: Network;
  readonly #values: NetworkValues;
  readonly #images: RowSet;
  readonly #tensors: readonly string[];
  readonly #options: PassOptions;

  /**
   * @param device where to run
   * @param network the network
   * @param values the teacher's values
   * @param images the network's inputs
   * @param tensors names of the tensors that are observed
   * @param options which inputs
   */
  constructor(
    device: Device,
    network: Network,
    values: NetworkValues,
    images: RowSet,
    tensors: readonly string[],
    options: PassOptions,
  ) {
    this.#device = device;
    this.#network = network;
    this.#values = values;
    this.#images = images;
    this.#tensors = tensors;
    this.#options = options;
  }

  /** Compiles the kernels of passes ahead, if the options say so. */
  async compileAhead(observers: readonly TensorObserver[]): Promise<void> {
    const { compiling } = this.#options;
    if (compiling === undefined) return;
    using survey = new KernelSurvey(this.#device);
    for (const observer of observers) this.#record(survey, observer);
    await this.#device.compileAhead(survey.kernels, compiling);
  }

  /**
   * Runs all batches.
   *
   * @param observer what to record
   * @param afterBatch called behind each batch
   * @returns how many there were
   */
  async run(observer: TensorObserver, afterBatch?: () => Promise<void>): Promise<number> {
    const { samples, compiling } = this.#options;
    const size = this.#batch;
    const batches = Math.max(1, Math.floor(samples / size));
    using plan = new Plan(this.#device);
    const input = this.#record(plan, observer);
    for (let b = 0; b < batches; b++) {
      compiling?.signal?.throwIfAborted();
      this.#images.copyOut(b * size, size, input);
      plan.replay();
      await afterBatch?.();
      await this.#device.breathe();
    }
    return batches;
  }

  get #batch(): number {
    return Math.min(this.#options.batch, this.#options.samples);
  }

  #record(plan: Plan, observer: TensorObserver): Tensor {
    const { input: name, output, teacher } = this.#network;
    const part = partBetween(teacher, [name], [output]);
    const input = plan.tensor([this.#batch, ...this.#images.rowShape], name);
    const inputs = new Map([[name, input]]);
    const all = recordForward(plan, part, this.#values, inputs, new Set(this.#tensors));
    this.#tensors.forEach((tensor, i) => observer(plan, all.get(tensor)!, i));
    return input;
  }
}
