// LSTM over sequences x [N, T, I]: the products with the inputs are one GEMM, the recurrence one kernel. Its weight
// [4 H, I + H] holds what multiplies x and what multiplies the state before, rows of the gates i, o, f, g.
import {
  concatForward,
  sliceAndPadForward,
  transposeForward,
} from "../../kernels/data_movement.ts";
import { gemm } from "../../kernels/gemm.ts";
import { lstmBackward, lstmForward, type LstmSpec, MOST_HIDDEN } from "../../kernels/lstm.ts";
import { reductionForward } from "../../kernels/reduction.ts";
import { UnsupportedError } from "../core/errors.ts";
import type { Recorder } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { stringAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import type { OpContext, Trainable } from "./context.ts";

/**
 * Records an LSTM.
 *
 * @param context where to record
 * @param node the LSTM as graph/lstm.ts leaves it
 * @param x [N, T, I]
 * @param weight [4 H, I + H]
 * @param bias [4 H], if it has one
 * @param quantizesState whether the state is quantized at run time, as x then already is
 * @returns [N, T, H]
 * @throws UnsupportedError when it has too many units
 */
export function recordLstm(
  context: OpContext,
  node: Node,
  x: Tensor,
  { weight, bias, quantizesState }: {
    readonly weight: Trainable;
    readonly bias: Trainable | undefined;
    readonly quantizesState: boolean;
  },
): Tensor {
  const { recorder, tape } = context;
  const { target } = recorder.device;
  const [samples = 1, steps = 1, inputs = 1] = x.shape;
  const rows = weight.value.shape[0]!, hidden = rows / 4;
  if (hidden > MOST_HIDDEN) {
    throw new UnsupportedError(node.opType, node.name, `${hidden} units, at most ${MOST_HIDDEN}`);
  }
  const spec: LstmSpec = {
    samples,
    steps,
    hidden,
    reverse: stringAttribute(node, "direction", "forward") === "reverse",
  };
  const parts = splitWeight(recorder, weight.value, inputs);
  const output = node.outputs[0]!;
  const p = recorder.tensor([samples, steps, rows], `${output} products`);
  recorder.run(
    gemm(
      { m: samples * steps, n: rows, k: inputs, transposeA: false, transposeB: true },
      { bias: bias !== undefined },
      target,
    ),
    { a: x, b: parts.input, ...(bias && { bias: bias.value }), y: p },
  );
  const transposed = recorder.tensor([hidden, rows], `${node.name} recurrent weights`);
  recorder.run(transposeForward({ shape: [rows, hidden], permutation: [1, 0] }), {
    x: parts.recurrent,
    y: transposed,
  });
  const y = recorder.tensor([samples, steps, hidden], output);
  const cells = recorder.tensor([samples, steps, hidden], `${output} cells`);
  const gates = tape && recorder.tensor([samples, steps, rows], `${output} gates`);
  recorder.run(lstmForward(spec, { keepsGates: tape !== undefined, quantizesState }), {
    p,
    r: transposed,
    y,
    cells,
    ...(gates && { gates }),
  });
  recorder.release(p);
  recorder.release(transposed);
  if (tape === undefined || gates === undefined) {
    for (const tensor of [parts.input, parts.recurrent, cells]) recorder.release(tensor);
    return y;
  }
  const trains = weight.gradient !== undefined || bias?.gradient !== undefined;
  tape.push([x], y, (dy) => {
    const dp = recorder.tensor([samples, steps, rows], `${output} slopes`);
    recorder.run(lstmBackward(spec), { dy, gates, cells, r: parts.recurrent, dp });
    if (weight.gradient) {
      recordWeightGradient(recorder, spec, { x, y, dp, dw: weight.gradient });
    }
    if (bias?.gradient) {
      const sum = { operator: "sum", shape: dp.shape, axes: "leading" } as const;
      recorder.run(reductionForward(sum, target), { x: dp, y: bias.gradient });
    }
    tape.give(x, (dx) => {
      const product = { m: samples * steps, n: inputs, k: rows };
      recorder.run(
        gemm({ ...product, transposeA: false, transposeB: false }, {}, target),
        { a: dp, b: parts.input, y: dx },
      );
    });
    recorder.release(dp);
  }, trains);
  return y;
}

/** The columns of a weight that multiply the inputs, and those that multiply the state. */
function splitWeight(
  recorder: Recorder,
  weight: Tensor,
  inputs: number,
): Record<"input" | "recurrent", Tensor> {
  const [rows = 1, columns = 1] = weight.shape;
  const part = (start: number, end: number, label: string) => {
    const y = recorder.tensor([rows, end - start], label);
    const slice = sliceAndPadForward({
      input: [1, 1, rows, columns],
      output: [1, 1, rows, end - start],
      start: [0, 0, 0, start],
      step: [1, 1, 1, 1],
      value: 0,
    });
    recorder.run(slice, { x: weight, y });
    return y;
  };
  return {
    input: part(0, inputs, `${weight.label} of inputs`),
    recurrent: part(inputs, columns, `${weight.label} of states`),
  };
}

/** dw = dp^T [x, h'], h' being y one step later and 0 at the first. */
function recordWeightGradient(
  recorder: Recorder,
  { samples, steps, hidden, reverse }: LstmSpec,
  { x, y, dp, dw }: Readonly<Record<"x" | "y" | "dp" | "dw", Tensor>>,
): void {
  const { target } = recorder.device;
  const inputs = x.shape.at(-1)!, rows = 4 * hidden;
  const before = recorder.tensor([samples, steps, hidden], `${y.label} before`);
  const size = [samples, 1, steps, hidden] as const;
  const later = sliceAndPadForward({
    input: size,
    output: size,
    start: [0, 0, reverse ? 1 : -1, 0],
    step: [1, 1, 1, 1],
    value: 0,
  });
  recorder.run(later, { x: y, y: before });
  const gradient = (of: Tensor, columns: number) => {
    const part = recorder.tensor([rows, columns], `${dw.label} of ${of.label}`);
    const product = {
      m: rows,
      n: columns,
      k: samples * steps,
      transposeA: true,
      transposeB: false,
    };
    recorder.run(gemm(product, {}, target), { a: dp, b: of, y: part });
    return part;
  };
  const parts = [gradient(x, inputs), gradient(before, hidden)];
  recorder.release(before);
  recorder.run(concatForward({ rows, channels: [inputs, hidden] }), {
    x0: parts[0]!,
    x1: parts[1]!,
    y: dw,
  });
  for (const part of parts) recorder.release(part);
}
