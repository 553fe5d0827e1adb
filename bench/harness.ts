// What every subject of the benchmark shares: what a figure is, the two clocks (wall and adapter) and the check of an
// answer. A subject checks its answer before it is timed; a wrong answer ends it.
import type { Command } from "../src/gpu/commands.ts";
import type { Device } from "../src/gpu/device.ts";

/** One figure. Results are kept by subject, case and metric. */
export interface Measurement {
  /** For example `kernels`. */
  readonly subject: string;
  /** What was measured, for example `conv 3x3 16->16 32x32 forward`. */
  readonly case: string;
  /** Which property of it, for example `rate` or `step`. */
  readonly metric: string;
  /** For example `ms` or `GFLOP/s`. */
  readonly unit: string;
  readonly median: number;
  /** The smallest value, or the largest where more is better. */
  readonly best: number;
  /** How many values there were. */
  readonly samples: number;
  /** Median as a fraction of what the adapter was measured to be able to do at best, 0 to 1. */
  readonly share?: number;
  readonly note?: string;
}

/** A figure as a subject gives it; its subject is added by who runs the subject. */
export type Row = Omit<Measurement, "subject">;

/** What a subject is run with. */
export interface BenchContext {
  readonly device: Device;
  /** Timings of each figure. */
  readonly samples: number;
  /** Folder of ResNet-20 and CIFAR-10 (see resnet20.ts); subjects that need it do not run without. */
  readonly data: string;
  /** Seeds of whole distillations. */
  readonly seeds: readonly number[];
}

/** One file of `bench/subjects`. */
export interface Subject {
  /** What it measures, in a few words. */
  readonly about: string;
  /** Whether it works on ResNet-20 and CIFAR-10. */
  readonly needsData: boolean;
  /** Whether it runs only when asked for by name, because it takes long. */
  readonly onlyByName: boolean;
  /** Gives its figures as they come; throws where an answer is wrong. */
  readonly run: (context: BenchContext) => AsyncGenerator<Row>;
}

/** What a figure may have besides its values. */
export interface RowOptions {
  /** The largest rate the adapter was measured at, in the same unit. */
  readonly ceiling?: number;
  readonly note?: string;
  /** Which values are better; default: more of what is counted a second, less of everything else. */
  readonly better?: "more" | "less";
}

/**
 * Makes a figure of its values.
 *
 * @param name case and metric
 * @param unit of the values
 * @param values one or more
 * @param options ceiling and note
 * @returns the figure
 */
export function row(
  name: { readonly case: string; readonly metric: string },
  unit: string,
  values: readonly number[],
  { ceiling, note, better = unit.endsWith("/s") ? "more" : "less" }: RowOptions = {},
): Row {
  const middle = median(values);
  return {
    case: name.case,
    metric: name.metric,
    unit,
    median: middle,
    best: better === "more" ? Math.max(...values) : Math.min(...values),
    samples: values.length,
    ...(ceiling !== undefined && { share: middle / ceiling }),
    ...(note !== undefined && { note }),
  };
}

/**
 * The middle value; the mean of the middle two of an even number.
 *
 * @param values one or more, in any order
 * @returns their median
 * @throws RangeError when there are none
 */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError("Cannot take the median of no values");
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  const upper = sorted[half]!; // there is at least one value
  return sorted.length % 2 === 1 ? upper : (sorted[half - 1]! + upper) / 2;
}

/**
 * Times something by the wall clock, after a warm-up.
 *
 * @param samples how often
 * @param work what to time; must wait for the adapter by itself
 * @returns milliseconds of each run
 */
export async function wallTimes(samples: number, work: () => Promise<unknown>): Promise<number[]> {
  const times: number[] = [];
  await work();
  while (times.length < samples) {
    const start = performance.now();
    await work();
    times.push(performance.now() - start);
  }
  return times;
}

/**
 * Times work by the adapter's own timestamps, after a warm-up.
 *
 * @param device where they run
 * @param samples how often
 * @param commands what to time, all together
 * @returns milliseconds of each run
 * @throws TypeError when the adapter has no timestamps
 */
export async function deviceTimes(
  device: Device,
  samples: number,
  commands: readonly Command[],
): Promise<number[]> {
  const times: number[] = [];
  device.submit(commands);
  while (times.length < samples) {
    const nanoseconds = await device.time(commands);
    if (nanoseconds === undefined) throw new TypeError("The adapter has no timestamps");
    times.push(nanoseconds.reduce((sum, value) => sum + value, 0) / 1e6);
  }
  return times;
}

/**
 * Rates in billions a second.
 *
 * @param amount of work
 * @param milliseconds it took
 * @returns one rate for each time
 */
export function gigaRates(amount: number, milliseconds: readonly number[]): number[] {
  return milliseconds.map((ms) => amount / ms / 1e6);
}

/**
 * Compares elements of a result with what they should be.
 *
 * @param name of the result, for the error
 * @param found the result
 * @param expected value by index, in float64
 * @param tolerance largest absolute error
 * @throws Error naming the first element that is off
 */
export function checkElements(
  name: string,
  found: ArrayLike<number>,
  expected: Iterable<readonly [index: number, value: number]>,
  tolerance: number,
): void {
  for (const [index, value] of expected) {
    const error = Math.abs(found[index]! - value);
    // Not `error > tolerance`: NaN must fail, too.
    if (!(error <= tolerance)) {
      throw new Error(
        `${name}[${index}] is ${found[index]}, expected ${value} within ${tolerance}`,
      );
    }
  }
}

/**
 * Runs a module of the benchmark in a process of its own, where nothing is warm but what is on disk.
 *
 * @param module its URL
 * @param args its arguments
 * @param env environment variables on top of this process's
 * @returns what it printed as JSON, and the seconds from its start to its end
 * @throws Error with what it wrote to standard error when it failed
 */
export async function runModule<T>(
  module: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<{ result: T; seconds: number }> {
  const start = performance.now();
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", module, ...args],
    env,
    stdout: "piped",
    stderr: "piped",
  }).output();
  const seconds = (performance.now() - start) / 1000;
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  if (!success) throw new Error(`${module} failed: ${text(stderr).trim()}`);
  // The caller names the type that the module prints.
  return { result: JSON.parse(text(stdout)) as T, seconds };
}
