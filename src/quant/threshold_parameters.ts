// The activation quantizers of a student in training whose levels lie behind thresholds (N2UQ, Liu et al. 2022), as a part
// of the flat parameters: log scale, start of the ramp, and its intervals.
import { paddedSize } from "../../kernels/kernel.ts";
import { CHUNK_SIZE, wholeChunks } from "../../kernels/optimizer.ts";
import {
  encodeThresholdEntries,
  GRID_SIZE,
  type ThresholdEntry,
  thresholdGradients,
  updateThresholds,
} from "../../kernels/threshold_quantize.ts";
import type { Device } from "../gpu/device.ts";
import type { Plan } from "../gpu/plan.ts";
import { type Tensor, view } from "../gpu/tensor.ts";
import type { ActivationQuantizer } from "../ops/context.ts";
import type { FlatLayout } from "../optim/flat_parameters.ts";
import type { ActivationState, Student } from "./student.ts";
import { thresholdGrid, thresholdsBetween, uniformKnots } from "./thresholds.ts";

/** The authors' shortest interval, 1e-3 of a range that is 2 wide. */
const SHORTEST = 5e-4;

/** A quantizer with thresholds, and how fast it learns. */
export interface ThresholdState {
  readonly state: ActivationState;
  readonly channels: number;
  /** Rate of the log scale; 0 keeps the whole grid. */
  readonly scaleRate: number;
  /** Rate of start and intervals, in units of the tensor. */
  readonly knotRate: number;
}

/** A quantizer and its place. */
interface Slot extends ThresholdState {
  readonly knots: Float32Array<ArrayBuffer>;
  readonly entry: ThresholdEntry;
}

/** Quantizers with thresholds among the flat parameters of a student. */
export class ThresholdParameters implements Disposable {
  readonly #device: Device;
  readonly #slots: readonly Slot[];
  readonly #grids: Tensor;
  readonly #sums: Tensor;
  readonly #table: Tensor;

  /**
   * @param device where to train
   * @param states the quantizers; one without knots starts from those of its uniform grid
   * @param layout of the flat parameters; theirs are added to it
   */
  constructor(device: Device, states: readonly ThresholdState[], layout: FlatLayout) {
    this.#device = device;
    let sums = 0;
    this.#slots = states.map((threshold, i): Slot => {
      const { state, channels, scaleRate, knotRate } = threshold;
      const knots = state.knots ?? uniformKnots(state);
      const thresholds = knots.length - 1;
      const entry = {
        logScale: layout.take(1, scaleRate),
        start: layout.take(knots.length, knotRate),
        grid: i * CHUNK_SIZE,
        sums,
        channels,
        thresholds,
        shortest: SHORTEST * (state.quantMax - state.quantMin) * state.scale,
      };
      sums += wholeChunks(paddedSize([thresholds + 2, channels]));
      return { ...threshold, knots, entry };
    });
    const flat = (floats: number, label: string) =>
      device.tensor([Math.max(floats, CHUNK_SIZE)], { label });
    this.#grids = flat(states.length * CHUNK_SIZE, "grids with thresholds");
    this.#sums = flat(sums, "terms of the threshold gradients");
    this.#table = device.uint32(
      encodeThresholdEntries(this.#slots.map(({ entry }) => entry)),
      { label: "thresholds" },
    );
    const grids = new Float32Array(Math.max(states.length, 1) * CHUNK_SIZE);
    for (const { state, knots, entry } of this.#slots) {
      const thresholds = thresholdsBetween(knots);
      grids.set(thresholdGrid({ ...state, thresholds }, knots), entry.grid);
    }
    device.uploadRaw(this.#grids, grids);
  }

  /** Quantizer by tensor name. */
  get quantizers(): ReadonlyMap<string, ActivationQuantizer> {
    return new Map(this.#slots.map(({ state: { tensor }, channels, scaleRate, entry }) => {
      const { grid, sums, thresholds } = entry;
      const shape = [thresholds + 2, channels];
      const quantizer = {
        qparams: view(this.#grids, grid, [4], `qparams of ${tensor}`),
        thresholds: {
          count: thresholds,
          grid: view(this.#grids, grid, [GRID_SIZE], `thresholds of ${tensor}`),
          ...(scaleRate > 0 && { sums: view(this.#sums, sums, shape, `terms of ${tensor}`) }),
        },
      };
      return [tensor, quantizer];
    }));
  }

  /** Writes what they start from into the flat parameters. */
  writeStart(flat: Float32Array<ArrayBuffer>): void {
    for (const { state, knots, entry } of this.#slots) {
      flat[entry.logScale] = Math.log(state.scale);
      knots.forEach((knot, i) => flat[entry.start + i] = i === 0 ? knot : knot - knots[i - 1]!);
    }
  }

  /** Records the grids from the parameters. */
  recordForward(plan: Plan, parameters: Tensor): void {
    const count = this.#slots.length;
    if (count === 0) return;
    plan.run(updateThresholds({ count }, this.#device.target), {
      parameters,
      entries: this.#table,
      grids: this.#grids,
    });
  }

  /** Records the gradients of the parameters. */
  recordBackward(plan: Plan, parameters: Tensor, gradients: Tensor): void {
    const count = this.#slots.length;
    if (count === 0) return;
    plan.run(thresholdGradients({ count }, this.#device.target), {
      parameters,
      grids: this.#grids,
      sums: this.#sums,
      entries: this.#table,
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
    for (const { state, knots: before, entry: { logScale, start, shortest } } of this.#slots) {
      const knots = before.slice();
      knots[0] = flat[start]!;
      // as updateThresholds makes them
      for (let i = 1; i < knots.length; i++) {
        knots[i] = Math.fround(knots[i - 1]! + Math.max(flat[start + i]!, Math.fround(shortest)));
      }
      student.setActivation({
        ...state,
        scale: Math.fround(Math.exp(flat[logScale]!)),
        knots,
        thresholds: thresholdsBetween(knots),
      });
    }
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    for (const tensor of [this.#grids, this.#sums, this.#table]) this.#device.release(tensor);
  }
}
