// 2-D convolution and its gradients: x [N, H, W, C], w [O, KH, KW, C / group], y [N, OH, OW, O], channels last and
// padded to 4. This file only chooses; the kernels are in conv2d_software, conv2d_gpu, conv2d_weight_* and, for
// grouped convolutions whose groups do not fill whole vec4s, conv2d_direct.
import { directBackwardInput, directBackwardWeight, directForward } from "./conv2d_direct.ts";
import { convolutionGpu, gpuTiles } from "./conv2d_gpu.ts";
import {
  backwardInputConvolutions,
  type Conv2dSpec,
  flattenPointwise,
  forwardConvolution,
  shapeLabel,
  type TapConvolution,
  tapConvolutionShapes,
} from "./conv2d_plan.ts";
import { convolutionSoftware } from "./conv2d_software.ts";
import { softwareTiles } from "./conv2d_software_tile.ts";
import { gpuWeightTiles, weightGradientGpu } from "./conv2d_weight_gpu.ts";
import {
  softwareWeightTiles,
  weightGradientSoftware,
  type WeightKernel,
} from "./conv2d_weight_software.ts";
import { isZero, zeroPhases } from "./conv2d_zero_phases.ts";
import type { Epilogue } from "./epilogue.ts";
import { type Kernel, type KernelSequence, paddedSize, type Target } from "./kernel.ts";
import { reductionKernel } from "./reduce_partials.ts";
import { decideTile } from "./tile_choice.ts";

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
 * @returns Kernels with bindings `dy`, `w` and `dx`, one for each phase of the stride that has taps.
 */
export function conv2dBackwardInput(spec: Conv2dSpec, target: Target): KernelSequence {
  if (!hasWholeGroups(spec)) return { kernels: [directBackwardInput(spec)], temporaries: {} };
  const convolutions = backwardInputConvolutions(flattenPointwise(spec));
  const kernels = convolutions.filter((phase) => !isZero(phase))
    .map((phase) => tapConvolution(phase, target));
  const zeros = convolutions.filter(isZero);
  if (zeros.length > 0) {
    kernels.push(zeroPhases(`conv2d_backward_input ${shapeLabel(spec)} zeros`, zeros));
  }
  return { kernels, temporaries: {} };
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
  return target.family === "gpu"
    ? tiledWeightGradient(
      flat,
      target,
      gpuWeightTiles(flat),
      (tile) => weightGradientGpu(flat, tile),
    )
    : tiledWeightGradient(
      flat,
      target,
      softwareWeightTiles(flat, target),
      (tile) => weightGradientSoftware(flat, target, tile),
    );
}

function tiledWeightGradient<T extends object>(
  spec: Conv2dSpec,
  target: Target,
  tiles: readonly T[],
  kernel: (tile: T) => WeightKernel,
): KernelSequence {
  const { batch, outChannels, kernelHeight, kernelWidth, inChannels, group } = spec;
  const build = (tile: T) => sumOfSplits(spec, kernel(tile), target);
  const { tile, choice } = decideTile({
    key: `conv2d_backward_weight ${shapeLabel(spec)}`,
    shapes: {
      x: [batch, spec.inHeight, spec.inWidth, inChannels],
      dy: [batch, spec.outHeight, spec.outWidth, outChannels],
      dw: [outChannels, kernelHeight, kernelWidth, inChannels / group],
    },
    tiles,
    build,
  }, target);
  const { kernels: [first, ...rest], temporaries } = build(tile);
  return { kernels: [{ ...first!, choice }, ...rest], temporaries };
}

/** A weight gradient with the sum of its partial sums over pixels. */
function sumOfSplits(
  { outChannels, kernelHeight, kernelWidth, inChannels, group }: Conv2dSpec,
  { kernel, splits }: WeightKernel,
  target: Target,
): KernelSequence {
  if (splits === 1) return { kernels: [kernel], temporaries: {} };
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
    ? tiledConvolution(convolution, target, gpuTiles(convolution), convolutionGpu)
    : tiledConvolution(
      convolution,
      target,
      softwareTiles(convolution, target),
      (part, tile) => convolutionSoftware(part, target, tile),
    );
}

function tiledConvolution<T extends object>(
  convolution: TapConvolution,
  target: Target,
  tiles: readonly T[],
  kernel: (convolution: TapConvolution, tile: T) => Kernel,
): Kernel {
  const plain = { ...convolution, epilogue: {} };
  const { tile, choice } = decideTile({
    key: convolution.label,
    shapes: tapConvolutionShapes(convolution),
    tiles,
    build: (tile: T) => ({ kernels: [kernel(plain, tile)], temporaries: {} }),
  }, target);
  return { ...kernel(convolution, tile), choice };
}
