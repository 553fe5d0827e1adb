// Float64 references for the kernels of the training step: plain loops over logical arrays, written from the formulas.

/** Nearest integer, ties to even, as WGSL and ONNX round. */
export function roundTiesToEven(x: number): number {
  const floor = Math.floor(x), rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Limits a number to low .. high. */
export function clamp(x: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, x));
}

/**
 * Moves numbers whose quotient by `scale` is within 0.01 of a multiple of one half, where float32 and float64 may fall
 * on different sides of a rounding or clipping threshold.
 */
export function awayFromThresholds(
  values: ArrayLike<number>,
  scale: number,
): Float64Array<ArrayBuffer> {
  return Float64Array.from(values, (value) => {
    const doubled = value / scale * 2;
    const distance = doubled - Math.round(doubled);
    return Math.abs(distance) > 0.02
      ? value
      : Math.fround((Math.round(doubled) + (distance < 0 ? -0.1 : 0.1)) / 2 * scale);
  });
}

/** State of a training step, by index of the state buffer. */
export function scheduleState(
  spec: {
    steps: number;
    warmupSteps: number;
    schedule: "cosine" | "step" | "constant";
    beta1: number;
    beta2: number;
    batchNormLiveSteps: number;
    roundingWarmup: number;
    roundingBetaStart: number;
    roundingBetaEnd: number;
    roundingBetaDecay?: "linear" | "cosine";
  },
  step: number,
): number[] {
  const { steps, roundingBetaStart: high, roundingBetaEnd: low } = spec;
  const ramp = Math.min(1, (step + 1) / Math.max(1, spec.warmupSteps));
  const decay = {
    constant: 1,
    step: step < 0.5 * steps ? 1 : step < 0.75 * steps ? 0.1 : 0.01,
    cosine: 0.5 * (1 + Math.cos(Math.PI * step / steps)),
  }[spec.schedule];
  const start = spec.roundingWarmup * steps;
  const done = clamp((step - start) / (steps - start), 0, 1);
  const left = spec.roundingBetaDecay === "cosine" ? (1 + Math.cos(Math.PI * done)) / 2 : 1 - done;
  return [
    step,
    ramp * decay,
    1 - spec.beta1 ** (step + 1),
    1 - spec.beta2 ** (step + 1),
    step < spec.batchNormLiveSteps ? 1 : 0,
    low + (high - low) * left,
    step > start ? 1 : 0,
  ];
}

/** One weight, or its pieces: code q, w = q * scale, and whether the gradient passes. */
export function quantizedWeight(
  latent: number,
  scale: number,
  quantMin: number,
  quantMax: number,
): { q: number; w: number; v: number; inside: boolean } {
  const v = latent / scale;
  const q = clamp(roundTiesToEven(v), quantMin, quantMax);
  return { q, w: q * scale, v, inside: v > quantMin - 0.5 && v < quantMax + 0.5 };
}

/** h(V) of AdaRound. */
export function rectifiedSigmoid(variable: number): number {
  return clamp(1.2 / (1 + Math.exp(-variable)) - 0.1, 0, 1);
}

/** The softly rounded weight. */
export function softWeight(
  latent: number,
  variable: number,
  scale: number,
  quantMin: number,
  quantMax: number,
): number {
  if (latent === 0) return 0;
  const code = Math.floor(latent / scale) + rectifiedSigmoid(variable);
  return scale * clamp(code, quantMin, quantMax);
}

/** 1 - |2h - 1|^beta, the rounding regulariser of one weight. */
export function roundingPenalty(variable: number, beta: number): number {
  return 1 - Math.abs(2 * rectifiedSigmoid(variable) - 1) ** beta;
}

/** Central difference of a function of one number. */
export function derivative(f: (x: number) => number, x: number, step = 1e-5): number {
  return (f(x + step) - f(x - step)) / (2 * step);
}

/** Fake quantization of one activation with its partial derivatives by definition (LSQ, LSQ+). */
export function fakeQuantized(
  x: number,
  scale: number,
  zeroPoint: number,
  quantMin: number,
  quantMax: number,
): { y: number; dx: number; dscale: number; dzeroPoint: number } {
  const v = x / scale, low = quantMin - zeroPoint, high = quantMax - zeroPoint;
  const y = (clamp(roundTiesToEven(v) + zeroPoint, quantMin, quantMax) - zeroPoint) * scale;
  if (v > low && v < high) return { y, dx: 1, dscale: roundTiesToEven(v) - v, dzeroPoint: 0 };
  return { y, dx: 0, dscale: v <= low ? low : high, dzeroPoint: -scale };
}

/** Statistics of the columns of x: [rows, channels]. */
export function columnStatistics(
  x: ArrayLike<number>,
  rows: number,
  channels: number,
): { mean: Float64Array; variance: Float64Array } {
  const mean = new Float64Array(channels), variance = new Float64Array(channels);
  for (let c = 0; c < channels; c++) {
    for (let r = 0; r < rows; r++) mean[c]! += x[r * channels + c]! / rows;
    for (let r = 0; r < rows; r++) {
      variance[c]! += (x[r * channels + c]! - mean[c]!) ** 2 / rows;
    }
  }
  return { mean, variance };
}

/** Batch normalisation with the statistics of the batch. */
export function batchNorm(
  x: ArrayLike<number>,
  gamma: ArrayLike<number>,
  beta: ArrayLike<number>,
  rows: number,
  epsilon: number,
): Float64Array {
  const channels = gamma.length;
  const { mean, variance } = columnStatistics(x, rows, channels);
  return Float64Array.from({ length: rows * channels }, (_, i) => {
    const c = i % channels;
    return gamma[c]! * (x[i]! - mean[c]!) / Math.sqrt(variance[c]! + epsilon) + beta[c]!;
  });
}

/** Shift with fill, then flip, of one image [height, width, channels]. */
export function shiftFlip(
  image: ArrayLike<number>,
  [height, width, channels]: readonly [number, number, number],
  fill: ArrayLike<number>,
  { dy, dx, flip }: { dy: number; dx: number; flip: boolean },
): number[] {
  const result: number[] = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const sourceY = y + dy, sourceX = (flip ? width - 1 - x : x) + dx;
      const inside = sourceY >= 0 && sourceY < height && sourceX >= 0 && sourceX < width;
      for (let c = 0; c < channels; c++) {
        result.push(inside ? image[(sourceY * width + sourceX) * channels + c]! : fill[c]!);
      }
    }
  }
  return result;
}

/** Sum of a list of numbers. */
export function sum(values: Iterable<number>): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
