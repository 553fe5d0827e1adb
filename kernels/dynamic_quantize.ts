// Fake quantization with the range that a tensor has at run time, sample by sample, as ONNX DynamicQuantizeLinear with a
// batch of one:
//   low = min(0, min x), high = max(0, max x), scale = (high - low) / 255, zeroPoint = clamp(round(-low / scale), 0, 255)
//   y = scale * (clamp(round(x / scale) + zeroPoint, 0, 255) - zeroPoint), ties to even
// x, y: [samples, .., C]. 0 is in every range, so the zeros of padded channels change none and stay zeros.
import { onGrid } from "./epilogue.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type KernelSequence, paddedSize, type Target } from "./kernel.ts";
import { forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** Highest code: DynamicQuantizeLinear gives uint8. */
const HIGHEST = 255;

/**
 * Quantizes every sample with its own range.
 *
 * Bindings: x (read), y (write).
 *
 * @param shape of x; its first axis counts samples
 * @param target the adapter
 * @returns kernels with bindings x, y
 */
export function dynamicFakeQuantize(shape: readonly number[], target: Target): KernelSequence {
  const [samples = 1] = shape;
  const vectors = paddedSize(shape) / 4 / samples;
  const plan = planChunks(vectors, samples, target);
  const label = `dynamic_fake_quantize [${shape.join(", ")}]`;
  // Neighbouring invocations read neighbouring vectors of one sample.
  const extremes = flatKernel({
    label: `${label} extremes`,
    size: samples * plan.chunks,
    bindings: [read("x"), write("partials")],
    body: `let chunk = i % ${plan.chunks}u;
  let sample = i / ${plan.chunks}u;
  var lowest = vec4f(0.0);
  var highest = vec4f(0.0);
  ${
      forEachRow(
        plan,
        `let value = x[sample * ${vectors}u + row];
    lowest = max(lowest, -value);
    highest = max(highest, value);`,
      )
    }
  partials[chunk * ${2 * samples}u + sample] = lowest;
  partials[chunk * ${2 * samples}u + ${samples}u + sample] = highest;`,
  });
  const grids = reductionKernel({
    label: `${label} grids`,
    bindings: [read("partials"), write("grids")],
    chunks: plan.chunks,
    stride: 2 * samples,
    offsets: [0, samples],
    size: samples,
    combine: "max",
    // A sample of zeros has any scale.
    finish: `let low = -max(max(value0.x, value0.y), max(value0.z, value0.w));
  let high = max(max(value1.x, value1.y), max(value1.z, value1.w));
  let step = (high - low) / ${HIGHEST}.0;
  let scale = select(step, 1.0, step == 0.0);
  grids[o] = vec4f(scale, round(clamp(-low / scale, 0.0, ${HIGHEST}.0)), 0.0, ${HIGHEST}.0);`,
  }, target);
  const parts = { scale: "grid.x", zeroPoint: "grid.y", quantMin: "grid.z", quantMax: "grid.w" };
  const quantize = flatKernel({
    label,
    size: samples * vectors,
    bindings: [read("x"), read("grids"), write("y")],
    body: `let grid = grids[i / ${vectors}u];
  y[i] = ${onGrid("x[i]", parts)};`,
  });
  return {
    kernels: [extremes, grids, quantize],
    temporaries: { partials: plan.chunks * samples * 8, grids: samples * 4 },
  };
}
