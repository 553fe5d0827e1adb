// Convolutions and their gradients at batch 64: the shapes of ResNet-20 with its 1x1 shortcuts, and depthwise ones.
import {
  conv2dBackwardInput,
  conv2dBackwardWeight,
  conv2dForward,
  type Conv2dSpec,
} from "../../../kernels/conv2d.ts";
import {
  depthwiseConv2dBackwardInput,
  depthwiseConv2dBackwardWeight,
  depthwiseConv2dForward,
} from "../../../kernels/depthwise_conv2d.ts";
import type { KernelSequence, Target } from "../../../kernels/kernel.ts";
import { Rng } from "../../../src/core/rng.ts";
import type { Device } from "../../../src/gpu/device.ts";
import { Plan } from "../../../src/gpu/plan.ts";
import type { Tensor } from "../../../src/gpu/tensor.ts";
import { checkElements, deviceTimes, gigaRates, type Row, row } from "../../harness.ts";
import type { Ceilings } from "./ceilings.ts";
import {
  inputGradientAt,
  outputAt,
  outSizeOf,
  type SquareConvolution,
  weightGradientAt,
} from "./convolution_sums.ts";

/** Elements checked of each result, drawn at random. */
const CHECKED = 64;

const FULL = { batch: 64, kernel: 3, depthwise: false };
const POINTWISE = { batch: 64, kernel: 1, depthwise: false };
const DEPTHWISE = { batch: 64, kernel: 3, depthwise: true };

const SHAPES: readonly SquareConvolution[] = [
  { inChannels: 3, outChannels: 16, size: 32, stride: 1, ...FULL },
  { inChannels: 16, outChannels: 16, size: 32, stride: 1, ...FULL },
  { inChannels: 16, outChannels: 32, size: 32, stride: 2, ...FULL },
  { inChannels: 32, outChannels: 32, size: 16, stride: 1, ...FULL },
  { inChannels: 32, outChannels: 64, size: 16, stride: 2, ...FULL },
  { inChannels: 64, outChannels: 64, size: 8, stride: 1, ...FULL },
  { inChannels: 16, outChannels: 32, size: 32, stride: 2, ...POINTWISE },
  { inChannels: 32, outChannels: 64, size: 16, stride: 2, ...POINTWISE },
  { inChannels: 64, outChannels: 64, size: 16, stride: 1, ...POINTWISE },
  { inChannels: 64, outChannels: 64, size: 16, stride: 1, ...DEPTHWISE },
  { inChannels: 64, outChannels: 64, size: 16, stride: 2, ...DEPTHWISE },
];

/** Operands and results: x and dx, w and dw, y and dy have the same shapes. */
type Tensors = Readonly<Record<"x" | "w" | "y" | "dx" | "dw" | "dy", Tensor>>;

/**
 * Measures the forward pass and both gradients of every shape.
 *
 * @param device the adapter
 * @param samples timings of each
 * @param ceilings of the adapter
 */
export async function* measureConvolutions(
  device: Device,
  samples: number,
  { gigaflops }: Ceilings,
): AsyncGenerator<Row> {
  for (const shape of SHAPES) {
    const tensors = makeTensors(device, shape);
    for (const { name, sequence, bindings } of passesOf(shape, tensors, device.target)) {
      using plan = new Plan(device);
      plan.run(sequence, bindings);
      plan.replay();
      await check(device, shape, tensors, name);
      const times = await deviceTimes(device, samples, plan.commands);
      yield row(
        { case: `${labelOf(shape)} ${name === "y" ? "forward" : name}`, metric: "rate" },
        "GFLOP/s",
        gigaRates(operationsOf(shape), times),
        { ceiling: gigaflops },
      );
    }
    for (const tensor of Object.values(tensors)) device.release(tensor);
  }
}

/** One of the three passes; `name` is that of its result. */
interface Pass {
  readonly name: "y" | "dx" | "dw";
  readonly sequence: KernelSequence;
  readonly bindings: Readonly<Record<string, Tensor>>;
}

function passesOf(shape: SquareConvolution, tensors: Tensors, target: Target): Pass[] {
  const spec = specOf(shape);
  const { x, w, y, dx, dw, dy } = tensors;
  const [forward, backwardInput, backwardWeight] = shape.depthwise
    ? [
      depthwiseConv2dForward(spec, {}, target),
      depthwiseConv2dBackwardInput(spec, target),
      depthwiseConv2dBackwardWeight(spec, target),
    ]
    : [
      conv2dForward(spec, {}, target),
      conv2dBackwardInput(spec, target),
      conv2dBackwardWeight(spec, target),
    ];
  return [
    { name: "y", sequence: forward, bindings: { x, w, y } },
    { name: "dx", sequence: backwardInput, bindings: { dy, w, dx } },
    { name: "dw", sequence: backwardWeight, bindings: { x, dy, dw } },
  ];
}

function makeTensors(device: Device, shape: SquareConvolution): Tensors {
  const { batch, inChannels, outChannels, size, kernel, depthwise } = shape;
  const out = outSizeOf(shape);
  const rng = new Rng(1);
  const random = (sizes: readonly number[]) => {
    const length = sizes.reduce((product, n) => product * n, 1);
    return device.fromArray(sizes, Float32Array.from({ length }, () => rng.normal()));
  };
  const input = [batch, size, size, inChannels];
  const output = [batch, out, out, outChannels];
  const weight = depthwise
    ? [kernel, kernel, inChannels]
    : [outChannels, kernel, kernel, inChannels];
  return {
    x: random(input),
    w: random(weight),
    dy: random(output),
    y: device.tensor(output),
    dx: device.tensor(input),
    dw: device.tensor(weight),
  };
}

async function check(
  device: Device,
  shape: SquareConvolution,
  tensors: Tensors,
  name: Pass["name"],
): Promise<void> {
  const found = await device.read(tensors[name]);
  const x = await device.read(tensors.x);
  const w = await device.read(tensors.w);
  const dy = await device.read(tensors.dy);
  const at = (index: number) =>
    name === "y"
      ? outputAt(shape, x, w, index)
      : name === "dx"
      ? inputGradientAt(shape, w, dy, index)
      : weightGradientAt(shape, x, dy, index);
  const rng = new Rng(2);
  const expected = Array.from({ length: CHECKED }, () => {
    const index = rng.integer(found.length);
    return [index, at(index)] as [number, number];
  });
  // float32 sums of products of unit variance, up to 65,536 in dw and 576 in the others
  checkElements(`${labelOf(shape)} ${name}`, found, expected, name === "dw" ? 2e-2 : 1e-3);
}

function specOf(shape: SquareConvolution): Conv2dSpec {
  const { batch, inChannels, outChannels, size, kernel, stride, depthwise } = shape;
  const out = outSizeOf(shape), pad = (kernel - 1) / 2;
  return {
    batch,
    inHeight: size,
    inWidth: size,
    inChannels,
    outHeight: out,
    outWidth: out,
    outChannels,
    kernelHeight: kernel,
    kernelWidth: kernel,
    strideHeight: stride,
    strideWidth: stride,
    padTop: pad,
    padLeft: pad,
    dilationHeight: 1,
    dilationWidth: 1,
    group: depthwise ? inChannels : 1,
  };
}

/** Multiplications and additions of a pass, as if there were no padding. */
function operationsOf(shape: SquareConvolution): number {
  const { batch, inChannels, outChannels, kernel, depthwise } = shape;
  const products = kernel * kernel * (depthwise ? 1 : inChannels);
  return 2 * batch * outSizeOf(shape) ** 2 * outChannels * products;
}

function labelOf(shape: SquareConvolution): string {
  const { inChannels, outChannels, size, kernel, stride, depthwise } = shape;
  const kind = depthwise ? "depthwise" : "conv";
  return `${kind} ${kernel}x${kernel} ${inChannels}->${outChannels} ${size}x${size} /${stride}`;
}
