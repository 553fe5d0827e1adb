// Class numbers that go with a set of inputs.
import { FormatError } from "../core/errors.ts";
import type { NdArray } from "../core/nd_array.ts";

/**
 * Reads class numbers and checks them against the inputs they belong to.
 *
 * @param array integers (or whole float32 numbers), [N] or [N, 1]
 * @param options.count number of inputs
 * @param options.classes number of classes, `null` when not known
 * @param path file the labels came from, for the error
 * @returns one class number an input
 * @throws FormatError when length, rank, dtype or a class number does not fit
 */
export function labelsOf(
  array: NdArray,
  { count, classes }: { readonly count: number; readonly classes: number | null },
  path: string,
): Uint32Array<ArrayBuffer> {
  const { dtype, shape, data } = array;
  if (dtype === "bool") {
    throw new FormatError(path, "dtype", "found bool, expected integers");
  }
  const [length, ...rest] = shape;
  if (length === undefined || rest.some((size) => size !== 1)) {
    throw new FormatError(path, "shape", `found [${shape.join(", ")}], expected [${count}]`);
  }
  if (length !== count) {
    throw new FormatError(path, "shape", `found ${length} labels, expected ${count}, one an input`);
  }
  const limit = classes ?? 2 ** 32;
  return Uint32Array.from({ length }, (_, i) => {
    const label = Number(data[i]);
    if (Number.isInteger(label) && label >= 0 && label < limit) return label;
    const range = classes === null ? "a class number" : `a class number from 0 to ${classes - 1}`;
    throw new FormatError(path, `label ${i}`, `found ${label}, expected ${range}`);
  });
}
