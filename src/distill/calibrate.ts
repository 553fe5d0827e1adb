// Quantizers of the activations: the teacher runs over calibration samples with observers on its tensors, and each
// tensor's range makes its scale and zero point. Which exponent of the L_p error is best depends on how heavy the tails
// are and what the layers behind make of them, so unless one is given the network's output decides (LAPQ, Nahshan et al.
// 2019, without its second half).
import type { Device } from "../gpu/device.ts";
import type { Observer, ObserverOptions } from "../quant/observers/observer.ts";
import { OBSERVERS } from "../quant/observers/observers.ts";
import { channelQParams, chooseQParams } from "../quant/qparams.ts";
import { qScheme } from "../quant/scheme.ts";
import type { ActivationState } from "../quant/student.ts";
import type { TensorStatistics } from "../quant/statistics.ts";
import { observeActivations } from "./activation_statistics.ts";
import type { RowSet } from "./frontier.ts";
import type { NetworkValues } from "./inference.ts";
import type { Network } from "./network.ts";
import { leastOutputError } from "./output_error.ts";
import { activationExponentFor } from "./presets.ts";
import type { Recipe } from "./recipe.ts";
import type { PassOptions } from "./teacher_pass.ts";

/** Observer of the quant room for each name a recipe may give. */
const OBSERVER_OF_RECIPE = {
  mse: OBSERVERS.mse,
  minmax: OBSERVERS.min_max,
  percentile: OBSERVERS.percentile,
  movingAverage: OBSERVERS.moving_average,
  kl: OBSERVERS.kl,
  aciqLaplace: OBSERVERS.aciq_laplace,
  aciqGauss: OBSERVERS.aciq_gauss,
  ifmr: OBSERVERS.ifmr,
  hfmg: OBSERVERS.hfmg,
} as const satisfies Record<Recipe["activationObserver"], Observer>;

/** Exponents that the output decides between; the first is the usual one (BRECQ, QDrop). */
const EXPONENTS: readonly number[] = [2.4, 2, 1.5, 1, 3];
/** Forward passes of that decision: the teacher's, and one for each exponent. */
export const EXPONENT_PASSES = EXPONENTS.length + 1;
/** Inputs of that decision at most: its memory does not grow with them. */
export const EXPONENT_INPUTS = 128;

/**
 * How activations are observed, on which inputs; of the observers' settings each reads its own. Without `p`, observer
 * `mse` takes the exponent with the least error of the network's output.
 */
export interface CalibrationOptions extends PassOptions, ObserverOptions {
  readonly observer: Recipe["activationObserver"];
  /** Grid of tensors on both sides of 0; default "auto", which is affine. */
  readonly grid?: Recipe["activationGrid"];
}

/** Quantizers of the activations. */
export interface Calibration {
  /** In the order of `network.activationBits`; none where ranges are taken at run time. */
  readonly states: ActivationState[];
  /** Exponent p of the L_p error that chose their ranges; null where none did. */
  readonly exponent: number | null;
}

/**
 * What of the options a recipe decides.
 *
 * @param recipe complete
 * @returns observer, its settings and the grid
 */
export function observerOf(recipe: Recipe): Omit<CalibrationOptions, keyof PassOptions> {
  const exponent = activationExponentFor(recipe);
  return {
    observer: recipe.activationObserver,
    grid: recipe.activationGrid,
    percentile: recipe.activationPercentile,
    ...(exponent !== null && { p: exponent }),
  };
}

/**
 * Observes the teacher's activations and chooses a quantizer for each.
 *
 * @param device where to run
 * @param network the network
 * @param values the teacher's values
 * @param images the network's inputs
 * @param options which inputs, the observer and the grid
 * @returns the quantizers
 * @throws RangeError when an activation is not finite
 */
export async function calibrate(
  device: Device,
  network: Network,
  values: NetworkValues,
  images: RowSet,
  { observer: name, grid = "auto", ...options }: CalibrationOptions,
): Promise<Calibration> {
  // Nothing to observe, so the teacher need not run.
  if (network.activationBits.size === 0 || network.activationRanges === "dynamic") {
    return { states: [], exponent: null };
  }
  const observer: Observer = OBSERVER_OF_RECIPE[name];
  const observed = { ...options, observer };
  const statistics = await observeActivations(device, network, values, images, observed);
  const statesFor = (settings: ObserverOptions) =>
    Array.from(network.activationBits, ([tensor, bits]) => {
      // The input's whole range is meant to be seen; clipping it loses more than it gains.
      const isInput = tensor === network.input;
      const chosen = isInput ? OBSERVERS.min_max : observer;
      return {
        ...stateOf(tensor, bits, statistics.get(tensor)!, chosen, grid, settings),
        learned: !isInput,
      };
    });
  if (name !== "mse") return { states: statesFor(options), exponent: null };
  if (options.p !== undefined) return { states: statesFor(options), exponent: options.p };
  const candidates = EXPONENTS.map((p) => statesFor({ ...options, p }));
  const samples = Math.min(options.samples, EXPONENT_INPUTS);
  const place = [device, network, values, images] as const;
  const best = await leastOutputError(...place, candidates, { ...options, samples });
  return { states: candidates[best]!, exponent: EXPONENTS[best]! };
}

/** The quantizer of a tensor. */
function stateOf(
  tensor: string,
  bits: number,
  seen: TensorStatistics,
  observer: Observer,
  grid: Recipe["activationGrid"],
  settings: ObserverOptions,
): Omit<ActivationState, "learned"> {
  if (!Number.isFinite(seen.min) || !Number.isFinite(seen.max)) {
    throw new RangeError(
      `tensor "${tensor}" is ${seen.min} to ${seen.max} on the calibration inputs, expected finite numbers`,
    );
  }
  // Without values below 0, codes are unsigned and the zero point is 0 on every grid.
  const symmetric = seen.min >= 0 || grid === "symmetric";
  const scheme = qScheme({ bits, signed: false, symmetric });
  const { min, max } = observer.chooseRange(seen, scheme, settings);
  return { tensor, bits, ...channelQParams(chooseQParams({ min: [min], max: [max] }, scheme), 0) };
}
