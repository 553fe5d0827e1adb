// Measures which tile of a kernel is the fastest on this adapter. All candidates run in every round, one after another,
// and are compared with the default of the same round, so that a disturbance from outside hits them alike. The default
// stays unless another tile is clearly faster by every measure, and no tile is taken whose answer differs from its.
import type { KernelSequence, TileChoice, TileTable } from "../../kernels/kernel.ts";
import { GpuError } from "../core/errors.ts";
import { Rng } from "../core/rng.ts";
import type { Dispatch } from "./commands.ts";
import type { Device } from "./device.ts";
import { pick } from "./bindings.ts";
import type { Tensor } from "./tensor.ts";

/** What was measured for a kernel and shape. */
export interface TunedTile {
  /** Kernel and shape, as in {@linkcode TileChoice}. */
  readonly key: string;
  /** The tile without tuning. */
  readonly defaultTile: string;
  readonly defaultNanoseconds: number;
  /** The fastest tile; the default where none is clearly faster. */
  readonly tile: string;
  readonly nanoseconds: number;
  /** Tiles that did not run or gave another answer: none, unless a driver is at fault. */
  readonly refused: readonly string[];
}

/** Who watches the tuner. */
export interface TunerOptions {
  /** Called after each choice with the number done. */
  readonly onTuned?: (tuned: TunedTile, done: number) => void;
  /** Stops between two choices. */
  readonly signal?: AbortSignal;
}

const SEED = 1;
/** Rounds after which only the best go on. */
const QUALIFYING_ROUNDS = 3;
/** How many of them go on beside the default. */
const FINALISTS = 3;
const FINAL_ROUNDS = 15;
/** Part of the default's time above which a tile is not clearly faster. */
const CLEARLY_FASTER = 0.97;
/** Part of the rounds that it must win: by chance, an equal tile wins so many once in fifty times. */
const ROUNDS_TO_WIN = 0.8;
/** Largest difference of two right answers, as a part of the largest element: float32 sums in another order. */
const TOLERANCE = 1e-4;

interface Candidate {
  readonly tile: string;
  readonly dispatches: readonly Dispatch[];
  /** Nanoseconds of each round. */
  times: number[];
}

/**
 * Measures choices one after another.
 *
 * @param device where; needs timestamps, and should be idle otherwise
 * @param choices of {@linkcode KernelSurvey}
 * @param options progress and abort signal
 * @returns one result for each choice
 * @throws GpuError when the adapter has no timestamps, or a default does not run
 */
export async function tuneTiles(
  device: Device,
  choices: readonly TileChoice[],
  { onTuned, signal }: TunerOptions = {},
): Promise<TunedTile[]> {
  const results: TunedTile[] = [];
  for (const choice of choices) {
    await device.breathe();
    signal?.throwIfAborted();
    const tuned = await tuneTile(device, choice);
    results.push(tuned);
    onTuned?.(tuned, results.length);
    device.trim();
  }
  return results;
}

/** The table for {@linkcode Target.tiles}: only what differs from the defaults. */
export function tileTable(tuned: readonly TunedTile[]): TileTable {
  return new Map(
    tuned.filter(({ tile, defaultTile }) => tile !== defaultTile)
      .map(({ key, tile }) => [key, tile]),
  );
}

async function tuneTile(device: Device, choice: TileChoice): Promise<TunedTile> {
  using memory = new DisposableStack();
  const keep = (tensor: Tensor) => memory.adopt(tensor, (own) => device.release(own));
  const { usual, others, refused } = await checkTiles(device, choice, keep);
  const ratio = (candidate: Candidate) => median(ratios(candidate, usual));
  const byRatio = (a: Candidate, b: Candidate) => ratio(a) - ratio(b);
  await measure(device, [usual, ...others], QUALIFYING_ROUNDS);
  const finalists = others.sort(byRatio).slice(0, FINALISTS);
  for (const candidate of [usual, ...finalists]) candidate.times = [];
  await measure(device, [usual, ...finalists], FINAL_ROUNDS);
  const winner = finalists.sort(byRatio).find((tile) => isClearlyFaster(tile, usual)) ?? usual;
  const defaultNanoseconds = median(usual.times);
  return {
    key: choice.key,
    defaultTile: usual.tile,
    defaultNanoseconds,
    tile: winner.tile,
    nanoseconds: defaultNanoseconds * ratio(winner),
    refused,
  };
}

/** Compiles and runs every tile once; those that fail or give another answer than the default are refused. */
async function checkTiles(
  device: Device,
  choice: TileChoice,
  keep: (tensor: Tensor) => Tensor,
): Promise<{ usual: Candidate; others: Candidate[]; refused: string[] }> {
  const sequences = choice.tiles.map((tile) => choice.build(tile));
  const bindings = bind(device, choice, sequences, keep);
  const output = bindings[outputOf(choice, sequences[0]!)]!; // there is always a default
  const tolerance = choice.integers ? 0 : TOLERANCE; // sums of integers know no order
  const run = async (i: number) => {
    const dispatches = sequences[i]!.kernels.map((kernel) =>
      device.prepare(kernel, pick(kernel, bindings))
    );
    device.uploadRaw(output, new Float32Array(output.byteLength / 4));
    device.submit(dispatches);
    const answer = await device.readRaw(output);
    return { candidate: { tile: choice.tiles[i]!, dispatches, times: [] }, answer };
  };
  const { candidate: usual, answer: expected } = await run(0);
  const others: Candidate[] = [];
  const refused: string[] = [];
  for (let i = 1; i < sequences.length; i++) {
    try {
      const { candidate, answer } = await run(i);
      if (isClose(answer, expected, tolerance)) others.push(candidate);
      else refused.push(candidate.tile);
    } catch (error) {
      if (!(error instanceof GpuError)) throw error;
      refused.push(choice.tiles[i]!);
    }
  }
  return { usual, others, refused };
}

/** Random inputs, an empty output, and scratch large enough for every tile. */
function bind(
  device: Device,
  choice: TileChoice,
  sequences: readonly KernelSequence[],
  keep: (tensor: Tensor) => Tensor,
): Record<string, Tensor> {
  const rng = new Rng(SEED);
  const bindings: Record<string, Tensor> = {};
  const output = outputOf(choice, sequences[0]!); // there is always a default
  for (const [name, shape] of Object.entries(choice.shapes)) {
    bindings[name] = keep(
      name === output
        ? device.tensor(shape, { label: name })
        : randomInput(device, rng, shape, { label: name, integer: choice.integers?.[name] }),
    );
  }
  const scratch = new Map<string, number>();
  for (const { temporaries } of sequences) {
    for (const [name, size] of Object.entries(temporaries)) {
      scratch.set(name, Math.max(size, scratch.get(name) ?? 0));
    }
  }
  for (const [name, size] of scratch) {
    bindings[name] = keep(device.tensor([size], { label: name, zeroed: false }));
  }
  return bindings;
}

function randomInput(
  device: Device,
  rng: Rng,
  shape: readonly number[],
  { label, integer }: { readonly label: string; readonly integer?: "codes" | "int32" | undefined },
): Tensor {
  const length = shape.reduce((product, n) => product * n, 1);
  if (integer === undefined) {
    return device.fromArray(shape, Float32Array.from({ length }, () => rng.normal()), { label });
  }
  // An int32 stays small, so that float32 still shows the codes' sums beside it.
  const word = integer === "codes" ? () => rng.uint32() : () => rng.integer(2000) - 1000;
  return device.uint32(Uint32Array.from({ length }, word), { label });
}

/** The binding that holds the result: what is written and is no scratch. */
function outputOf({ shapes, key }: TileChoice, { kernels }: KernelSequence): string {
  const written = kernels.flatMap((kernel) => kernel.bindings)
    .find(({ name, access }) => access === "read_write" && Object.hasOwn(shapes, name));
  if (written === undefined) throw new TypeError(`"${key}" has no result`);
  return written.name;
}

/** Times every candidate once a round; who starts changes from round to round. */
async function measure(
  device: Device,
  candidates: readonly Candidate[],
  rounds: number,
): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    const start = round % candidates.length;
    const order = [...candidates.slice(start), ...candidates.slice(0, start)];
    const times = await device.time(order.flatMap(({ dispatches }) => dispatches));
    if (times === undefined) {
      throw new GpuError("The adapter has no timestamps, which tuning needs");
    }
    let at = 0;
    for (const candidate of order) {
      const own = times.slice(at, at += candidate.dispatches.length);
      candidate.times.push(own.reduce((sum, time) => sum + time, 0));
    }
  }
}

/** Time of a candidate as a part of the default's, round by round. */
function ratios({ times }: Candidate, usual: Candidate): number[] {
  return times.map((time, i) => time / usual.times[i]!);
}

/** Whether a candidate has won most rounds, and is faster at the median and at best. */
function isClearlyFaster(candidate: Candidate, usual: Candidate): boolean {
  const all = ratios(candidate, usual);
  return all.filter((ratio) => ratio < 1).length >= ROUNDS_TO_WIN * all.length &&
    median(all) < CLEARLY_FASTER &&
    Math.min(...candidate.times) < CLEARLY_FASTER * Math.min(...usual.times);
}

/** Whether two answers are the same up to the order of sums; `tolerance` is a part of the largest element. */
function isClose(answer: Float32Array, expected: Float32Array, tolerance: number): boolean {
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  // Not `some(> ...)`: NaN must fail, too.
  return answer.every((value, i) => Math.abs(value - expected[i]!) <= tolerance * largest);
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!; // at least one round was run
}
