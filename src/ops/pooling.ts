// MaxPool, AveragePool, GlobalAveragePool and ReduceMean over the image.
import {
  averagePoolBackward,
  averagePoolForward,
  type AveragePoolSpec,
  globalAveragePoolBackward,
  globalAveragePoolForward,
  maxPoolBackward,
  maxPoolForward,
} from "../../kernels/pooling.ts";
import { UnsupportedError } from "../core/errors.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { numberAttribute, numbersAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import { inputOf, type OpContext, recordOp, shapeOf } from "./context.ts";

/** Records MaxPool. */
export function recordMaxPool(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const spec = poolSpec(context, node);
  return recordOp(context, node.outputs[0]!, { kernel: maxPoolForward(spec), bindings: { x } }, [
    { tensor: x, backward: () => ({ kernel: maxPoolBackward(spec), bindings: { x } }) },
  ]);
}

/** Records AveragePool. */
export function recordAveragePool(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const countIncludePad = numberAttribute(node, "count_include_pad", 0) !== 0;
  const spec = { ...poolSpec(context, node), countIncludePad };
  const kernel = averagePoolForward(spec);
  return recordOp(context, node.outputs[0]!, { kernel, bindings: { x } }, [
    { tensor: x, backward: () => ({ kernel: averagePoolBackward(spec), bindings: {} }) },
  ]);
}

/** Records GlobalAveragePool, or a ReduceMean over height and width or the steps of a sequence. */
export function recordGlobalAveragePool(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const [batch = 1, ...rest] = x.shape;
  const channels = rest.pop() ?? 1;
  const axes = numbersAttribute(node, "axes")?.toSorted().join();
  const inner = rest.map((_, i) => i + 1).join();
  if (node.opType === "ReduceMean" && (rest.length === 0 || axes !== inner)) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      `axes are [${axes}] of a tensor of rank ${x.shape.length}; only height and width, or steps, are supported`,
    );
  }
  const spec = { batch, size: rest.reduce((product, size) => product * size, 1), channels };
  const kernel = globalAveragePoolForward(spec);
  return recordOp(context, node.outputs[0]!, { kernel, bindings: { x } }, [
    { tensor: x, backward: () => ({ kernel: globalAveragePoolBackward(spec), bindings: {} }) },
  ]);
}

function poolSpec(context: OpContext, node: Node): Omit<AveragePoolSpec, "countIncludePad"> {
  const [batch = 1, inHeight = 1, inWidth = 1, channels = 1] = shapeOf(context, node.inputs[0]!);
  const [, outHeight = 1, outWidth = 1] = shapeOf(context, node.outputs[0]!);
  const [kernelHeight = 1, kernelWidth = 1] = numbersAttribute(node, "kernel_shape") ?? [];
  const [strideHeight = 1, strideWidth = 1] = numbersAttribute(node, "strides") ?? [];
  const [padTop = 0, padLeft = 0, padBottom = 0, padRight = 0] = numbersAttribute(node, "pads") ??
    [];
  const dilations = numbersAttribute(node, "dilations") ?? [];
  if (dilations.some((dilation) => dilation !== 1)) {
    throw new UnsupportedError(node.opType, node.name, `dilations are [${dilations}], expected 1`);
  }
  return {
    batch,
    inHeight,
    inWidth,
    channels,
    outHeight,
    outWidth,
    kernelHeight,
    kernelWidth,
    strideHeight,
    strideWidth,
    padTop,
    padLeft,
    padBottom,
    padRight,
  };
}
