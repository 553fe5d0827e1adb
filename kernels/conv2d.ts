// 2-D convolution and its gradients: x [N, H, W, C], w [O, KH, KW, C / group], y [N, OH, OW, O], channels last and
// padded to 4. This file only chooses; the kernels are in conv2d_software, conv2d_gpu, conv2d_weight_* and, for
// grouped convolutions whose groups do not fill whole vec4s, conv2d_direct.
import { directBackwardInput, directBackwardWeight, directForward } from "./conv2d_direct.ts";
import { convolutionGpu } from "./conv2d_gpu.ts";
import {
  backwardInputConvolutions,
  type Conv2dSpec,
  flattenPointwise,
  forwardConvolution,
  type TapConvolution,
} from "./conv2d_plan.ts";
import { convolutionSoftware } from "./conv2d_software.ts";
import { weightGradientGpu } from "./conv2d_weight_gpu.ts";
import { weightGradientSoftware } from "./conv2d_weight_software.ts";
import type { Epilogue } from "./epilogue.ts";
import { type Kernel, type KernelSequence, paddedSize, type Target } from "./kernel.ts";
import { reductionKernel } from "./reduce_partials.ts";

export type { Conv2dSpec } from "./conv2d_plan.ts";

/**
 * y[n, a, b, o] = epilogue(sum over taps and c of x[n, a * stride + tap, b * stride + tap, c] * w[o, tap, c]).
 *
 * @param spec Shape of the convolution.
 * @param epilogue What is fused into the store.
 * @param target Kind of adapter.
 * @returns Kernels with bindings `x`, `w`, the epilogue's, and `y`.
 */
export function conv2dForward(
  spec: Conv2dSpec,
  epilogue: Epilogue,
  target: Target,
): KernelSequence {
  if (!hasWholeGroups(spec)) return { kernels: [directForward(spec, epilogue)], temporaries: {} };
  const convolution = forwardConvolution(flattenPointwise(spec), epilogue);
  return { kernels: [tapConvolution(convolution, target)], temporaries: {} };
}

/**
 * Gradient of the input: dx[n, i, j, c] = sum of dy[n, a, b, o] * w[o, tap, c] over the (a, b, tap) that read (i, j).
 *
 * @param spec Shape of the forward convolution.
 * @param target Kind of adapter.
 * @returns Kernels with bindings `dy`, `w` and `dx`, one for each phase of the stride.
 */
export function conv2dBackwardInput(spec: Conv2dSpec, target: Target): KernelSequence {
  if (!hasWholeGroups(spec)) return { kernels: [directBackwardInput(spec)], temporaries: {} };
  const convolutions = backwardInputConvolutions(flattenPointwise(spec));
  return {
    kernels: convolutions.map((convolution) => tapConvolution(convolution, target)),
    temporaries: {},
  };
}

/**
 * Gradient of the weight: dw[o, tap, c] = sum over images and pixels of x[n, a * stride + tap, ..., c] * dy[n, a, b, o].
 *
 * @param spec Shape of the forward convolution.
 * @param target Kind of adapter.
 * @returns Kernels with bindings `x`, `dy` and `dw`; partial sums over pixels are added in a fixed order.
 */
export function conv2dBackwardWeight(spec: Conv2dSpec, target: Target): KernelSequence {
  if (!hasWholeGroups(spec)) return { kernels: [directBackwardWeight(spec)], temporaries: {} };
  const flat = flattenPointwise(spec);
  const { kernel, splits } = target.family === "gpu"
    ? weightGradientGpu(flat)
    : weightGradientSoftware(flat, target);
  if (splits === 1) return { kernels: [kernel], temporaries: {} };
  const { outChannels, kernelHeight, kernelWidth, inChannels, group } = spec;
  const size = paddedSize([outChannels, kernelHeight, kernelWidth, inChannels / group]);
  const reduction = reductionKernel({
    label: `${kernel.label} sum`,
    bindings: [{ name: "partials", access: "read" }, { name: "dw", access: "read_write" }],
    chunks: splits,
    stride: size / 4,
    offsets: [0],
    size: size / 4,
    finish: "dw[o] = value0;",
  }, target);
  return { kernels: [kernel, reduction], temporaries: { partials: splits * size } };
}

/** Whether each group's channels start at a vec4. */
function hasWholeGroups({ group, inChannels, outChannels }: Conv2dSpec): boolean {
  return group === 1 || ((inChannels / group) % 4 === 0 && (outChannels / group) % 4 === 0);
}

function tapConvolution(convolution: TapConvolution, target: Target): Kernel {
  return target.family === "gpu"
    ? convolutionGpu(convolution)
    : convolutionSoftware(convolution, target);
}
