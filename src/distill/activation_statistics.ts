// Statistics of the teacher's activations: one pass for the ranges and, where the observer wants
// one, one for histograms. Counts of many images do not fit uint32, so the host takes them over now and then.
import { histogram } from "../../kernels/histogram.ts";
import { minMaxObserver } from "../../kernels/observer.ts";
import type { Device } from "../gpu/device.ts";
import { rowsAndChannels } from "../ops/context.ts";
import type { Observer } from "../quant/observers/observer.ts";
import type { TensorStatistics } from "../quant/statistics.ts";
import type { RowSet } from "./frontier.ts";
import type { NetworkValues } from "./inference.ts";
import type { Network } from "./network.ts";
import { type PassOptions, TeacherPass, type TensorObserver } from "./teacher_pass.ts";

const BINS = 2048;
const MOVING_AVERAGE = 0.1;

/** What is gathered, of which inputs. */
export interface StatisticsOptions extends PassOptions {
  /** Which histogram it reads, if any. */
  readonly observer: Pick<Observer, "needsHistogram" | "bins" | "absolute">;
  /** Largest count a bin may reach on the GPU before the host takes it over; default 2^32 - 1. */
  readonly mostCount?: number;
}

/**
 * Observes the tensors that will be quantized.
 *
 * @param device where to run
 * @param network the network
 * @param values the teacher's values
 * @param images the network's inputs
 * @param options which inputs, and the observer
 * @returns statistics by tensor; a histogram without bins where the observer reads none
 */
export async function observeActivations(
  device: Device,
  network: Network,
  values: NetworkValues,
  images: RowSet,
  { observer, mostCount = 2 ** 32 - 1, ...options }: StatisticsOptions,
): Promise<Map<string, TensorStatistics>> {
  const { needsHistogram, bins = BINS, absolute = false } = observer;
  const tensors = [...network.activationBits.keys()];
  const pass = new TeacherPass(device, network, values, images, tensors, options);
  const ranges = tensors.map((name) => device.tensor([8], { label: `range ${name}` }));
  const observeRange: TensorObserver = (plan, x, i) => {
    const spec = { ...rowsAndChannels(x.shape), averaging: MOVING_AVERAGE };
    plan.run(minMaxObserver(spec, device.target), { x, range: ranges[i]! });
  };
  const counted = needsHistogram ? tensors : [];
  const zeros = new Uint32Array(bins);
  const counts = counted.map((name) => device.uint32(zeros, { label: `histogram ${name}` }));
  const sums = tensors.map(() => new Float64Array(needsHistogram ? bins : 0));
  let largest = 0;
  const count: TensorObserver = (plan, x, i) => {
    const { rows, channels } = rowsAndChannels(x.shape);
    largest = Math.max(largest, rows * channels);
    const kernel = histogram({ rows, channels, bins, absolute }, device.target);
    plan.run(kernel, { x, range: ranges[i]!, counts: counts[i]! });
  };
  await pass.compileAhead(needsHistogram ? [observeRange, count] : [observeRange]);
  await pass.run(observeRange);
  if (needsHistogram) {
    let pending = 0;
    const drain = async () => {
      for (const [i, tensor] of counts.entries()) {
        (await device.readUint32(tensor)).forEach((value, bin) => sums[i]![bin]! += value);
        device.uploadRaw(tensor, zeros);
      }
      pending = 0;
    };
    await pass.run(count, async () => {
      pending += largest;
      if (pending + largest > mostCount) await drain();
    });
    await drain();
  }
  const result = new Map<string, TensorStatistics>();
  for (const [i, name] of tensors.entries()) {
    const [min = NaN, max = NaN, , , movingMin = NaN, movingMax = NaN] = await device.read(
      ranges[i]!,
    );
    const [low, high] = absolute ? [0, Math.max(-min, max)] : [min, max];
    const histogram = { low, high, counts: sums[i]! };
    result.set(name, { min, max, movingMin, movingMax, histogram });
  }
  for (const tensor of [...ranges, ...counts]) device.release(tensor);
  return result;
}
