// The activation quantizers of a student in training, as a part of the flat parameters: what each learns of its grid,
// the grids on the GPU that the kernels read, and the terms of their gradients.
import {
  type ActivationScale,
  activationScaleGradients,
  encodeActivationScales,
  LEARNED_PARAMETERS,
  type LearnedGrid,
  updateActivationScales,
  zeroPointTerms,
} from "../../kernels/activation_scales.ts";
import type { QuantizerGradient } from "../../kernels/fake_quantize.ts";
import { padded } from "../../kernels/kernel.ts";
import { CHUNK_SIZE } from "../../kernels/optimizer.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import { type Tensor, view } from "../gpu/tensor.ts";
import type { ActivationQuantizer } from "../ops/context.ts";
import type { FlatLayout, OptimizerSettings } from "../optim/flat_parameters.ts";
import { roundHalfEven } from "./rounding.ts";
import type { ActivationState, Student } from "./student.ts";
import { ThresholdParameters, type ThresholdState } from "./threshold_parameters.ts";
import { MOST_THRESHOLD_BITS } from "./thresholds.ts";

/**
 * How an activation's quantizer learns: its scale (LSQ, Esser et al. 2020); scale and zero point (LSQ+, Bhalgat et al.
 * 2020); the clipping bound, from clipped values only and with weight decay (PACT, Choi et al. 2018); the scale, with
 * gradients scaled element by element (EWGS, Lee, Kim, Ham 2021); nothing, so that it clips where calibration put the
 * bound (DoReFa-Net, Zhou et al. 2016); both bounds of the range (ULQ of AMCT); or the scale of the levels and, at 4 bits
 * and less, the thresholds before them (N2UQ, Liu et al. 2022).
 */
export type ActivationTrainer = "lsq" | "lsqPlus" | "pact" | "ewgs" | "dorefa" | "range" | "n2uq";

/** delta of EWGS, the constant that the authors' code starts from; they estimate it anew from the Hessian as they go. */
export const EWGS_DELTA = 1e-3;

/** What distinguishes a quantizer. */
interface TrainerRow {
  /** What is learned, in words; null: nothing. */
  readonly name: string | null;
  /** What is learned; `oneSided` says that the lower bound is 0, as behind a ReLU, where it stays. */
  readonly learns: (oneSided: boolean) => LearnedGrid | "nothing";
  /** LSQ's by default. */
  readonly gradient?: QuantizerGradient;
  /** Weight decay of a learned upper bound; default 0. */
  readonly decay?: number;
  /** Whether thresholds are learned where a grid has few levels. */
  readonly thresholds?: true;
}

const TRAINERS: Readonly<Record<ActivationTrainer, TrainerRow>> = {
  lsq: { name: "activation scales", learns: () => "scale" },
  lsqPlus: { name: "activation scales and zero points", learns: () => "zeroPoint" },
  // Two-sided, both bounds move together, as the scale does.
  pact: {
    name: "activation bounds",
    learns: (oneSided) => oneSided ? "upper" : "scale",
    gradient: { kind: "clipped" },
    decay: 5e-4,
  },
  ewgs: {
    name: "activation scales",
    learns: () => "scale",
    gradient: { kind: "scaled", delta: EWGS_DELTA },
  },
  dorefa: { name: null, learns: () => "nothing" },
  range: { name: "activation ranges", learns: (oneSided) => oneSided ? "upper" : "range" },
  n2uq: { name: "activation scales and thresholds", learns: () => "scale", thresholds: true },
};

/**
 * What training learns of the activations' grids, in words.
 *
 * @param quantizer their quantizer
 * @returns for example `activation scales`; null where they stay as calibrated
 */
export function learnedOfActivations(quantizer: ActivationTrainer): string | null {
  return TRAINERS[quantizer].name;
}

/** What of an activation is quantized: each element with a probability, or ever more of each over the steps. */
export type PartialQuantization =
  | { readonly kind: "random"; readonly probability: number }
  | { readonly kind: "gradual"; readonly steps: number };

/** How activation quantizers train. */
export interface ActivationTraining {
  /** "lsq" by default. */
  readonly activationQuantizer?: ActivationTrainer;
  /** Part of the activations that is quantized in a step; null leaves them float. Default: all. */
  readonly quantizedShare?: PartialQuantization | null;
  /**
   * Learning rate of logarithms of scales, of zero points in codes, and of bounds in units of the range; with
   * `absolute`, of scales and bounds themselves. 0: they stay.
   */
  readonly rate: number;
  /** Default false. */
  readonly absolute?: boolean;
  /** Decoupled weight decay of bounds, beside that of the quantizer; default 0. */
  readonly weightDecay?: number;
  /** Adam by default. For SGD the rate of a scale is an absolute one times LSQ's 1 / sqrt(features * quantMax). */
  readonly optimizer?: OptimizerSettings["optimizer"];
  /** Elements of a sample by tensor, for that; 1 by default. */
  readonly features?: ReadonlyMap<string, number>;
}

/** A range never closes: its scale would be 0. */
const LEAST_RANGE = 1e-6;

/** A quantizer and its place. */
interface Slot {
  readonly state: ActivationState;
  readonly learns: LearnedGrid;
  readonly entry: ActivationScale;
  readonly channels: number;
  /** Whether it has a learning rate. */
  readonly trains: boolean;
}

/** Activation quantizers among the flat parameters of a student. */
export class ActivationParameters implements Disposable {
  readonly #device: Device;
  readonly #slots: readonly Slot[];
  readonly #qparams: Tensor;
  readonly #terms: Tensor;
  readonly #table: Tensor;
  readonly #thresholds: ThresholdParameters;
  readonly #quantizers = new Map<string, ActivationQuantizer>();

  /**
   * @param device where to train
   * @param student whose quantizers they are
   * @param activations tensors whose quantizers are needed, with the channels of each
   * @param layout of the flat parameters; theirs are added to it
   * @param state the training state of kernels/schedule.ts
   * @param training what they learn, and how fast
   */
  constructor(
    device: Device,
    student: Student,
    activations: ReadonlyMap<string, number>,
    layout: FlatLayout,
    state: Tensor,
    training: ActivationTraining,
  ) {
    this.#device = device;
    const all = Array.from(activations, ([tensor, channels]) => {
      const quantizer = student.activations.get(tensor);
      if (quantizer === undefined) throw new TypeError(`"${tensor}" has no quantizer`);
      return { tensor, channels, quantizer };
    });
    let terms = 0;
    const uniform = all.filter(({ quantizer }) => !hasThresholds(quantizer, training));
    this.#slots = uniform.map(({ channels, quantizer }, i): Slot => {
      const { learns, learned, decay } = learning(quantizer, training);
      const trains = quantizer.learned && learned && training.rate > 0;
      const start = layout.take(
        LEARNED_PARAMETERS[learns],
        trains ? { scheduled: rateOf(quantizer, learns, training), decay } : 0,
      );
      const place = { scaleTerms: terms, termCount: padded(channels) / 4 };
      // As many terms of the zero point follow.
      terms = 2 * zeroPointTerms(place) - terms;
      const entry = { ...place, learns, start, qparams: i * (CHUNK_SIZE / 4) };
      return { state: quantizer, learns, entry, channels, trains };
    });
    const flat = (floats: number, label: string) =>
      device.tensor([Math.max(floats, CHUNK_SIZE)], { label });
    this.#qparams = flat(this.#slots.length * CHUNK_SIZE, "activation qparams");
    this.#terms = flat(terms * 4, "terms of the scale gradients");
    const entries = this.#slots.map(({ entry }) => entry);
    this.#table = device.uint32(encodeActivationScales(entries), {
      label: "activation quantizers",
    });
    this.#upload();
    const others = all.filter(({ quantizer }) => hasThresholds(quantizer, training));
    this.#thresholds = new ThresholdParameters(
      device,
      others.map(({ channels, quantizer }) => thresholdState(quantizer, channels, training)),
      layout,
    );
    if (training.quantizedShare === null) return;
    this.#slots.forEach((slot, i) => this.#addQuantizer(slot, i, state, training));
    for (const [tensor, quantizer] of this.#thresholds.quantizers) {
      this.#quantizers.set(tensor, quantizer);
    }
  }

  /** Quantizer by tensor name. */
  quantizer(tensor: string): ActivationQuantizer | undefined {
    return this.#quantizers.get(tensor);
  }

  /** Writes what they start from into the flat parameters. */
  writeStart(flat: Float32Array<ArrayBuffer>): void {
    for (const { state, learns, entry: { start } } of this.#slots) {
      flat.set(parametersOf(state, learns), start);
    }
    this.#thresholds.writeStart(flat);
  }

  /** Records the grids from the parameters. */
  recordForward(plan: Plan, parameters: Tensor): void {
    this.#thresholds.recordForward(plan, parameters);
    const count = this.#slots.length;
    if (count === 0) return;
    plan.run(updateActivationScales({ count }, this.#device.target), {
      parameters,
      quantizers: this.#table,
      qparams: this.#qparams,
    });
  }

  /** Records the gradients of the parameters. */
  recordBackward(plan: Plan, parameters: Tensor, gradients: Tensor): void {
    this.#thresholds.recordBackward(plan, parameters, gradients);
    const count = this.#slots.length;
    if (count === 0) return;
    plan.run(activationScaleGradients({ count }, this.#device.target), {
      quantizers: this.#table,
      qparams: this.#qparams,
      terms: this.#terms,
      gradients,
    });
  }

  /**
   * Keeps the trained grids.
   *
   * @param flat the parameters
   * @param student gets them
   */
  store(flat: Float32Array, student: Student): void {
    for (const { state, learns, entry: { start } } of this.#slots) {
      if (state.learned) student.setActivation({ ...state, ...gridOf(state, learns, flat, start) });
    }
    this.#thresholds.store(flat, student);
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    for (const tensor of [this.#qparams, this.#terms, this.#table]) this.#device.release(tensor);
    this.#thresholds[Symbol.dispose]();
  }

  #upload(): void {
    const qparams = new Float32Array(this.#slots.length * CHUNK_SIZE);
    this.#slots.forEach(({ state: { scale, zeroPoint, quantMin, quantMax } }, i) => {
      qparams.set([scale, zeroPoint, quantMin, quantMax], i * CHUNK_SIZE);
    });
    this.#device.uploadRaw(this.#qparams, qparams);
  }

  #addQuantizer(
    { state: { tensor }, entry, channels, trains, learns }: Slot,
    i: number,
    state: Tensor,
    { quantizedShare: share, activationQuantizer = "lsq" }: ActivationTraining,
  ): void {
    const terms = (vector: number, label: string) =>
      view(this.#terms, vector * 4, [channels], `${label} of ${tensor}`);
    const movesZeroPoint = learns === "range" || learns === "zeroPoint";
    const { gradient } = TRAINERS[activationQuantizer];
    const partial = share ? { partial: { share: { ...share, stream: i + 1 }, state } } : {};
    this.#quantizers.set(tensor, {
      qparams: view(this.#qparams, i * CHUNK_SIZE, [4], `qparams of ${tensor}`),
      ...partial,
      ...(gradient && { gradient }),
      ...(trains && { scaleSums: terms(entry.scaleTerms, "scale") }),
      ...(trains && movesZeroPoint &&
        { zeroPointSums: terms(zeroPointTerms(entry), "zero point") }),
    });
  }
}

/** Whether a quantizer has thresholds, or gets them. */
function hasThresholds(
  { knots, learned, bits }: ActivationState,
  { activationQuantizer = "lsq" }: ActivationTraining,
): boolean {
  if (knots !== undefined) return true;
  return TRAINERS[activationQuantizer].thresholds === true && learned &&
    bits <= MOST_THRESHOLD_BITS;
}

/** A quantizer that has thresholds; they are learned where it says so, else they stay. */
function thresholdState(
  state: ActivationState,
  channels: number,
  training: ActivationTraining,
): ThresholdState {
  const { activationQuantizer = "lsq", rate } = training;
  const trains = state.learned && TRAINERS[activationQuantizer].thresholds === true;
  return {
    state,
    channels,
    scaleRate: trains ? rateOf(state, "scale", training) : 0,
    knotRate: trains ? rate * state.scale : 0,
  };
}

/** What a quantizer learns; one that learns nothing keeps a scale. */
function learning(
  { zeroPoint, quantMin }: ActivationState,
  { activationQuantizer = "lsq", weightDecay = 0 }: ActivationTraining,
): { readonly learns: LearnedGrid; readonly learned: boolean; readonly decay: number } {
  const { learns, decay = 0 } = TRAINERS[activationQuantizer];
  const grid = learns(zeroPoint === quantMin);
  const decayOf = (learned: LearnedGrid) => {
    if (learned === "upper") return decay + weightDecay;
    return learned === "range" ? weightDecay : 0;
  };
  return grid === "nothing"
    ? { learns: "scale", learned: false, decay: 0 }
    : { learns: grid, learned: true, decay: decayOf(grid) };
}

/** A step of log s is one of s over s; its gradient is s times that of s. */
function rateOf(
  { tensor, scale, quantMin, quantMax }: ActivationState,
  learns: LearnedGrid,
  { rate, absolute = false, optimizer = "adam", features }: ActivationTraining,
): number {
  const logarithmic = learns === "scale" || learns === "zeroPoint";
  if (!logarithmic) return absolute ? rate : rate * scale * (quantMax - quantMin);
  if (!absolute) return rate;
  if (optimizer === "adam") return rate / scale;
  return rate / (scale * scale * Math.sqrt((features?.get(tensor) ?? 1) * quantMax));
}

function parametersOf(
  { scale, zeroPoint, quantMin, quantMax }: ActivationState,
  learns: LearnedGrid,
): number[] {
  const low = scale * (quantMin - zeroPoint), high = scale * (quantMax - zeroPoint);
  return {
    scale: [Math.log(scale)],
    zeroPoint: [Math.log(scale), zeroPoint],
    range: [low, high],
    upper: [high],
  }[learns];
}

/** As updateActivationScales makes it. */
function gridOf(
  { zeroPoint, quantMin, quantMax }: ActivationState,
  learns: LearnedGrid,
  flat: Float32Array,
  start: number,
): { scale: number; zeroPoint: number } {
  const [first = 0, second = 0] = flat.subarray(start, start + 2);
  const onGrid = (value: number) => Math.min(quantMax, Math.max(quantMin, roundHalfEven(value)));
  if (learns === "range") {
    const scale = Math.fround(Math.max(second - first, LEAST_RANGE) / (quantMax - quantMin));
    return { scale, zeroPoint: onGrid(quantMin - first / scale) };
  }
  if (learns === "upper") {
    return { scale: Math.fround(Math.max(first, LEAST_RANGE) / (quantMax - zeroPoint)), zeroPoint };
  }
  const scale = Math.fround(Math.exp(first));
  return { scale, zeroPoint: learns === "zeroPoint" ? onGrid(second) : zeroPoint };
}
