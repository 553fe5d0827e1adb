// What an operator needs to record itself: where kernels go, the tensors made so far, parameters, quantizers and, when
// gradients are wanted, the tape.
import type { QuantizedShare, QuantizerGradient } from "../../kernels/fake_quantize.ts";
import type { Kernel, KernelSequence } from "../../kernels/kernel.ts";
import type { SquaredErrorTerm } from "../../kernels/mse.ts";
import type { TileStorage } from "../../kernels/tile_storage.ts";
import type { Tape } from "../autograd/tape.ts";
import type { Recorder } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { Graph, Node } from "../graph/graph.ts";

/** Fake quantizer of one activation. */
export interface ActivationQuantizer {
  /** [scale, zeroPoint, quantMin, quantMax]. */
  readonly qparams: Tensor;
  /** Where training puts the terms of the scale's gradient, [channels]; absent when the scale is fixed. */
  readonly scaleSums?: Tensor;
  /** As `scaleSums`, for the zero point; it too is absent when that is fixed. */
  readonly zeroPointSums?: Tensor;
  /** Training quantizes only a share of the tensor; `state` is the training state of kernels/schedule.ts. */
  readonly partial?: { readonly share: QuantizedShare; readonly state: Tensor };
  /** How its gradient differs from LSQ's, if it does. */
  readonly gradient?: QuantizerGradient;
  /** Where its levels lie behind thresholds. */
  readonly thresholds?: ActivationThresholds;
}

/** Thresholds of a tensor (kernels/threshold_quantize.ts). */
export interface ActivationThresholds {
  readonly count: number;
  /** [GRID_SIZE]; begins with qparams. */
  readonly grid: Tensor;
  /** Where training puts the terms of the gradients, [count + 2, channels]; absent when nothing is learned. */
  readonly sums?: Tensor;
}

/**
 * Whether a quantizer has to be a step of its own: what is fused into layers quantizes all to an even grid, and learns a
 * scale as LSQ.
 */
export function standsAlone(
  quantizer: ActivationQuantizer | undefined,
): quantizer is ActivationQuantizer {
  return quantizer?.partial !== undefined || quantizer?.zeroPointSums !== undefined ||
    quantizer?.gradient !== undefined || quantizer?.thresholds !== undefined;
}

/** A parameter on the GPU; `gradient` is where training wants its gradient. */
export interface Trainable {
  readonly value: Tensor;
  readonly gradient?: Tensor;
}

/** A batch norm that trains, on the statistics of the batch while state[4] says so. All tensors are [C]. */
export interface LiveBatchNorm {
  readonly gamma: Trainable;
  readonly beta: Trainable;
  readonly runningMean: Tensor;
  readonly runningVariance: Tensor;
  readonly epsilon: number;
  /** Part of the batch's statistics in the running ones after a step. */
  readonly momentum: number;
  /** The training state of kernels/schedule.ts. */
  readonly state: Tensor;
}

/** A squared error between a tensor and the teacher's, as a term of the loss. */
export interface SquaredError extends SquaredErrorTerm {
  /** The teacher's tensor, of the same shape. */
  readonly teacher: Tensor;
  /** [1]: factor of the term. */
  readonly weight: Tensor;
  /** The training state of kernels/schedule.ts. */
  readonly state: Tensor;
  /** [historySize * terms]. */
  readonly losses: Tensor;
}

/** Everything an operator records itself with. */
export interface OpContext {
  readonly recorder: Recorder;
  /** The channels-last graph the nodes come from: its initializers give attributes that ONNX passes as inputs. */
  readonly graph: Graph;
  /** Channels-last shapes by tensor name. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** Tensors by name: inputs at the start, results as they are recorded. */
  readonly values: Map<string, Tensor>;
  /** The GPU tensor of an initializer (weights, biases, constants). */
  readonly parameter: (name: string) => Trainable;
  /** The quantizer of a tensor, if it has one. */
  readonly quantizer: (tensor: string) => ActivationQuantizer | undefined;
  /**
   * A quantizer that lets every value pass, for layers whose result has none: so the teacher runs the student's kernels,
   * and they are compiled once.
   */
  readonly passThrough?: ActivationQuantizer;
  /** Names of the layers that quantize their input with the range it has at run time; without a tape only. */
  readonly dynamicLayers?: ReadonlySet<string>;
  /** Of the layers' forward products; default float32. */
  readonly tileStorage?: TileStorage | undefined;
  /** Tensors that must outlive the recorded steps, besides the graph's outputs. */
  readonly keep?: ReadonlySet<string>;
  /** Present when gradients are wanted. */
  readonly tape?: Tape;
  /**
   * Errors by tensor that nothing but the loss reads: the layer that makes such a tensor goes straight to the gradient,
   * and its tensor does not appear among the values. Needs the tape.
   */
  readonly squaredErrors?: ReadonlyMap<string, SquaredError>;
  /** Batch norms by node name that use the statistics of the batch; needs the tape. */
  readonly batchNorm?: (node: string) => LiveBatchNorm | undefined;
}

/** Shape of a tensor, by name. */
export function shapeOf(context: Pick<OpContext, "shapes">, tensor: string): readonly number[] {
  const shape = context.shapes.get(tensor);
  if (shape === undefined) throw new TypeError(`Tensor "${tensor}" has no shape`);
  return shape;
}

/** The value of a node's input, by position: a computed tensor, or a constant. */
export function inputOf(context: OpContext, node: Node, position: number): Tensor {
  const name = node.inputs[position];
  if (name === undefined || name === "") {
    throw new TypeError(`node "${node.name}" (${node.opType}): input ${position} is missing`);
  }
  return valueOf(context, name);
}

/** A tensor by name: computed, or a constant. */
export function valueOf(context: OpContext, name: string): Tensor {
  return context.values.get(name) ?? context.parameter(name).value;
}

/** Rows and channels of a channels-last shape. */
export function rowsAndChannels(shape: readonly number[]): { rows: number; channels: number } {
  const channels = shape.at(-1) ?? 1;
  return { rows: shape.slice(0, -1).reduce((product, size) => product * size, 1), channels };
}

/** A kernel with its tensors by binding name. */
export interface BoundKernel {
  readonly kernel: Kernel | KernelSequence;
  readonly bindings: Readonly<Record<string, Tensor>>;
}

/** An input of an operator and how its gradient `dx` follows from the result `y` and its gradient `dy`. */
export interface DifferentiableInput {
  readonly tensor: Tensor;
  /** Kernel and bindings of the gradient, except dy and dx. */
  readonly backward: (y: Tensor) => BoundKernel;
}

/**
 * Records an operator with one result.
 *
 * @param context where to record
 * @param output name of the result
 * @param forward kernel and bindings, except y
 * @param inputs the inputs that have gradients
 * @returns the result
 */
export function recordOp(
  context: OpContext,
  output: string,
  forward: BoundKernel,
  inputs: readonly DifferentiableInput[],
): Tensor {
  const { recorder, tape } = context;
  const y = recorder.tensor(shapeOf(context, output), output);
  recorder.run(forward.kernel, { ...forward.bindings, y });
  tape?.push(inputs.map((input) => input.tensor), y, (dy) => {
    for (const { tensor, backward } of inputs) {
      tape.give(tensor, (dx) => {
        const { kernel, bindings } = backward(y);
        recorder.run(kernel, { ...bindings, dy, dx });
      });
    }
  });
  return y;
}
