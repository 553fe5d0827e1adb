// A layer: convolution, Gemm or LSTM with what follows it (batch norm or bias, residual, activation, fake quantization).
// Everything after a multiplication is fused into its epilogue, which keeps the pre-activation for a tape; only a live
// batch norm has to see the whole result first. An LSTM ends by itself, too.
import {
  conv2dBackwardInput,
  conv2dBackwardWeight,
  conv2dForward,
  type Conv2dSpec,
} from "../../kernels/conv2d.ts";
import {
  depthwiseConv2dBackwardInput,
  depthwiseConv2dBackwardWeight,
  depthwiseConv2dForward,
} from "../../kernels/depthwise_conv2d.ts";
import type { Epilogue } from "../../kernels/epilogue.ts";
import { gemm } from "../../kernels/gemm.ts";
import type { KernelSequence, Target } from "../../kernels/kernel.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { numberAttribute, numbersAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import type { LayerStep } from "../graph/layers.ts";
import { activationOf } from "./activation.ts";
import {
  inputOf,
  type LiveBatchNorm,
  type OpContext,
  rowsAndChannels,
  shapeOf,
  type SquaredError,
  standsAlone,
  type Trainable,
  valueOf,
} from "./context.ts";
import { recordDynamicQuantize } from "./dynamic_quantize.ts";
import { recordFakeQuantize } from "./fake_quantize.ts";
import { recordLstm } from "./lstm.ts";
import {
  type PointwiseEnd,
  type PointwiseOrigin,
  pushPointwise,
  recordPointwise,
  recordSquaredError,
} from "./pointwise.ts";

/** The multiplication of a layer with its two gradients. */
interface Linear {
  forward(epilogue: Epilogue): KernelSequence;
  backwardInput(): KernelSequence;
  backwardWeight(): KernelSequence;
}

/**
 * Records a layer and puts its result into the context's values, or its error into the loss.
 *
 * @param context where to record
 * @param step the fused layer
 */
export function recordLayer(context: OpContext, step: LayerStep): void {
  const { recorder } = context;
  const { layer, batchNorm, residual, activation, output } = step;
  const live = batchNorm && context.batchNorm?.(batchNorm.name);
  if (batchNorm && !live) {
    throw new TypeError(`Batch norm "${batchNorm.name}" must be folded before it is executed`);
  }
  const quantizer = context.quantizer(output);
  const alone = standsAlone(quantizer);
  const input = inputOf(context, layer, 0);
  const isDynamic = context.dynamicLayers?.has(layer.name) ?? false;
  const x = isDynamic ? recordDynamicQuantize(recorder, input) : input;
  const weight = context.parameter(layer.inputs[1] ?? "");
  const biasName = layer.inputs[2] ?? "";
  const bias = biasName === "" ? undefined : context.parameter(biasName);
  const end = {
    activation: activation && activationOf(activation),
    quantizer: alone ? undefined : quantizer ?? context.passThrough,
  };
  const error = context.squaredErrors?.get(output);
  if (layer.opType === "LSTM") {
    const z = recordLstm(context, layer, x, { weight, bias, quantizesStates: isDynamic });
    recordEnd(context, z, end, { residual: undefined, label: output }, error);
  } else {
    const parts: LayerParts = {
      name: layer.name,
      output,
      shape: shapeOf(context, output),
      linear: linearOf(context, layer, recorder.device.target),
      x,
      weight,
      residual: residual && valueOf(context, residual.input),
      end,
      error,
    };
    if (live) recordNormalized(context, parts, live);
    else recordFused(context, parts, bias);
  }
  if (x !== input) recorder.release(x);
  if (!alone) return;
  const value = valueOf(context, output);
  context.values.set(output, recordFakeQuantize(context, value, quantizer, output));
  if (!context.tape) recorder.release(value);
}

/** A layer, taken apart. */
interface LayerParts {
  /** Of its node. */
  readonly name: string;
  readonly output: string;
  /** Of the output. */
  readonly shape: readonly number[];
  readonly linear: Linear;
  readonly x: Tensor;
  readonly weight: Trainable;
  readonly residual: Tensor | undefined;
  readonly end: Pick<PointwiseEnd, "activation" | "quantizer">;
  /** The loss, where nothing else reads the output. */
  readonly error: SquaredError | undefined;
}

/** A live batch norm needs the statistics of the whole result before it can go on. */
function recordNormalized(
  context: OpContext,
  { name, output, shape, linear, x, weight, residual, end, error }: LayerParts,
  batchNorm: LiveBatchNorm,
): void {
  const { recorder } = context;
  const z = recorder.tensor(shape, name);
  recorder.run(linear.forward({}), { x, w: weight.value, y: z });
  pushLinear(context, linear, x, weight, z);
  recordEnd(context, z, { ...end, batchNorm, residual }, { residual, label: output }, error);
}

/** What follows a result that was made by itself: a pass of its own, or the loss. */
function recordEnd(
  context: OpContext,
  z: Tensor,
  end: PointwiseEnd,
  origin: PointwiseOrigin,
  error: SquaredError | undefined,
): void {
  if (error) recordSquaredError(context, z, end, origin, error);
  else context.values.set(origin.label, recordPointwise(context, z, end, origin.label));
}

/** Everything happens in the epilogue. */
function recordFused(
  context: OpContext,
  { name, output, shape, linear, x, weight, residual, end, error }: LayerParts,
  bias: Trainable | undefined,
): void {
  const { recorder, tape } = context;
  const { activation, quantizer } = end;
  const sum: Epilogue = { bias: bias !== undefined, residual: residual !== undefined };
  const summands = {
    x,
    w: weight.value,
    ...(bias && { bias: bias.value }),
    ...(residual && { residual }),
  };
  const origin = { residual, bias, label: output };
  if (error) {
    const z = recorder.tensor(shape, name);
    recorder.run(linear.forward(sum), { ...summands, y: z });
    pushLinear(context, linear, x, weight, z);
    recordSquaredError(context, z, end, origin, error);
    return;
  }
  const y = recorder.tensor(shape, output);
  const hasEnd = bias || residual || activation || quantizer;
  const z = tape && hasEnd ? recorder.tensor(shape, name) : y;
  const epilogue: Epilogue = {
    ...sum,
    keepsPreActivation: z !== y,
    ...(activation && { activation }),
    ...(quantizer && { fakeQuantize: true }),
  };
  recorder.run(linear.forward(epilogue), {
    ...summands,
    ...(quantizer && { qparams: quantizer.qparams }),
    ...(z !== y && { z }),
    y,
  });
  pushLinear(context, linear, x, weight, z);
  if (z !== y) pushPointwise(context, z, y, end, origin);
  context.values.set(output, y);
}

/** Puts the derivative of a multiplication on the tape, where there is one. */
function pushLinear(
  { recorder, tape }: OpContext,
  linear: Linear,
  x: Tensor,
  weight: Trainable,
  y: Tensor,
): void {
  const trains = weight.gradient !== undefined;
  tape?.push([x], y, (dy) => {
    if (weight.gradient) {
      recorder.run(linear.backwardWeight(), { x, dy, dw: weight.gradient });
    }
    tape.give(x, (dx) => recorder.run(linear.backwardInput(), { dy, w: weight.value, dx }));
  }, trains);
}

function linearOf(context: OpContext, layer: Node, target: Target): Linear {
  const input = shapeOf(context, layer.inputs[0] ?? "");
  const output = shapeOf(context, layer.outputs[0] ?? "");
  const { tileStorage } = context;
  if (layer.opType === "Gemm") return gemmLinear(input, output, target, tileStorage);
  const spec = conv2dSpecOf(context, layer);
  if (spec.group > 1 && spec.group === spec.inChannels && spec.group === spec.outChannels) {
    return {
      forward: (epilogue) => depthwiseConv2dForward(spec, epilogue, target),
      backwardInput: () => depthwiseConv2dBackwardInput(spec, target),
      backwardWeight: () => depthwiseConv2dBackwardWeight(spec, target),
    };
  }
  return {
    forward: (epilogue) => conv2dForward({ ...spec, tileStorage }, epilogue, target),
    backwardInput: () => conv2dBackwardInput(spec, target),
    backwardWeight: () => conv2dBackwardWeight(spec, target),
  };
}

/** y [rows, O] = x [rows, I] w [O, I]^T; dx = dy w; dw = dy^T x. The GEMM kernels call their operands a and b. */
function gemmLinear(
  input: readonly number[],
  output: readonly number[],
  target: Target,
  tileStorage: OpContext["tileStorage"],
): Linear {
  const { rows, channels: inputs } = rowsAndChannels(input);
  const { channels: outputs } = rowsAndChannels(output);
  const product = (
    m: number,
    n: number,
    k: number,
    [transposeA, transposeB]: readonly [boolean, boolean],
    names: Readonly<Record<"a" | "b" | "y", string>>,
    end: { epilogue?: Epilogue; tileStorage?: OpContext["tileStorage"] } = {},
  ) => {
    const spec = { m, n, k, transposeA, transposeB, tileStorage: end.tileStorage };
    return renameBindings(gemm(spec, end.epilogue ?? {}, target), names);
  };
  return {
    forward: (epilogue) =>
      product(rows, outputs, inputs, [false, true], { a: "x", b: "w", y: "y" }, {
        epilogue,
        tileStorage,
      }),
    backwardInput: () =>
      product(rows, inputs, outputs, [false, false], { a: "dy", b: "w", y: "dx" }),
    backwardWeight: () =>
      product(outputs, inputs, rows, [true, false], { a: "dy", b: "x", y: "dw" }),
  };
}

/** The same kernels under other binding names; WGSL identifies bindings by position. */
function renameBindings(
  sequence: KernelSequence,
  names: Readonly<Record<string, string>>,
): KernelSequence {
  const kernels = sequence.kernels.map((kernel) => ({
    ...kernel,
    bindings: kernel.bindings.map(({ name, access }) => ({ name: names[name] ?? name, access })),
  }));
  return { kernels, temporaries: sequence.temporaries };
}

/** The convolution that a channels-last Conv node describes. */
export function conv2dSpecOf(context: Pick<OpContext, "shapes">, layer: Node): Conv2dSpec {
  const [batch = 1, inHeight = 1, inWidth = 1, inChannels = 1] = asImage(
    shapeOf(context, layer.inputs[0] ?? ""),
  );
  const [, outHeight = 1, outWidth = 1, outChannels = 1] = asImage(
    shapeOf(context, layer.outputs[0] ?? ""),
  );
  const [kernelHeight = 1, kernelWidth = 1] = numbersAttribute(layer, "kernel_shape") ?? [];
  const [strideHeight = 1, strideWidth = 1] = numbersAttribute(layer, "strides") ?? [];
  const [dilationHeight = 1, dilationWidth = 1] = numbersAttribute(layer, "dilations") ?? [];
  const [padTop = 0, padLeft = 0] = numbersAttribute(layer, "pads") ?? [];
  return {
    batch,
    inHeight,
    inWidth,
    inChannels,
    outHeight,
    outWidth,
    outChannels,
    kernelHeight,
    kernelWidth,
    strideHeight,
    strideWidth,
    padTop,
    padLeft,
    dilationHeight,
    dilationWidth,
    group: numberAttribute(layer, "group", 1),
  };
}

/** [N, C] as [N, 1, 1, C]. */
function asImage(shape: readonly number[]): readonly number[] {
  return shape.length === 2 ? [shape[0]!, 1, 1, shape[1]!] : shape;
}
