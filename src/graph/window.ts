// Sliding windows of convolution and pooling: kernel, strides, dilations and pads of a node with every default and
// auto_pad resolved (ONNX operators Conv, MaxPool, AveragePool).
import { UnsupportedError } from "../core/errors.ts";
import { numberAttribute, numbersAttribute, stringAttribute } from "./attributes.ts";
import type { Node } from "./graph.ts";

/** A sliding window; one entry for each spatial axis. */
export interface Window {
  /** Sizes of the window. */
  readonly kernel: readonly number[];
  /** Distance of two windows. */
  readonly strides: readonly number[];
  /** Distance of two elements of a window. */
  readonly dilations: readonly number[];
  /** All begins, then all ends, as ONNX orders them: for images [top, left, bottom, right]. */
  readonly pads: readonly number[];
}

/**
 * Reads the window of a node.
 *
 * @param node Conv, MaxPool or AveragePool
 * @param spatial spatial sizes of the input, which auto_pad needs
 * @param weightKernel spatial sizes of a convolution's weight
 * @returns the window with explicit pads
 * @throws RangeError when sizes are missing, not positive or contradict each other
 * @throws UnsupportedError for an unknown auto_pad
 */
export function windowOf(
  node: Node,
  spatial: readonly number[],
  weightKernel?: readonly number[],
): Window {
  const rank = spatial.length;
  const kernel = numbersAttribute(node, "kernel_shape") ?? weightKernel;
  if (kernel === undefined) throw conflict(node, 'attribute "kernel_shape" is missing');
  if (weightKernel !== undefined && kernel.join() !== weightKernel.join()) {
    throw conflict(node, `kernel_shape [${kernel}] differs from the weight's [${weightKernel}]`);
  }
  const ones = new Array<number>(rank).fill(1);
  const strides = numbersAttribute(node, "strides") ?? ones;
  const dilations = numbersAttribute(node, "dilations") ?? ones;
  for (const [name, sizes] of Object.entries({ kernel_shape: kernel, strides, dilations })) {
    if (sizes.length !== rank || sizes.some((size) => !Number.isInteger(size) || size < 1)) {
      throw conflict(node, `${name} is [${sizes}], expected ${rank} positive integers`);
    }
  }
  const pads = padsOf(node, spatial, { kernel, strides, dilations });
  return { kernel, strides, dilations, pads };
}

/**
 * Spatial sizes of the output.
 *
 * @param node Conv, MaxPool or AveragePool (its ceil_mode counts)
 * @param spatial spatial sizes of the input
 * @param window the node's window
 * @returns one size for each spatial axis
 * @throws RangeError when the window does not fit in the padded input
 */
export function windowOutput(node: Node, spatial: readonly number[], window: Window): number[] {
  const ceil = numberAttribute(node, "ceil_mode", 0) !== 0;
  return spatial.map((size, axis) => {
    const stride = window.strides[axis]!;
    const begin = window.pads[axis]!;
    const steps = (size + begin + window.pads[axis + spatial.length]! - extent(window, axis)) /
      stride;
    let count = (ceil ? Math.ceil(steps) : Math.floor(steps)) + 1;
    // A window that would start in the padding after the input is dropped.
    if (ceil && (count - 1) * stride >= size + begin) count--;
    if (!(steps >= 0) || count < 1) {
      throw conflict(
        node,
        `the window of ${extent(window, axis)} does not fit in axis ${axis + 2} of size ${size}` +
          ` with pads [${window.pads}]`,
      );
    }
    return count;
  });
}

function padsOf(
  node: Node,
  spatial: readonly number[],
  window: Omit<Window, "pads">,
): readonly number[] {
  const rank = spatial.length;
  const autoPad = stringAttribute(node, "auto_pad", "NOTSET");
  if (autoPad === "NOTSET" || autoPad === "") {
    const pads = numbersAttribute(node, "pads") ?? new Array<number>(2 * rank).fill(0);
    if (pads.length !== 2 * rank || pads.some((pad) => !Number.isInteger(pad) || pad < 0)) {
      throw conflict(node, `pads is [${pads}], expected ${2 * rank} integers >= 0`);
    }
    return pads;
  }
  if (autoPad === "VALID") return new Array<number>(2 * rank).fill(0);
  if (autoPad !== "SAME_UPPER" && autoPad !== "SAME_LOWER") {
    throw new UnsupportedError(node.opType, node.name, `auto_pad is "${autoPad}"`);
  }
  const totals = spatial.map((size, axis) => {
    const stride = window.strides[axis]!;
    return Math.max(0, (Math.ceil(size / stride) - 1) * stride + extent(window, axis) - size);
  });
  const smaller = totals.map((total) => Math.floor(total / 2));
  const larger = totals.map((total) => Math.ceil(total / 2));
  return autoPad === "SAME_UPPER" ? [...smaller, ...larger] : [...larger, ...smaller];
}

function extent(window: Omit<Window, "pads">, axis: number): number {
  return window.dilations[axis]! * (window.kernel[axis]! - 1) + 1;
}

function conflict(node: Node, detail: string): RangeError {
  return new RangeError(`node "${node.name}" (${node.opType}): ${detail}`);
}
