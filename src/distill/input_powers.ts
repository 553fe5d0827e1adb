// E[x^2] of each input channel of the layers: the diagonal of X^T X / rows, by which the error of a weight changes its
// layer's output, with all taps of a channel alike (they see the same pixels but for the border).
import { accumulate } from "../../kernels/elementwise.ts";
import { read } from "../../kernels/flat_kernel.ts";
import { sumRows } from "../../kernels/reduction.ts";
import type { Device } from "../gpu/device.ts";
import { rowsAndChannels } from "../ops/context.ts";
import type { RowSet } from "./frontier.ts";
import type { NetworkValues } from "./inference.ts";
import type { Network } from "./network.ts";
import { layerInputs } from "./observe_inputs.ts";
import { type PassOptions, TeacherPass, type TensorObserver } from "./teacher_pass.ts";

/** [C]: E[x^2] of each channel, by tensor name. */
export type InputPowers = ReadonlyMap<string, Float64Array>;

/** Part of the mean of a layer that every weight counts at least, as in GPTQ: inputs may be 0 by chance. */
const DAMPING = 0.01;

/**
 * Measures the inputs of the layers.
 *
 * @param device where to run
 * @param network the network
 * @param values the teacher's values
 * @param images the network's inputs
 * @param options which inputs
 * @returns mean squares by tensor
 */
export async function inputPowers(
  device: Device,
  network: Network,
  values: NetworkValues,
  images: RowSet,
  options: PassOptions,
): Promise<InputPowers> {
  const tensors = layerInputs(network);
  const shapes = tensors.map((name) => rowsAndChannels(network.teacher.shapes.get(name)!));
  const sums = shapes.map(({ channels }, i) =>
    device.tensor([channels], { label: `power ${tensors[i]}` })
  );
  const observe: TensorObserver = (plan, x, i) => {
    const { rows, channels } = rowsAndChannels(x.shape);
    const y = plan.tensor([channels], `power ${tensors[i]} of the batch`);
    const spec = {
      label: `mean_square ${rows}x${channels}`,
      rows,
      channels,
      axes: "leading",
      bindings: [read("x")],
      value: "x[i] * x[i]",
      output: "y",
      factor: 1 / rows,
    } as const;
    plan.run(sumRows(spec, device.target), { x, y });
    plan.run(accumulate([channels]), { x: y, y: sums[i]! });
    plan.release(y);
  };
  const pass = new TeacherPass(device, network, values, images, tensors, options);
  await pass.compileAhead([observe]);
  const batches = await pass.run(observe);
  const result = new Map<string, Float64Array>();
  for (const [i, name] of tensors.entries()) {
    result.set(name, Float64Array.from(await device.read(sums[i]!), (sum) => sum / batches));
    device.release(sums[i]!);
  }
  return result;
}

/**
 * How much the error of each weight counts.
 *
 * @param shape of the weights, channels last: [O, ..., C / group] or depthwise [KH, KW, C]
 * @param axis axis of the output channels
 * @param power [C] of the layer's input
 * @returns one number a weight
 */
export function weightImportance(
  shape: readonly number[],
  axis: number,
  power: Float64Array,
): Float64Array<ArrayBuffer> {
  const mean = power.reduce((sum, value) => sum + value, 0) / power.length;
  // A layer that only ever sees zeros has no preference.
  const damped = power.map((value) => mean > 0 ? value + DAMPING * mean : 1);
  const size = shape.reduce((product, n) => product * n, 1);
  const depth = shape.at(-1)!;
  if (axis !== 0) return Float64Array.from({ length: size }, (_, i) => damped[i % depth]!);
  const channelsPerGroup = shape[0]! * depth / power.length, row = size / shape[0]!;
  return Float64Array.from({ length: size }, (_, i) => {
    const group = Math.floor(Math.floor(i / row) / channelsPerGroup);
    return damped[group * depth + i % depth]!;
  });
}
