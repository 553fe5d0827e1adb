// Forward passes of a deployed student on its integers: codes in, int32 sums, codes out. Convolutions, linear layers and
// average poolings of quantized tensors run on codes, with what follows them (residual, activation) in the float32
// arithmetic that ONNX QDQ defines. Every other step is what QDQ says it is: its inputs are dequantized, the float32
// operator runs, and its result is quantized where it has a quantizer.
import { dequantizeCodes, quantizeCodes } from "../../kernels/integer_codes.ts";
import { integerConv2d } from "../../kernels/integer_conv2d.ts";
import { integerDepthwiseConv2d } from "../../kernels/integer_depthwise_conv2d.ts";
import type { IntegerEpilogue } from "../../kernels/integer_epilogue.ts";
import type { Conv2dSpec } from "../../kernels/conv2d.ts";
import { paddedSize } from "../../kernels/kernel.ts";
import type { Recorder } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { numberAttribute, numbersAttribute } from "../graph/attributes.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { fuseLayers, type LayerStep, type Step } from "../graph/layers.ts";
import { activationOf } from "../ops/activation.ts";
import { rowsAndChannels } from "../ops/context.ts";
import { conv2dSpecOf } from "../ops/layer.ts";
import { lastUses, recordSteps } from "../ops/ops.ts";
import { graphOf, partBetween } from "./inference.ts";
import type { IntegerLayer, IntegerValues } from "./integer_values.ts";
import { type Network, shapesForBatch } from "./network.ts";

/**
 * Records the forward pass of a deployed student on its integers.
 *
 * @param recorder where to record
 * @param network the student's graph, made ready
 * @param values its integers
 * @param x the network's input in float32, the batch as first size
 * @returns the network's output in float32
 * @throws UnsupportedError when a node's operator, or a form of it, is not implemented
 * @throws RangeError when a sum could leave int32
 */
export function recordIntegerForward(
  recorder: Recorder,
  network: Network,
  values: IntegerValues,
  x: Tensor,
): Tensor {
  const { teacher, input, output } = network;
  const graph = graphOf(partBetween(teacher, [input], [output]));
  const shapes = shapesForBatch(teacher, x.shape[0] ?? 1);
  const forward = new IntegerForward(recorder, graph, shapes, values);
  forward.set(input, x);
  const steps = fuseLayers(graph, values.quantized, shapes);
  const release = lastUses(steps, [output]);
  steps.forEach((step, i) => {
    forward.record(step);
    for (const name of release.get(i) ?? []) forward.release(name);
  });
  return forward.float(output);
}

/** The tensors of a forward pass, as codes, as float32, or as both. */
class IntegerForward {
  readonly #recorder: Recorder;
  readonly #graph: Graph;
  readonly #shapes: ReadonlyMap<string, readonly number[]>;
  readonly #values: IntegerValues;
  readonly #codes = new Map<string, Tensor>();
  readonly #floats = new Map<string, Tensor>();

  constructor(
    recorder: Recorder,
    graph: Graph,
    shapes: ReadonlyMap<string, readonly number[]>,
    values: IntegerValues,
  ) {
    this.#recorder = recorder;
    this.#graph = graph;
    this.#shapes = shapes;
    this.#values = values;
  }

  /** Takes a float32 tensor; where it has a quantizer its codes take its place. */
  set(name: string, x: Tensor): void {
    if (!this.#values.quantized.has(name)) {
      this.#floats.set(name, x);
      return;
    }
    const y = this.#newCodes(name);
    const kernel = quantizeCodes(rowsAndChannels(x.shape));
    this.#recorder.run(kernel, { x, grid: this.#values.grid(name), y });
  }

  /** A tensor in float32. */
  float(name: string): Tensor {
    const known = this.#floats.get(name);
    if (known !== undefined) return known;
    const x = this.#codes.get(name);
    if (x === undefined) return this.#values.parameter(name);
    const y = this.#recorder.tensor(this.#shape(name), name);
    const kernel = dequantizeCodes(rowsAndChannels(y.shape));
    this.#recorder.run(kernel, { x, grid: this.#values.grid(name), y });
    this.#floats.set(name, y);
    return y;
  }

  /** Lets a tensor's memory be reused. */
  release(name: string): void {
    for (const tensors of [this.#codes, this.#floats]) {
      const tensor = tensors.get(name);
      if (tensor !== undefined) this.#recorder.release(tensor);
    }
  }

  /** Records a step. */
  record(step: Step): void {
    if (step.kind === "layer") {
      const layer = this.#codes.has(step.input) ? this.#values.layer(step.layer) : undefined;
      if (layer === undefined) this.#recordFloat(step, step.output);
      else this.#recordLayer(step, layer);
      return;
    }
    const output = step.node.outputs[0]!;
    const spec = this.#codes.has(step.node.inputs[0] ?? "")
      ? averageOf(step.node, this.#shapes)
      : undefined;
    if (spec === undefined) return this.#recordFloat(step, output);
    const elements = spec.kernelHeight * spec.kernelWidth;
    const layer = this.#values.average(step.node, spec.inChannels, elements);
    this.#run(spec, layer, step.node.inputs[0]!, output, {});
  }

  #recordLayer(step: LayerStep, layer: IntegerLayer): void {
    const { layer: node, activation, residual, input, output } = step;
    const rows = rowsAndChannels(this.#shape(input)),
      columns = rowsAndChannels(this.#shape(output));
    const spec = node.opType === "Gemm"
      ? linearSpec(rows.rows, rows.channels, columns.channels)
      : conv2dSpecOf({ shapes: this.#shapes }, node);
    this.#run(spec, layer, input, output, {
      ...(activation && { activation: activationOf(activation) }),
      ...(residual && { residual: residual.input }),
    });
  }

  /** Sums over codes, and what follows them. */
  #run(
    spec: Conv2dSpec,
    layer: IntegerLayer,
    input: string,
    output: string,
    { activation, residual }: {
      readonly activation?: NonNullable<IntegerEpilogue["activation"]>;
      readonly residual?: string;
    },
  ): void {
    const { w, bias, scale, group, zeroPoint, depthwise } = layer;
    const quantizes = this.#values.quantized.has(output);
    const residualCodes = this.#codes.get(residual ?? "");
    const epilogue: IntegerEpilogue = {
      output: quantizes ? "codes" : "float32",
      ...(residual !== undefined && { residual: residualCodes ? "codes" : "float32" }),
      ...(activation && { activation }),
    };
    const kernel = (depthwise ? integerDepthwiseConv2d : integerConv2d)(
      { ...spec, group, zeroPoint },
      epilogue,
      this.#recorder.device.target,
    );
    const x = this.#codes.get(input)!; // record() saw that it is there
    const others = {
      ...(residual !== undefined && { residual: residualCodes ?? this.float(residual) }),
      ...(residualCodes && { residual_grid: this.#values.grid(residual!) }),
      ...(quantizes && { grid: this.#values.grid(output) }),
    };
    const y = quantizes
      ? this.#newCodes(output)
      : this.#recorder.tensor(this.#shape(output), output);
    if (!quantizes) this.#floats.set(output, y);
    this.#recorder.run(kernel, { x, w, bias, scale, ...others, y });
  }

  /** Records a step on float32 tensors. */
  #recordFloat(step: Step, output: string): void {
    const names = step.kind === "node"
      ? step.node.inputs
      : [step.input, ...(step.residual ? [step.residual.input] : [])];
    const computed = names.filter((name) => this.#codes.has(name) || this.#floats.has(name));
    const values = new Map(computed.map((name) => [name, this.float(name)]));
    recordSteps({
      recorder: this.#recorder,
      graph: this.#graph,
      shapes: this.#shapes,
      values,
      parameter: (name) => ({ value: this.#values.parameter(name) }),
      quantizer: () => undefined,
    }, [step]);
    const result = values.get(output)!;
    this.set(output, result);
    // A Reshape shares the memory of its input.
    const shared = step.kind === "node" && step.node.opType === "Reshape";
    if (!shared && this.#codes.has(output)) this.#recorder.release(result);
  }

  #newCodes(name: string): Tensor {
    const y = this.#recorder.tensor([paddedSize(this.#shape(name)) / 4], `codes ${name}`);
    this.#codes.set(name, y);
    return y;
  }

  #shape(name: string): readonly number[] {
    const shape = this.#shapes.get(name);
    if (shape === undefined) throw new TypeError(`Tensor "${name}" has no shape`);
    return shape;
  }
}

/** A product of matrices x [rows, inputs] w [outputs, inputs]^T as a convolution of pixels. */
function linearSpec(rows: number, inChannels: number, outChannels: number): Conv2dSpec {
  return {
    batch: rows,
    inHeight: 1,
    inWidth: 1,
    inChannels,
    outHeight: 1,
    outWidth: 1,
    outChannels,
    kernelHeight: 1,
    kernelWidth: 1,
    strideHeight: 1,
    strideWidth: 1,
    padTop: 0,
    padLeft: 0,
    dilationHeight: 1,
    dilationWidth: 1,
    group: 1,
  };
}

/** The windows of an average pooling that divides by the same number everywhere; undefined for other nodes. */
function averageOf(
  node: Node,
  shapes: ReadonlyMap<string, readonly number[]>,
): Conv2dSpec | undefined {
  const input = shapes.get(node.inputs[0] ?? "") ?? [];
  if (input.length !== 4) return undefined;
  const spec = conv2dSpecOf({ shapes }, node);
  const whole = node.opType === "GlobalAveragePool" ||
    (node.opType === "ReduceMean" && numbersAttribute(node, "axes")?.toSorted().join() === "1,2");
  if (whole) {
    const { inHeight: kernelHeight, inWidth: kernelWidth, inChannels: outChannels } = spec;
    return { ...spec, kernelHeight, kernelWidth, outHeight: 1, outWidth: 1, outChannels };
  }
  if (node.opType !== "AveragePool") return undefined;
  const pads = numbersAttribute(node, "pads") ?? [0, 0, 0, 0];
  const counted = numberAttribute(node, "count_include_pad", 0) !== 0 ? pads : [0, 0, 0, 0];
  const isInside = (out: number, stride: number, kernel: number, size: number, axis: number) =>
    (out - 1) * stride + kernel <= size + counted[axis]! + counted[axis + 2]!;
  const padsCount = counted === pads || pads.every((pad) => pad === 0);
  const uniform = padsCount && spec.dilationHeight === 1 && spec.dilationWidth === 1 &&
    isInside(spec.outHeight, spec.strideHeight, spec.kernelHeight, spec.inHeight, 0) &&
    isInside(spec.outWidth, spec.strideWidth, spec.kernelWidth, spec.inWidth, 1);
  return uniform ? spec : undefined;
}
