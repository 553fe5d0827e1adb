// How far a quantized tensor is from its target: mean squared error, signal to quantization noise, cosine. Computed from
// four sums, which the GPU gathers batch by batch.

/** Sums over all elements of an output and its target. */
export interface ErrorSums {
  /** Number of elements. */
  readonly count: number;
  /** sum (output - target)^2 */
  readonly squaredError: number;
  /** sum target^2 */
  readonly squaredTarget: number;
  /** sum output * target */
  readonly dot: number;
  /** sum output^2 */
  readonly squaredOutput: number;
}

/** Distances of an output from its target. */
export interface ErrorMetrics {
  readonly mse: number;
  /** 10 log10(squaredTarget / squaredError): Infinity without error, -Infinity when only the target is zero. */
  readonly sqnrDb: number;
  /** 1 when both are zero, 0 when one of them is. */
  readonly cosine: number;
}

/**
 * Distances from sums.
 *
 * @param sums over all elements
 * @returns mean squared error, SQNR and cosine
 * @throws RangeError when there are no elements
 */
export function errorMetrics(
  { count, squaredError, squaredTarget, dot, squaredOutput }: ErrorSums,
): ErrorMetrics {
  if (!(count > 0)) throw new RangeError(`Cannot average an error over ${count} elements`);
  const norms = Math.sqrt(squaredTarget) * Math.sqrt(squaredOutput);
  return {
    mse: squaredError / count,
    sqnrDb: squaredError === 0 ? Infinity : 10 * Math.log10(squaredTarget / squaredError),
    cosine: norms > 0 ? dot / norms : squaredTarget === squaredOutput ? 1 : 0,
  };
}

/**
 * Sums of two arrays held on the host.
 *
 * @param output what is judged
 * @param target what it should be, of the same length
 * @returns the sums of {@linkcode errorMetrics}
 * @throws RangeError when the lengths differ
 */
export function errorSums(output: ArrayLike<number>, target: ArrayLike<number>): ErrorSums {
  if (output.length !== target.length) {
    throw new RangeError(
      `Cannot compare ${output.length} elements with a target of ${target.length}`,
    );
  }
  let squaredError = 0, squaredTarget = 0, dot = 0, squaredOutput = 0;
  for (let i = 0; i < output.length; i++) {
    const y = output[i]!, t = target[i]!;
    squaredError += (y - t) ** 2;
    squaredTarget += t * t;
    dot += y * t;
    squaredOutput += y * y;
  }
  return { count: output.length, squaredError, squaredTarget, dot, squaredOutput };
}
