// Ranges of the activations that will be quantized: the teacher runs over calibration samples with observers on its
// tensors, once for the ranges and, where the observer wants one, once for histograms. Memory does not grow with samples.
import { histogram } from "../../kernels/histogram.ts";
import { minMaxObserver } from "../../kernels/observer.ts";
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { rowsAndChannels } from "../ops/context.ts";
import { OBSERVERS } from "../quant/observers/observers.ts";
import { channelQParams, chooseQParams } from "../quant/qparams.ts";
import { qScheme } from "../quant/scheme.ts";
import type { TensorStatistics } from "../quant/statistics.ts";
import type { ActivationState } from "../quant/student.ts";
import type { RowSet } from "./frontier.ts";
import { type NetworkValues, partBetween, recordForward } from "./inference.ts";
import type { Network } from "./network.ts";
import type { Recipe } from "./recipe.ts";

const BINS = 2048;
const MOVING_AVERAGE = 0.1;

/** Observer of the quant room for each name a recipe may give. */
const OBSERVER_OF_RECIPE = {
  mse: OBSERVERS.mse,
  minmax: OBSERVERS.min_max,
  percentile: OBSERVERS.percentile,
  movingAverage: OBSERVERS.moving_average,
} as const satisfies Record<Recipe["activationObserver"], unknown>;

/** How activations are observed. */
export interface CalibrationOptions {
  readonly batch: number;
  /** How many of the inputs, from the first on. */
  readonly samples: number;
  readonly observer: Recipe["activationObserver"];
  readonly compiling?: CompileOptions;
}

/**
 * Observes the teacher's activations and chooses a quantizer for each.
 *
 * @param device where to run
 * @param network the network
 * @param values the teacher's values
 * @param images the network's inputs
 * @param options batch size, observer, and how kernels are compiled ahead
 * @returns quantizers by tensor, in the order of `network.activationBits`
 * @throws RangeError when an activation is not finite
 */
export async function calibrate(
  device: Device,
  network: Network,
  values: NetworkValues,
  images: RowSet,
  { observer, ...options }: CalibrationOptions,
): Promise<ActivationState[]> {
  const statistics = await observe(device, network, values, images, options);
  const states: ActivationState[] = [];
  for (const [tensor, bits] of network.activationBits) {
    const seen = statistics.get(tensor)!;
    if (!Number.isFinite(seen.min) || !Number.isFinite(seen.max)) {
      throw new RangeError(
        `tensor "${tensor}" is ${seen.min} to ${seen.max} on the calibration inputs, expected finite numbers`,
      );
    }
    const isInput = tensor === network.input;
    const scheme = seen.min >= 0
      ? qScheme({ bits, signed: false, symmetric: true })
      : qScheme({ bits, signed: false, symmetric: false });
    // The input's whole range is meant to be seen; clipping it loses more than it gains.
    const chosen = isInput ? OBSERVERS.min_max : OBSERVER_OF_RECIPE[observer];
    const { min, max } = chosen.chooseRange(seen, scheme);
    const qparams = channelQParams(chooseQParams({ min: [min], max: [max] }, scheme), 0);
    states.push({ tensor, bits, learned: !isInput, ...qparams });
  }
  return states;
}

/** Records what is to be seen of a tensor, by its number. */
type TensorObserver = (plan: Plan, tensor: Tensor, index: number) => void;

async function observe(
  device: Device,
  network: Network,
  values: NetworkValues,
  images: RowSet,
  { batch, samples, compiling }: Omit<CalibrationOptions, "observer">,
): Promise<Map<string, TensorStatistics>> {
  const tensors = [...network.activationBits.keys()];
  const part = partBetween(network.teacher, [network.input], [network.output]);
  const batches = Math.max(1, Math.floor(samples / batch));
  const size = Math.min(batch, samples);
  const record = (plan: Plan, observer: TensorObserver): Tensor => {
    const input = plan.tensor([size, ...images.rowShape], network.input);
    const inputs = new Map([[network.input, input]]);
    const all = recordForward(plan, part, values, inputs, new Set(tensors));
    tensors.forEach((name, i) => observer(plan, all.get(name)!, i));
    return input;
  };
  const run = (observer: TensorObserver) => {
    using plan = new Plan(device);
    const input = record(plan, observer);
    for (let b = 0; b < batches; b++) {
      images.copyOut(b * size, size, input);
      plan.replay();
    }
  };
  const ranges = tensors.map((name) => device.tensor([8], { label: `range ${name}` }));
  const observeRange: TensorObserver = (plan, x, i) => {
    const spec = { ...rowsAndChannels(x.shape), averaging: MOVING_AVERAGE };
    plan.run(minMaxObserver(spec, device.target), { x, range: ranges[i]! });
  };
  const counts = tensors.map((name) =>
    device.uint32(new Uint32Array(BINS), { label: `histogram ${name}` })
  );
  const count: TensorObserver = (plan, x, i) => {
    const spec = { ...rowsAndChannels(x.shape), bins: BINS };
    plan.run(histogram(spec, device.target), { x, range: ranges[i]!, counts: counts[i]! });
  };
  if (compiling) {
    using survey = new KernelSurvey(device);
    for (const observer of [observeRange, count]) record(survey, observer);
    await device.compileAhead(survey.kernels, compiling);
  }
  run(observeRange);
  run(count);
  const result = new Map<string, TensorStatistics>();
  for (const [i, name] of tensors.entries()) {
    const [min = NaN, max = NaN, , , movingMin = NaN, movingMax = NaN] = await device.read(
      ranges[i]!,
    );
    const bins = Float64Array.from(await device.readUint32(counts[i]!));
    const counted = { low: min, high: max, counts: bins };
    result.set(name, { min, max, movingMin, movingMax, histogram: counted });
  }
  for (const tensor of [...ranges, ...counts]) device.release(tensor);
  return result;
}
