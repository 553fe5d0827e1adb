// Between float32 tensors [rows, C] and packed codes [rows, ceil(C / 4)], as ONNX QuantizeLinear and DequantizeLinear
// define them (integer_epilogue.ts says how codes are stored).
import { maskPadding } from "./epilogue.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import { DEQUANTIZE, QUANTIZE } from "./integer_epilogue.ts";
import { type Kernel, padded } from "./kernel.ts";

/** Shape of a tensor, its leading axes as one. */
export interface CodesSpec {
  readonly rows: number;
  readonly channels: number;
}

/**
 * code = clip(round(x / scale) + zeroPoint, quantMin, quantMax).
 *
 * @param spec shape
 * @returns a kernel with bindings `x`, `grid` and `y`
 */
export function quantizeCodes({ rows, channels }: CodesSpec): Kernel {
  return flatKernel({
    label: `quantize_codes ${rows}x${channels}`,
    size: rows * padded(channels) / 4,
    bindings: [read("x"), read("grid"), write("y")],
    types: { y: "u32" },
    declarations: QUANTIZE,
    body: "y[i] = quantize(x[i], grid[0], grid[1]);",
  });
}

/**
 * value = scale * (code - zeroPoint).
 *
 * @param spec shape
 * @returns a kernel with bindings `x`, `grid` and `y`
 */
export function dequantizeCodes({ rows, channels }: CodesSpec): Kernel {
  const words = padded(channels) / 4;
  return flatKernel({
    label: `dequantize_codes ${rows}x${channels}`,
    size: rows * words,
    bindings: [read("x"), read("grid"), write("y")],
    types: { x: "u32" },
    declarations: DEQUANTIZE,
    body: `y[i] = ${maskPadding("dequantize(x[i], grid[1])", `(i % ${words}u)`, channels)};`,
  });
}
