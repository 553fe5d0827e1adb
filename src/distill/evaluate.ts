// What the finished student is worth: classes on an evaluation set beside the teacher's, and the error of every layer.
import { sizeOf } from "../core/nd_array.ts";
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import { errorSums } from "../../kernels/mse.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { type ImageSet, type Normalization, normalize } from "../data/image_set.ts";
import { rowsAndChannels } from "../ops/context.ts";
import { fuseLayers } from "../graph/layers.ts";
import type { Student } from "../quant/student.ts";
import type { RowSet } from "./frontier.ts";
import {
  fittingBatch,
  type NetworkValues,
  partBetween,
  recordForward,
  studentValues,
} from "./inference.ts";
import { fakeQuantizeInput } from "./input_quantizer.ts";
import { type Measured, readErrorSums } from "./measure.ts";
import type { Network } from "./network.ts";

/** Inputs in flight while evaluating: on a CPU no more than training takes, so that its kernels serve again. */
const EVALUATION_BATCH = { software: 64, gpu: 256 };

/**
 * The network's outputs for every input of a set.
 *
 * @param device where to run
 * @param network the network
 * @param values the teacher's or the deployed student's
 * @param images inputs
 * @param normalization of the inputs
 * @param onBatch called with the number of inputs done
 * @returns [images, classes] logits, or [images, steps, classes]
 */
export async function predict(
  device: Device,
  network: Network,
  values: NetworkValues,
  images: ImageSet,
  normalization: Normalization,
  onBatch: (done: number) => void = () => {},
): Promise<Float32Array<ArrayBuffer>> {
  const part = partBetween(network.teacher, [network.input], [network.output]);
  const record = (plan: Plan, x: Tensor): Tensor => {
    const input = fakeQuantizeInput(plan, x, values.quantizer(network.input));
    const results = recordForward(plan, part, values, new Map([[network.input, input]]));
    return results.get(network.output)!;
  };
  return await predictWith(device, network, record, images, normalization, onBatch);
}

/**
 * As {@linkcode predict}, with a forward pass of one's own.
 *
 * @param device where to run
 * @param network the network
 * @param record records the forward pass of a batch and returns its logits
 * @param images inputs
 * @param normalization of the inputs
 * @param onBatch called with the number of inputs done
 * @returns [images, classes] logits, or [images, steps, classes]
 */
export async function predictWith(
  device: Device,
  network: Network,
  record: (plan: Plan, x: Tensor) => Tensor,
  images: ImageSet,
  normalization: Normalization,
  onBatch: (done: number) => void = () => {},
): Promise<Float32Array<ArrayBuffer>> {
  const { count } = images;
  const batch = Math.min(count, evaluationBatch(device, network));
  const size = sizeOf(network.teacher.shapes.get(network.output)!.slice(1));
  const rowShape = network.teacher.shapes.get(network.input)!.slice(1);
  const logits = new Float32Array(count * size);
  // One plan for all, the last batch filled up with the last input: another batch size would be compiled anew.
  using plan = new Plan(device);
  const x = plan.tensor([batch, ...rowShape], network.input);
  const output = record(plan, x);
  for (let row = 0; row < count; row += batch) {
    const indices = Uint32Array.from({ length: batch }, (_, i) => Math.min(row + i, count - 1));
    device.upload(x, normalize(images, indices, normalization));
    plan.replay();
    const done = Math.min(row + batch, count);
    const found = await device.read(output);
    logits.set(found.subarray(0, (done - row) * size), row * size);
    onBatch(done);
    await device.breathe();
  }
  return logits;
}

/** Inputs that are evaluated at a time where there are enough of them. */
export function evaluationBatch(device: Device, { teacher }: Network): number {
  return fittingBatch(device, teacher, EVALUATION_BATCH[device.target.family]);
}

/** Largest logit of each row: the first where several are equal. */
export function topClasses(logits: Float32Array, count: number): Uint32Array<ArrayBuffer> {
  const classes = logits.length / count;
  return Uint32Array.from({ length: count }, (_, row) => {
    let best = 0;
    for (let c = 1; c < classes; c++) {
      if (logits[row * classes + c]! > logits[row * classes + best]!) best = c;
    }
    return best;
  });
}

/** Fraction of positions at which two lists of classes agree. */
export function agreement(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let same = 0;
  for (let i = 0; i < a.length; i++) if (a[i] === b[i]) same++;
  return same / a.length;
}

/**
 * Errors of the tensors that end the student's layers: the whole deployed student beside the whole teacher.
 *
 * @param device where to run
 * @param network the network
 * @param teacher the teacher's values
 * @param student the student
 * @param images inputs of the network
 * @param compiling how kernels are compiled ahead; without it they are compiled as they are needed
 * @returns errors by layer (node name): of the tensor that the layer's step gives
 */
export async function measureLayers(
  device: Device,
  network: Network,
  teacher: NetworkValues,
  student: Student,
  images: RowSet,
  compiling?: CompileOptions,
): Promise<Map<string, Measured>> {
  const ends = layerEnds(network);
  const part = partBetween(network.teacher, [network.input], [network.output]);
  using values = studentValues(device, network, student, part);
  const batch = Math.min(images.rows, fittingBatch(device, network.teacher, 64, 1 << 28));
  const sums = new Map(
    Array.from(ends.keys(), (name) => [name, device.tensor([16], { label: `errors ${name}` })]),
  );
  const keep = new Set(ends.values());
  const record = (plan: Plan): Tensor => {
    const x = plan.tensor([batch, ...images.rowShape], network.input);
    const input = fakeQuantizeInput(plan, x, values.quantizer(network.input));
    const targets = recordForward(plan, part, teacher, new Map([[network.input, x]]), keep);
    const outputs = recordForward(plan, part, values, new Map([[network.input, input]]), keep);
    for (const [name, tensor] of ends) {
      const y = outputs.get(tensor)!;
      plan.run(errorSums(rowsAndChannels(y.shape), device.target), {
        y,
        teacher: targets.get(tensor)!,
        sums: sums.get(name)!,
      });
    }
    return x;
  };
  if (compiling) {
    using survey = new KernelSurvey(device);
    record(survey);
    await device.compileAhead(survey.kernels, compiling);
  }
  using plan = new Plan(device);
  const x = record(plan);
  for (let row = 0; row + batch <= images.rows; row += batch) {
    images.copyOut(row, batch, x);
    plan.replay();
  }
  const result = new Map<string, Measured>();
  for (const [name, tensor] of sums) {
    result.set(name, await readErrorSums(device, tensor));
    device.release(tensor);
  }
  return result;
}

/** The tensor that ends each layer's step, quantizer included. */
export function layerEnds(network: Network): Map<string, string> {
  const { graph, shapes } = network.teacher;
  const keep = new Set(network.activationBits.keys());
  const ends = new Map<string, string>();
  for (const step of fuseLayers(graph, keep, shapes)) {
    if (step.kind === "layer") ends.set(step.name, step.output);
  }
  return ends;
}
