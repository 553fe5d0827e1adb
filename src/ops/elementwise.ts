// Add, Sub, Mul, Div with broadcasting, and Softmax. An Add of two tensors of one shape is a residual of the pointwise
// end; activations and quantization that stand alone are pointwise ends without a layer.
import { binaryBackward, binaryBackwardReads, binaryForward } from "../../kernels/elementwise.ts";
import {
  logSoftmaxBackward,
  logSoftmaxForward,
  softmaxBackward,
  softmaxForward,
} from "../../kernels/softmax.ts";
import type { KernelSequence } from "../../kernels/kernel.ts";
import { UnsupportedError } from "../core/errors.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { numberAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import { inputOf, type OpContext, recordOp, rowsAndChannels } from "./context.ts";
import { recordPointwise } from "./pointwise.ts";

/** Records Add, Sub, Mul or Div. */
export function recordBinary(context: OpContext, node: Node): Tensor {
  const a = inputOf(context, node, 0), b = inputOf(context, node, 1);
  const output = node.outputs[0]!;
  if (node.opType === "Add" && a.shape.join() === b.shape.join()) {
    return recordPointwise(context, a, { residual: b }, output);
  }
  const operator = node.opType.toLowerCase() as "add" | "sub" | "mul" | "div";
  const spec = { operator, a: a.shape, b: b.shape };
  const { target } = context.recorder.device;
  const backward = (side: "a" | "b") => () => {
    const reads = binaryBackwardReads(operator, side).map((name) => [name, { a, b }[name]]);
    const kernel = renameOutput(binaryBackward(spec, side, target), `d${side}`);
    return { kernel, bindings: Object.fromEntries(reads) as Record<string, Tensor> };
  };
  return recordOp(context, output, { kernel: binaryForward(spec), bindings: { a, b } }, [
    { tensor: a, backward: backward("a") },
    { tensor: b, backward: backward("b") },
  ]);
}

/** Records Softmax or LogSoftmax over the channels. */
export function recordSoftmax(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const axis = numberAttribute(node, "axis", -1);
  if (axis !== -1 && axis !== x.shape.length - 1) {
    throw new UnsupportedError(node.opType, node.name, `axis is ${axis}, expected the channels`);
  }
  const { rows, channels: classes } = rowsAndChannels(x.shape);
  const spec = { rows, classes };
  const log = node.opType === "LogSoftmax";
  const kernel = log ? logSoftmaxForward(spec) : softmaxForward(spec);
  const backward = log ? logSoftmaxBackward : softmaxBackward;
  return recordOp(context, node.outputs[0]!, { kernel, bindings: { x } }, [
    { tensor: x, backward: (y) => ({ kernel: backward(spec), bindings: { y } }) },
  ]);
}

/** The sequence with its result bound as `dx`. */
function renameOutput(sequence: KernelSequence, from: string): KernelSequence {
  const kernels = sequence.kernels.map((kernel) => ({
    ...kernel,
    bindings: kernel.bindings.map((b) => b.name === from ? { ...b, name: "dx" } : b),
  }));
  return { ...sequence, kernels };
}
