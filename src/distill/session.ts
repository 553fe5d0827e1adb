// Everything the methods share while they make one student.
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import type { Device } from "../gpu/device.ts";
import { Plan } from "../gpu/plan.ts";
import type { Student } from "../quant/student.ts";
import { RowSet } from "./frontier.ts";
import type { FrontierPlace } from "./frontier_memory.ts";
import { NetworkValues } from "./inference.ts";
import { fakeQuantizeInput } from "./input_quantizer.ts";
import type { Network } from "./network.ts";
import type { Recipe } from "./recipe.ts";

/** How far a run is. */
export interface Progress {
  /** For example `compile`, `calibrate`, `blockwise`, `evaluate`. */
  readonly stage: string;
  /** Unit of the network that is worked on. */
  readonly unit?: string;
  /** Steps or inputs done, of `total`. */
  readonly done: number;
  /** Steps or inputs of the stage. */
  readonly total: number;
  /** The newest, while a unit trains. */
  readonly loss?: number;
}

/** The inputs of the network on the GPU, normalized, channels last. */
export interface Samples {
  /** To train on; augmented copies follow the clean ones. */
  readonly train: RowSet;
  /** How many of `train` are clean. */
  readonly clean: number;
  readonly heldOut: RowSet;
  /** [C]: the value of a black pixel after normalization. */
  readonly black: Float32Array<ArrayBuffer>;
  /** Class numbers of the clean samples, for methods that use labels. */
  readonly labels?: Uint32Array<ArrayBuffer>;
}

/** One student in the making. */
export interface Session {
  readonly device: Device;
  readonly network: Network;
  readonly student: Student;
  readonly teacher: NetworkValues;
  readonly samples: Samples;
  readonly recipe: Recipe;
  /** Samples that fit in one step. */
  readonly batch: number;
  /** How the activations of all samples are kept. */
  readonly frontier: FrontierPlace;
  readonly report: (progress: Progress) => void;
  readonly signal?: AbortSignal | undefined;
  /** How kernels are compiled ahead. */
  readonly compiling: CompileOptions;
  /** Names of units that were rolled back to their PTQ start. */
  readonly rolledBack: Set<string>;
}

/** Makes a student better. PTQ, which leaves it as calibrated, is a method like any other. */
export type Method = (session: Session) => Promise<void>;

/**
 * The rows as the student sees them: through the quantizer of the network's input.
 *
 * @param session the session
 * @param rows inputs of the network
 * @param count how many of them, from the first on
 * @returns a new row set
 */
export async function quantizeInputs(
  { device, network, student, batch, frontier: { residence, compact } }: Session,
  rows: RowSet,
  count = rows.rows,
): Promise<RowSet> {
  const state = student.activations.get(network.input);
  using values = new NetworkValues(
    device,
    new Map(),
    new Map(state ? [[network.input, state]] : []),
  );
  const storage = compact && state ? state : "float32";
  const label = `quantized ${network.input}`;
  const result = new RowSet(device, count, rows.rowShape, label, { storage, residence });
  for (let first = 0; first < count; first += batch) {
    const size = Math.min(batch, count - first);
    using plan = new Plan(device);
    const x = plan.tensor([size, ...rows.rowShape], network.input);
    rows.copyOut(first, size, x);
    const y = fakeQuantizeInput(plan, x, values.quantizer(network.input));
    plan.replay();
    await result.copyIn(y, first, size);
  }
  return result;
}
