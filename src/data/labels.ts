// Class numbers that go with a set of inputs.
import { FormatError } from "../core/errors.ts";
import type { NdArray } from "../core/nd_array.ts";

/** What labels have to fit. */
export interface LabelFit {
  readonly count: number;
  readonly steps?: number;
  readonly classes: number | null;
}

/**
 * Reads class numbers and checks them against the inputs they belong to.
 *
 * @param array integers (or whole float32 numbers), [N] or [N, 1]; of a network that classifies steps [N, steps]
 * @param options.count number of inputs
 * @param options.steps classes that the network gives for each input, default 1
 * @param options.classes number of classes, `null` when not known
 * @param path file the labels came from, for the error
 * @returns one class number an input, or a step
 * @throws FormatError when length, rank, dtype or a class number does not fit
 */
export function labelsOf(
  array: NdArray,
  { count, steps = 1, classes }: LabelFit,
  path: string,
): Uint32Array<ArrayBuffer> {
  const { dtype, shape, data } = array;
  if (dtype === "bool") {
    throw new FormatError(path, "dtype", "found bool, expected integers");
  }
  const [length, ...rest] = shape;
  const expected = steps === 1 ? [count] : [count, steps];
  const wide = rest.filter((size) => size !== 1);
  if (length === undefined || wide.join() !== expected.slice(1).join()) {
    throw new FormatError(
      path,
      "shape",
      `found [${shape.join(", ")}], expected [${expected.join(", ")}]`,
    );
  }
  if (length !== count) {
    throw new FormatError(path, "shape", `found ${length} labels, expected ${count}, one an input`);
  }
  const limit = classes ?? 2 ** 32;
  return Uint32Array.from({ length: length * steps }, (_, i) => {
    const label = Number(data[i]);
    if (Number.isInteger(label) && label >= 0 && label < limit) return label;
    const range = classes === null ? "a class number" : `a class number from 0 to ${classes - 1}`;
    throw new FormatError(path, `label ${i}`, `found ${label}, expected ${range}`);
  });
}

/**
 * Labels of some inputs.
 *
 * @param labels one or more for each input, in order
 * @param count number of inputs
 * @param indices which of them, in this order
 * @returns theirs
 */
export function pickLabels(
  labels: Uint32Array,
  count: number,
  indices: ArrayLike<number>,
): Uint32Array<ArrayBuffer> {
  const steps = labels.length / count;
  const picked = new Uint32Array(indices.length * steps);
  for (let i = 0; i < indices.length; i++) {
    picked.set(labels.subarray(indices[i]! * steps, (indices[i]! + 1) * steps), i * steps);
  }
  return picked;
}
