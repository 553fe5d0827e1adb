// The operators the GPU executes, by ONNX name, and the walk that records a graph's steps.
import { UnsupportedError } from "../core/errors.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { Node } from "../graph/graph.ts";
import { LAYER_OPERATORS } from "../graph/layer_kinds.ts";
import type { Step } from "../graph/layers.ts";
import { activationOf, ACTIVATIONS } from "./activation.ts";
import { type ActivationQuantizer, inputOf, type OpContext, standsAlone } from "./context.ts";
import {
  recordConcat,
  recordPad,
  recordReshape,
  recordSlice,
  recordTranspose,
} from "./data_movement.ts";
import { recordBinary, recordSoftmax } from "./elementwise.ts";
import { recordFakeQuantize } from "./fake_quantize.ts";
import { recordLayer } from "./layer.ts";
import { recordPointwise } from "./pointwise.ts";
import { recordAveragePool, recordGlobalAveragePool, recordMaxPool } from "./pooling.ts";

/** Records a node that is no layer and returns its result. */
export type RecordNode = (context: OpContext, node: Node) => Tensor;

/** Operators that stand alone; layer.ts has those with weights. */
export const OPS = {
  Add: recordBinary,
  AveragePool: recordAveragePool,
  Concat: recordConcat,
  Div: recordBinary,
  GlobalAveragePool: recordGlobalAveragePool,
  LogSoftmax: recordSoftmax,
  MaxPool: recordMaxPool,
  Mul: recordBinary,
  Pad: recordPad,
  ReduceMean: recordGlobalAveragePool,
  Reshape: recordReshape,
  Slice: recordSlice,
  Softmax: recordSoftmax,
  Sub: recordBinary,
  Transpose: recordTranspose,
} as const satisfies Record<string, RecordNode>;

/** Every operator that can be executed, layers and activations included. */
export function executableOperators(): string[] {
  const fused = [...LAYER_OPERATORS, "BatchNormalization", ...Object.keys(ACTIVATIONS)];
  return [...Object.keys(OPS), ...fused].sort();
}

/**
 * Records steps in order; results are put into the context's values.
 *
 * @param context where to record
 * @param steps layers and nodes, from `fuseLayers`
 * @throws UnsupportedError when a node's operator, or a form of it, is not implemented
 */
export function recordSteps(context: OpContext, steps: readonly Step[]): void {
  const kept = [...context.graph.outputs.map((o) => o.name), ...context.keep ?? []];
  // A tape reads activations again.
  const release = context.tape ? new Map<number, string[]>() : lastUses(steps, kept);
  steps.forEach((step, i) => {
    if (step.kind === "layer") recordLayer(context, step);
    else context.values.set(step.node.outputs[0]!, recordNode(context, step.node));
    for (const name of release.get(i) ?? []) {
      const tensor = context.values.get(name);
      if (tensor !== undefined) context.recorder.release(tensor);
    }
  });
}

function recordNode(context: OpContext, node: Node): Tensor {
  const output = node.outputs[0]!;
  const quantizer = context.quantizer(output);
  if (!standsAlone(quantizer)) return recordValue(context, node, quantizer);
  return recordFakeQuantize(context, recordValue(context, node, undefined), quantizer, output);
}

function recordValue(
  context: OpContext,
  node: Node,
  quantizer: ActivationQuantizer | undefined,
): Tensor {
  const output = node.outputs[0]!;
  if (node.opType in ACTIVATIONS) {
    const end = { activation: activationOf(node), quantizer };
    return recordPointwise(context, inputOf(context, node, 0), end, output);
  }
  const record = OPS[node.opType as keyof typeof OPS];
  if (record === undefined) {
    throw new UnsupportedError(
      node.opType,
      node.name,
      `it is not supported; supported operators: ${executableOperators().join(", ")}`,
    );
  }
  const value = record(context, node);
  return quantizer ? recordPointwise(context, value, { quantizer }, output) : value;
}

/**
 * Tensors whose memory can be reused after each step. Graph outputs, tensors from outside, and tensors that share memory
 * (Reshape) are kept.
 *
 * @param steps in the order they run
 * @param outputs tensors that must outlive the steps
 * @returns names of tensors by position of the step
 */
export function lastUses(
  steps: readonly Step[],
  outputs: Iterable<string>,
): Map<number, string[]> {
  const last = new Map<number, string[]>();
  const kept = new Set(outputs);
  const uses = new Map<string, number>();
  const made = new Set<string>();
  steps.forEach((step, i) => {
    const nodes = step.kind === "node" ? [step.node] : [step.layer];
    for (const node of nodes) for (const name of node.inputs) uses.set(name, i);
    if (step.kind === "layer" && step.residual) uses.set(step.residual.input, i);
    made.add(step.kind === "layer" ? step.output : step.node.outputs[0]!);
    if (step.kind === "node" && step.node.opType === "Reshape") {
      kept.add(step.node.inputs[0]!);
      kept.add(step.node.outputs[0]!);
    }
  });
  for (const [name, i] of uses) {
    if (!made.has(name) || kept.has(name)) continue;
    last.set(i, [...last.get(i) ?? [], name]);
  }
  return last;
}
