// Every random choice of data: which samples are used, which are held out, and the order of the mini-batches. All of it
// is decided on the host before training, so that the GPU only looks indices up in a table.
import { Rng } from "../core/rng.ts";

/** Streams of one seed, so that choosing samples and ordering batches do not share numbers. */
const CHOICE_STREAM = 0x5a3b1e00;
const BATCH_STREAM = 0x0badc0de;

/** A split of the calibration inputs. */
export interface Split {
  /** Indices trained on. */
  readonly train: Uint32Array<ArrayBuffer>;
  /** Indices that only accept or roll back a unit. */
  readonly heldOut: Uint32Array<ArrayBuffer>;
}

/**
 * Chooses samples without repetition.
 *
 * @param count how many there are
 * @param samples how many to choose; all when there are fewer
 * @param seed seed of the choice
 * @returns their indices in random order
 * @throws RangeError when either number is not a positive integer
 */
export function chooseSamples(
  count: number,
  samples: number,
  seed: number,
): Uint32Array<ArrayBuffer> {
  checkPositive(count, "count");
  checkPositive(samples, "samples");
  return new Rng(seed ^ CHOICE_STREAM).permutation(count).slice(0, samples);
}

/**
 * Splits chosen samples; each side keeps at least one sample unless nothing is held out.
 *
 * @param indices samples in random order, as {@linkcode chooseSamples} gives them
 * @param fraction part to hold out, 0 to 0.5
 * @returns the first samples for training, the last held out
 * @throws RangeError when the fraction is out of range
 */
export function splitHeldOut(indices: Uint32Array<ArrayBuffer>, fraction: number): Split {
  if (!(fraction >= 0 && fraction <= 0.5)) {
    throw new RangeError(`Cannot hold out ${fraction} of the samples: expected 0 to 0.5`);
  }
  const wanted = Math.round(indices.length * fraction);
  const heldOut = fraction === 0 ? 0 : Math.min(Math.max(wanted, 1), indices.length - 1);
  const train = indices.length - heldOut;
  return { train: indices.slice(0, train), heldOut: indices.slice(train) };
}

/**
 * The mini-batches of a whole training run: epoch after epoch in a new random order, cut into batches, so that no
 * sample is used twice before every other was used once.
 *
 * @param count number of samples
 * @param batch samples of a step
 * @param steps number of steps
 * @param seed seed of the order
 * @returns [steps, batch] positions 0 .. count - 1
 * @throws RangeError when a number is not a positive integer
 */
export function batchTable(
  count: number,
  batch: number,
  steps: number,
  seed: number,
): Uint32Array<ArrayBuffer> {
  checkPositive(count, "count");
  checkPositive(batch, "batch");
  checkPositive(steps, "steps");
  const rng = new Rng(seed ^ BATCH_STREAM);
  const table = new Uint32Array(steps * batch);
  for (let at = 0; at < table.length; at += count) {
    table.set(rng.permutation(count).subarray(0, table.length - at), at);
  }
  return table;
}

function checkPositive(value: number, name: string): void {
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new RangeError(`Cannot sample: ${name} is ${value}, expected a positive integer`);
  }
}
