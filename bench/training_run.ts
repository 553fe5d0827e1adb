// How subjects time training: the library reports its progress every few steps, after it has read the loss and so waited
// for the adapter; the time between two reports of one unit is that of the steps between them. The first report of a
// unit only starts the clock, so that compiling and recording do not count.
import type { Progress } from "../src/distill/distill.ts";
import { prepareNetwork, shapesForBatch } from "../src/distill/network.ts";
import { DEFAULT_RECIPE } from "../src/distill/recipe.ts";
import type { Report } from "../src/distill/report.ts";
import { type Block, cutIntoBlocks } from "../src/graph/blocks.ts";
import { countMacs } from "../src/graph/cost.ts";
import type { Graph, Node } from "../src/graph/graph.ts";

/** Steps between two reports of the library, on which subjects base how many steps they run. */
const STEPS_PER_REPORT = 10;

/**
 * How many steps a run must have for as many timings.
 *
 * @param samples timings wanted
 * @returns steps
 */
export function stepsFor(samples: number): number {
  return STEPS_PER_REPORT * (samples + 1);
}

/** Collects the time of a step, by unit. */
export class StepClock {
  readonly #times = new Map<string, number[]>();
  #last: { readonly unit: string; readonly done: number; readonly at: number } | undefined;

  /**
   * Takes a report of progress.
   *
   * @param unit what is trained
   * @param done steps done, of the unit or of all
   * @param now milliseconds
   */
  note(unit: string, done: number, now: number = performance.now()): void {
    const last = this.#last;
    this.#last = { unit, done, at: now };
    if (last?.unit !== unit || done <= last.done) return;
    const times = this.#times.get(unit) ?? [];
    times.push((now - last.at) / (done - last.done));
    this.#times.set(unit, times);
  }

  /** As {@linkcode StepClock.note}, for `onProgress` of a distillation. */
  readonly onProgress = ({ stage, unit, done, loss }: Progress): void => {
    if (loss !== undefined) this.note(unit ?? stage, done);
  };

  /** Milliseconds a step of a unit, one for each report but the first. */
  times(unit: string): readonly number[] {
    const times = this.#times.get(unit);
    if (times === undefined) throw new RangeError(`Nothing was timed of "${unit}"`);
    return times;
  }
}

/**
 * Checks that training made a student better: its layers are on average nearer to the teacher's than at the start.
 *
 * @param report of the run
 * @throws Error when they are not
 */
export function checkImproved({ layers }: Report): void {
  const ratios = layers.map(({ mseAfter, mseBefore }) => mseAfter / mseBefore);
  const mean = ratios.reduce((sum, ratio) => sum + ratio, 0) / ratios.length;
  if (!(mean < 1)) throw new Error(`training multiplied the layers' squared errors by ${mean}`);
}

/** A block that a subject times, and what one step of it computes. */
export interface ResidualBlock {
  /** Name of its unit in reports of progress. */
  readonly name: string;
  /** Channels of its output. */
  readonly channels: number;
  /** Multiplications and additions of the convolutions of a step. */
  readonly operations: number;
}

/**
 * The blocks of a network that have two convolutions or more.
 *
 * @param model the network
 * @param batch samples of a step
 * @returns the blocks, first to last
 */
export function residualBlocks(model: Graph, batch: number): ResidualBlock[] {
  const { teacher } = prepareNetwork(model, DEFAULT_RECIPE, false);
  const macs = countMacs(teacher.graph, shapesForBatch(teacher, batch));
  return cutIntoBlocks(teacher.graph)
    .filter((block) => convolutionsOf(block).length > 1)
    .map((block) => ({
      name: block.name,
      channels: teacher.shapes.get(block.outputs[0]!)!.at(-1)!, // every block has an output
      operations: convolutionsOf(block).reduce((sum, node) => {
        // Forward pass and two gradients; nothing asks for the gradient of the block's input.
        const passes = block.inputs.includes(node.inputs[0]!) ? 2 : 3;
        return sum + passes * 2 * macs.get(node.name)!; // counted for every Conv
      }, 0),
    }));
}

function convolutionsOf(block: Block): Node[] {
  return block.nodes.filter(({ opType }) => opType === "Conv");
}
