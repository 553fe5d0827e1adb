// What grid a tensor is quantized to: bits, sign, symmetry and granularity, without any scale.
// Uniform grids as in Jacob et al. 2018 and ONNX QuantizeLinear, 2 to 8 bits.

/** One scale for the tensor, or one for each index of an axis. */
export type Granularity =
  | { readonly kind: "perTensor" }
  | { readonly kind: "perChannel"; readonly axis: number };

/** A quantization grid without its scale. */
export interface QScheme {
  /** 2..8. */
  readonly bits: number;
  /** Codes below zero. A symmetric unsigned scheme falls back to signed codes on data below zero. */
  readonly signed: boolean;
  /** Zero point 0. */
  readonly symmetric: boolean;
  /** Leaves out the lowest signed code, so that the grid is its own mirror image. */
  readonly narrowRange: boolean;
  readonly granularity: Granularity;
}

/** Fields of a {@linkcode QScheme} that differ from the defaults of {@linkcode qScheme}. */
export type QSchemeOptions = Partial<QScheme>;

/** Lowest and highest code of a grid. */
export interface QuantRange {
  readonly quantMin: number;
  readonly quantMax: number;
}

/**
 * Makes a checked scheme; the default is 8 bits, signed, symmetric, full range, per tensor.
 *
 * @param options the fields that differ from the defaults
 * @returns the scheme
 * @throws RangeError when the bits are not 2..8, the axis is negative, or an unsigned range is narrow
 */
export function qScheme(
  {
    bits = 8,
    signed = true,
    symmetric = true,
    narrowRange = false,
    granularity = { kind: "perTensor" },
  }: QSchemeOptions = {},
): QScheme {
  checkBits(bits);
  if (narrowRange && !signed) {
    throw new RangeError("Cannot quantize unsigned codes to a narrow range: it needs signed: true");
  }
  if (
    granularity.kind === "perChannel" &&
    !(Number.isInteger(granularity.axis) && granularity.axis >= 0)
  ) {
    throw new RangeError(
      `Cannot quantize along axis ${granularity.axis}: axis must be an integer >= 0`,
    );
  }
  return { bits, signed, symmetric, narrowRange, granularity };
}

/**
 * Lowest and highest code of a scheme.
 *
 * @param scheme any scheme
 * @returns 0 .. 2^b - 1 unsigned, -2^(b-1) .. 2^(b-1) - 1 signed, without the lowest when narrow
 */
export function quantRange(
  { bits, signed, narrowRange }: Pick<QScheme, "bits" | "signed" | "narrowRange">,
): QuantRange {
  if (!signed) return { quantMin: 0, quantMax: 2 ** bits - 1 };
  const half = 2 ** (bits - 1);
  return { quantMin: narrowRange ? 1 - half : -half, quantMax: half - 1 };
}

/**
 * Checks a bit width.
 *
 * @param bits bits of a code
 * @throws RangeError when they are not an integer 2..8
 */
export function checkBits(bits: number): void {
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8)) {
    throw new RangeError(
      `Cannot quantize to ${bits} bit${bits === 1 ? "" : "s"}: bits must be 2..8`,
    );
  }
}
