// How much memory the activations of all samples take while units are distilled one after another, and so how they are
// stored and where they lie.
import { paddedSize } from "../../kernels/kernel.ts";
import type { Device } from "../gpu/device.ts";
import type { Block } from "../graph/blocks.ts";
import type { Residence } from "./frontier.ts";
import type { Network } from "./network.ts";
import { type PresetName, PRESETS } from "./presets.ts";
import type { Recipe } from "./recipe.ts";
import { unitsOf } from "./units.ts";

/** Bytes on the GPU. */
export interface FrontierBytes {
  /** Of all samples, where most are held at a time. */
  readonly all: number;
  /** Of one mini-batch, where a unit reads and writes most. */
  readonly batch: number;
}

/** How many samples there are. */
export interface SampleCounts {
  /** Training and held-out samples, augmented copies included. */
  readonly rows: number;
  /** Rows of a mini-batch. */
  readonly batch: number;
}

/** A recipe's choices that memory depends on. */
type MemoryRecipe = Pick<
  Recipe,
  "method" | "memoryBudget" | "weightRounding" | "unit" | "groups"
>;

/** How the rows of all samples are kept. */
export interface FrontierPlace {
  /** Where they lie. */
  readonly residence: Residence;
  /** Whether they are stored as float16 and codes instead of float32. */
  readonly compact: boolean;
}

/** Bytes of an element of the teacher's rows, of the student's quantized rows, and of its others. */
interface ElementBytes {
  readonly teacher: number;
  readonly quantized: number;
  readonly unquantized: number;
}

const COMPACT: ElementBytes = { teacher: 2, quantized: 1, unquantized: 2 };
const FLOAT32: ElementBytes = { teacher: 4, quantized: 4, unquantized: 4 };
/** Bytes of an element of the network's input, which is never compact. */
const INPUT = 4;
const MEBIBYTE = 2 ** 20;
/** A CPU copies float32 rows faster than it encodes and decodes them; up to this size it may have the memory for it. */
const MOST_FLOAT32 = 512 * MEBIBYTE;
/** Adapters do not tell their memory; some of the cautious allow small allocations only. */
const LEAST_DEFAULT = 1024 * MEBIBYTE;

/**
 * How the activations of all samples are kept: on the GPU or, where the budget is too small, in host memory.
 *
 * @param device whose largest allocation, or 1 GiB, is the budget unless the recipe has one
 * @param network the network
 * @param counts samples
 * @param recipe method and budget
 * @returns how they are kept
 * @throws RangeError when not even one mini-batch fits
 */
export function placeFrontier(
  device: Pick<Device, "limits" | "target">,
  network: Network,
  counts: SampleCounts,
  { memoryBudget, ...recipe }: MemoryRecipe,
): FrontierPlace {
  const budget = memoryBudget === null
    ? Math.max(device.limits.maxBufferSize, LEAST_DEFAULT)
    : memoryBudget * MEBIBYTE;
  const units = unitsOfRecipe(network, recipe);
  if (device.target.family === "software") {
    const { all } = frontierBytes(network, units, counts, FLOAT32);
    if (all <= Math.min(budget, MOST_FLOAT32)) return { residence: "gpu", compact: false };
  }
  const needed = frontierBytes(network, units, counts);
  if (needed.all <= budget) return { residence: "gpu", compact: true };
  if (needed.batch <= budget) return { residence: "host", compact: true };
  const mebibytes = (bytes: number) => Math.ceil(bytes / MEBIBYTE);
  throw new RangeError(
    `memoryBudget: found ${
      mebibytes(budget)
    }, but the activations of a mini-batch of ${counts.batch} need ${
      mebibytes(needed.batch)
    } MiB; a smaller batchSize needs less`,
  );
}

/**
 * Bytes of the activations of all samples as they are kept.
 *
 * @param network the network
 * @param counts samples
 * @param recipe method
 * @param place what {@linkcode placeFrontier} chose
 * @returns bytes where most are held
 */
export function placedBytes(
  network: Network,
  counts: SampleCounts,
  recipe: Omit<MemoryRecipe, "memoryBudget">,
  { compact }: FrontierPlace,
): number {
  return frontierBytes(network, unitsOfRecipe(network, recipe), counts, compact ? COMPACT : FLOAT32)
    .all;
}

/**
 * The memory of the four frontiers: teacher and student, training and held-out samples.
 *
 * @param network the network
 * @param units in execution order; none when only the network's inputs are kept
 * @param counts samples
 * @param bytes of an element; by default of compact rows
 * @returns bytes where most are held
 */
export function frontierBytes(
  network: Network,
  units: readonly Block[],
  { rows, batch }: SampleCounts,
  bytes: ElementBytes = COMPACT,
): FrontierBytes {
  const { teacher: { shapes }, activationBits, activationRanges, input } = network;
  // With ranges at run time the tensors themselves are not quantized, only what layers read.
  const isQuantized = (name: string) => activationRanges === "static" && activationBits.has(name);
  const elements = (name: string) => paddedSize(shapes.get(name)!);
  const both = (name: string) =>
    elements(name) *
    (bytes.teacher + (isQuantized(name) ? bytes.quantized : bytes.unquantized));
  const sum = (names: Iterable<string>) =>
    Array.from(names, both).reduce((total, bytes) => total + bytes, 0);
  let all = 0, most = 0;
  const alive = new Set<string>();
  units.forEach((unit, i) => {
    for (const name of [...unit.inputs, ...unit.outputs]) alive.add(name);
    all = Math.max(all, sum(alive));
    most = Math.max(most, sum([...unit.inputs, ...unit.outputs]));
    const needed = new Set(units.slice(i + 1).flatMap((later) => later.inputs));
    for (const name of alive) if (!needed.has(name)) alive.delete(name);
  });
  const inputs = elements(input) * INPUT;
  return { all: rows * (all + inputs), batch: batch * Math.max(most, inputs) };
}

/** The units whose frontiers a recipe keeps; of several stages those of the first, which need most. */
function unitsOfRecipe(
  { teacher }: Network,
  { method, unit, groups, weightRounding }: Omit<MemoryRecipe, "memoryBudget">,
): Block[] {
  const kind = method in PRESETS
    ? unit ?? PRESETS[method as PresetName].stages[0]!.unit
    : method === "qat"
    ? unit ?? "block"
    : method === "ptq" && weightRounding === "gptq"
    ? unit ?? "layer"
    : undefined;
  return kind ? unitsOf(teacher, kind, groups) : [];
}
