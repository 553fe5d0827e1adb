// How a peer is asked and how it answers. Every peer is a process of its own that gets one argument, a file with a job as
// JSON, and prints one line of JSON for every thing it has to say.
import { gigaRates, type Row, row } from "../harness.ts";
import type { Machine } from "../result_file.ts";
import type { ConvolutionCase, LstmCase, SMALL_CNN } from "./cases.ts";

/** File of the int8 student in the job's folder: stilla leaves it for other runtimes. */
export const STUDENT_FILE = "student_int8.onnx";

/** What to measure. Names of cases are those of the table; what is absent was not asked for. */
export interface Job {
  /** Timings of each figure. */
  readonly samples: number;
  /** Threads of peers that compute on the processor. */
  readonly threads: number;
  /** Where files for the peers lie, and files that a peer leaves for those after it. */
  readonly folder: string;
  readonly matmuls: readonly MatmulJob[];
  readonly convolutions: readonly ConvolutionJob[];
  readonly lstm?: LstmJob;
  readonly smallCnn?: SmallCnnJob;
  readonly resnet20?: ResNet20Job;
  /** Results of stilla that later peers must reproduce, by name. */
  readonly expected: Readonly<Record<string, readonly number[]>>;
}

/** A product of two matrices from {@linkcode matrices}. */
export interface MatmulJob {
  readonly case: string;
  readonly size: number;
  /** Floating-point operations. */
  readonly operations: number;
}

/** A convolution, forward and both ways. */
export interface ConvolutionJob extends ConvolutionCase {
  readonly forward: string;
  readonly backward: string;
  /** Floating-point operations of the forward pass. */
  readonly operations: number;
}

/** An LSTM, forward and both ways. */
export interface LstmJob extends LstmCase {
  readonly forward: string;
  readonly backward: string;
  /** Floating-point operations of the forward pass. */
  readonly operations: number;
}

/** Training of {@linkcode SMALL_CNN}. */
export interface SmallCnnJob {
  readonly case: string;
  readonly network: typeof SMALL_CNN;
  /** Losses of its first steps in float64. */
  readonly losses: readonly number[];
}

/** Work on ResNet-20. */
export interface ResNet20Job {
  /** The user's folder of ResNet-20 and CIFAR-10. */
  readonly data: string;
  /** fp32 training of all weights with Adam. */
  readonly training?: { readonly case: string; readonly learningRate: number };
  /** Quantization-aware training with labels, 8 bit. */
  readonly qat?: { readonly case: string; readonly learningRate: number };
  /** Training of one residual block after another, 8 bit. */
  readonly layerwise?: {
    /** All blocks. */
    readonly case: string;
    /** One step in each stage of the network. */
    readonly stages: readonly string[];
    readonly steps: number;
    /** Images whose activations are cached. */
    readonly images: number;
  };
  readonly inference?: { readonly float: string; readonly int8: string };
  /** stilla's default recipe. */
  readonly recipes: readonly RecipeJob[];
}

/** A whole distillation: what its bits decide comes from stilla, so that nobody trains by another recipe. */
export interface RecipeJob {
  readonly case: string;
  readonly weightBits: number;
  readonly activationBits: number;
  /** Steps of a unit. */
  readonly steps: number;
  /** Images of a step. */
  readonly batch: number;
  /** Batch norm of the student while it trains. */
  readonly batchNorm: "live" | "frozen" | "folded";
  /** Steps of a unit in which live batch norm uses the statistics of the batch. */
  readonly liveSteps: number;
  /** Learning rates; those of weights in units of their root mean square. */
  readonly rates: {
    readonly weights: number;
    readonly weightScales: number;
    readonly activationScales: number;
    readonly biases: number;
  };
}

/** What a peer says. */
export type Line =
  /** Name and version of the peer; the first line. */
  | { readonly peer: string }
  /** What it runs on, for the file of results. */
  | { readonly machine: Machine }
  | { readonly row: Row }
  /** A case it cannot do, and why. */
  | { readonly case: string; readonly missing: string }
  /** Results that later peers must reproduce. */
  | { readonly expected: Readonly<Record<string, readonly number[]>> };

/** Reads the job that this process was started with. */
export function readJob(): Job {
  const [file] = Deno.args;
  if (file === undefined) throw new TypeError("A peer is started with the file of a job");
  return JSON.parse(Deno.readTextFileSync(file)) as Job; // only bench/peers.ts writes it
}

/** Says something. */
export function say(line: Line): void {
  console.log(JSON.stringify(line));
}

/**
 * Does one case; an error becomes the reason why the peer has no figure for it.
 *
 * @param name of the case
 * @param work checks the answer, then measures and says
 */
export async function attempt(name: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    say({ case: name, missing: error instanceof Error ? error.message : String(error) });
  }
}

/** Work that may be queued many times before anyone waits for it. */
export interface QueuedWork {
  /** Queues it once. */
  readonly run: () => void;
  /** Waits until all that was queued is done. */
  readonly finish: () => Promise<void>;
  /** How often it may be queued before that. */
  readonly mostRuns?: number;
}

/**
 * Times queued work and says how long it takes and, where its operations are known, how fast that is.
 *
 * @param name of the case
 * @param samples timings
 * @param work what to time
 * @param operations floating-point operations of one run
 */
export async function measure(
  name: string,
  samples: number,
  work: QueuedWork,
  operations?: number,
): Promise<void> {
  const times = await queuedTimes(samples, work);
  say({ row: row({ case: name, metric: "time" }, "ms", times) });
  if (operations === undefined) return;
  say({ row: row({ case: name, metric: "rate" }, "GFLOP/s", gigaRates(operations, times)) });
}

/** A sample lasts at least so long: waiting alone costs some libraries 11 ms in Deno. */
const SAMPLE_MILLISECONDS = 200;
const MOST_RUNS = 4096;

/** Milliseconds of one run, from samples of as many runs as fill the time of a sample. */
async function queuedTimes(
  samples: number,
  { run, finish, mostRuns = MOST_RUNS }: QueuedWork,
): Promise<number[]> {
  const timed = async (runs: number) => {
    const start = performance.now();
    for (let i = 0; i < runs; i++) run();
    await finish();
    return performance.now() - start;
  };
  await timed(1); // compiles
  let runs = 1;
  for (
    let time = await timed(runs);
    time < SAMPLE_MILLISECONDS && runs < mostRuns;
    time = await timed(runs)
  ) runs = Math.min(mostRuns, Math.ceil(1.2 * runs * SAMPLE_MILLISECONDS / time));
  const times: number[] = [];
  while (times.length < samples) times.push(await timed(runs) / runs);
  return times;
}
