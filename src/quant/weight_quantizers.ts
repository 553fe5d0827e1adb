// The quantizers of weights in training, as a table: what each learns, where its levels are, and its kernels.
import type { Kernel, Target } from "../../kernels/kernel.ts";
import {
  quantizeMagnitudeWeights,
  quantizeMagnitudeWeightsBackward,
  scaleByMagnitude,
} from "../../kernels/magnitude_weights.ts";
import {
  coverWeights,
  quantizeWeights,
  quantizeWeightsBackward,
  type WeightQuantizationSpec,
} from "../../kernels/weight_quantization.ts";
import { EWGS_DELTA } from "./activation_parameters.ts";
import { onMagnitudeGrid } from "./magnitude_weights.ts";
import type { LayerState } from "./student.ts";
import { onTanhGrid } from "./tanh_weights.ts";

/**
 * How weights are quantized while they train: with learned scales (LSQ), these with gradients scaled element by element
 * (EWGS, Lee, Kim, Ham 2021), fixed scales (STE), ones that cover the current weights of each channel (min-max), fixed
 * levels from end to end of their hyperbolic tangents (DoReFa-Net, Zhou et al. 2016), levels whose height follows their
 * mean magnitude (N2UQ, Liu et al. 2022), or with learned rounding and nothing else (AdaRound).
 */
export type WeightQuantizer =
  | "lsq"
  | "ewgs"
  | "ste"
  | "minMax"
  | "dorefa"
  | "n2uq"
  | "softRounding";

type RowKernel = (spec: WeightQuantizationSpec, target: Target) => Kernel;

/** What distinguishes a quantizer. */
interface QuantizerRow {
  /** Whether scales have a learning rate. */
  readonly learnsScales?: true;
  /** Puts a layer on levels of its own. */
  readonly place?: (layer: LayerState) => LayerState;
  /** Sets the scales where they follow the weights; bindings: parameters, rows. */
  readonly scale?: RowKernel;
  /** Bindings: parameters, rows, w; quantizeWeights by default. */
  readonly forward?: RowKernel;
  /** Bindings: parameters, rows, dw, gradients; LSQ's by default. */
  readonly backward?: RowKernel;
}

/** The table. Those with parameters of their own, dorefa and softRounding, have their kernels in training_parameters.ts. */
export const WEIGHT_QUANTIZERS: Readonly<Record<WeightQuantizer, QuantizerRow>> = {
  lsq: { learnsScales: true },
  ewgs: {
    learnsScales: true,
    backward: (spec, target) => quantizeWeightsBackward({ ...spec, delta: EWGS_DELTA }, target),
  },
  ste: {},
  minMax: { scale: coverWeights },
  dorefa: { place: onTanhGrid },
  n2uq: {
    place: onMagnitudeGrid,
    scale: scaleByMagnitude,
    forward: quantizeMagnitudeWeights,
    backward: quantizeMagnitudeWeightsBackward,
  },
  softRounding: {},
};

/** The kernel that quantizes weights. */
export function weightForward(quantizer: WeightQuantizer): RowKernel {
  return WEIGHT_QUANTIZERS[quantizer].forward ?? quantizeWeights;
}

/** The kernel of its gradient. */
export function weightBackward(quantizer: WeightQuantizer): RowKernel {
  return WEIGHT_QUANTIZERS[quantizer].backward ?? quantizeWeightsBackward;
}
