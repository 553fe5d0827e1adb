// Concat, Slice, Pad, Reshape and Transpose.
import {
  concatBackward,
  concatForward,
  type FourNumbers,
  sliceAndPadBackward,
  sliceAndPadForward,
  type SliceAndPadSpec,
  transposeBackward,
  transposeForward,
} from "../../kernels/data_movement.ts";
import { UnsupportedError } from "../core/errors.ts";
import { reshape, type Tensor } from "../gpu/tensor.ts";
import { numberAttribute, numbersAttribute, stringAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import { inputOf, type OpContext, recordOp, rowsAndChannels, shapeOf } from "./context.ts";

/** Records Concat along the channels. */
export function recordConcat(context: OpContext, node: Node): Tensor {
  const inputs = node.inputs.map((_, i) => inputOf(context, node, i));
  const [first] = inputs;
  const axis = numberAttribute(node, "axis", -1);
  if (first === undefined || axis !== first.shape.length - 1) {
    throw new UnsupportedError(node.opType, node.name, `axis is ${axis}, expected the channels`);
  }
  const { rows } = rowsAndChannels(first.shape);
  const spec = { rows, channels: inputs.map((input) => rowsAndChannels(input.shape).channels) };
  const bindings = Object.fromEntries(inputs.map((input, i) => [`x${i}`, input]));
  return recordOp(
    context,
    node.outputs[0]!,
    { kernel: concatForward(spec), bindings },
    inputs.map((tensor, i) => ({
      tensor,
      backward: () => ({ kernel: concatBackward(spec, i), bindings: {} }),
    })),
  );
}

/** Records Slice. */
export function recordSlice(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const start = new Array<number>(x.shape.length).fill(0);
  const step = new Array<number>(x.shape.length).fill(1);
  numbersAttribute(node, "axes")?.forEach((axis, i) => {
    start[axis] = numbersAttribute(node, "starts")?.[i] ?? 0;
    step[axis] = numbersAttribute(node, "steps")?.[i] ?? 1;
  });
  return recordSliceAndPad(context, node, x, { start, step, value: 0 });
}

/** Records Pad with a constant. */
export function recordPad(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const mode = stringAttribute(node, "mode", "constant");
  if (mode !== "constant") {
    throw new UnsupportedError(node.opType, node.name, `mode is "${mode}", expected "constant"`);
  }
  const pads = numbersAttribute(node, "pads") ?? [];
  const start = x.shape.map((_, axis) => -(pads[axis] ?? 0));
  const step = x.shape.map(() => 1);
  return recordSliceAndPad(context, node, x, {
    start,
    step,
    value: numberAttribute(node, "value", 0),
  });
}

/** Records Reshape: the elements stay where they are. */
export function recordReshape(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const y = reshape(x, shapeOf(context, node.outputs[0]!));
  context.tape?.push([x], y, (dy) => context.tape?.share(x, dy));
  return y;
}

/** Records Transpose. */
export function recordTranspose(context: OpContext, node: Node): Tensor {
  const x = inputOf(context, node, 0);
  const permutation = numbersAttribute(node, "perm") ?? x.shape.map((_, i) => i).toReversed();
  const spec = { shape: x.shape, permutation };
  const kernel = transposeForward(spec);
  return recordOp(context, node.outputs[0]!, { kernel, bindings: { x } }, [
    { tensor: x, backward: () => ({ kernel: transposeBackward(spec), bindings: {} }) },
  ]);
}

function recordSliceAndPad(
  context: OpContext,
  node: Node,
  x: Tensor,
  { start, step, value }: {
    readonly start: readonly number[];
    readonly step: readonly number[];
    readonly value: number;
  },
): Tensor {
  const output = node.outputs[0]!;
  const spec: SliceAndPadSpec = {
    input: fourAxes(node, x.shape, 1),
    output: fourAxes(node, shapeOf(context, output), 1),
    start: fourAxes(node, start, 0),
    step: fourAxes(node, step, 1),
    value,
  };
  const kernel = sliceAndPadForward(spec);
  return recordOp(context, output, { kernel, bindings: { x } }, [
    { tensor: x, backward: () => ({ kernel: sliceAndPadBackward(spec), bindings: {} }) },
  ]);
}

/** Four axes, the missing ones put after the batch: [N, C] becomes [N, 1, 1, C]. */
function fourAxes(node: Node, values: readonly number[], missing: number): FourNumbers {
  if (values.length === 0 || values.length > 4) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      `the rank is ${values.length}, expected 1 to 4`,
    );
  }
  const [batch = missing, ...middle] = values.slice(0, -1);
  const [height, width] = [missing, missing, ...middle].slice(-2);
  return [batch, height!, width!, values.at(-1)!]; // the slice has two elements
}
