// Training of the whole student at once, both networks in one step: the teacher runs forward on the mini-batch, the
// student is pulled towards its tensors, its class probabilities, or labels. Used by `joint`, by `qat` and behind
// `blockwise`.
import { gatherWords, rememberRowLoss } from "../../kernels/gather.ts";
import { errorSums } from "../../kernels/mse.ts";
import { crossEntropy, distillationLoss } from "../../kernels/softmax.ts";
import { batchTable } from "../data/sampler.ts";
import type { Device } from "../gpu/device.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { rowsAndChannels } from "../ops/context.ts";
import type { LearningRates } from "../quant/training_parameters.ts";
import { pickLabels } from "../data/labels.ts";
import { recordAugmentation, transformTable } from "./augmentation.ts";
import { layerEnds } from "./evaluate.ts";
import type { Importance } from "./importance.ts";
import {
  fittingBatch,
  NetworkValues,
  partBetween,
  recordForward,
  studentValues,
} from "./inference.ts";
import { fakeQuantizeInput } from "./input_quantizer.ts";
import { readErrorSums } from "./measure.ts";
import { MiniBatches } from "./mini_batches.ts";
import type { Network } from "./network.ts";
import { copiesFor } from "./presets.ts";
import type { Recipe } from "./recipe.ts";
import type { Session } from "./session.ts";
import { BLOCKWISE, type Stage, stagesFor } from "./stage.ts";
import { batchNormLiveSteps, type LossContext, train } from "./training.ts";
import { partOfActivations } from "./unit_training.ts";

/** What the student is pulled towards. */
export interface NetworkLosses {
  /** Tensors whose squared error to the teacher's, over the teacher's variance, is averaged. */
  readonly tensors?: readonly string[];
  /** Weight of that average, 1 by default. */
  readonly tensorWeight?: number;
  /**
   * By tensor, of each sample: then errors are summed over the channels and tensors, relative to the most important
   * tensor's, and the rounding regulariser of a layer counts as much as its tensor.
   */
  readonly importance?: ReadonlyMap<string, Importance>;
  /** T^2 KL(teacher || student) of the class probabilities. */
  readonly divergence?: { readonly temperature: number; readonly weight: number };
  /** Cross-entropy with the labels of the samples. */
  readonly labels?: { readonly classes: Uint32Array<ArrayBuffer>; readonly weight: number };
}

/** A whole-network training run. */
export interface NetworkTraining {
  readonly stage: string;
  readonly losses: NetworkLosses;
  readonly steps: number;
  readonly rates: LearningRates;
  /** Inputs of a step; by default those of `training`, or else as many as fit. */
  readonly batch?: number;
  /** Quantizers and optimizer; by default stilla's own with the recipe's quantizers. */
  readonly training?: NetworkStep;
}

/** What of a stage matters to a network trained as a whole. */
export type NetworkStep = Pick<
  Stage,
  "activations" | "weightQuantizer" | "activationQuantizer" | "optimization" | "batch"
>;

/**
 * Trains every layer of the student together.
 *
 * @param session the session; its student is improved in place
 * @param training losses, steps and learning rates
 */
export async function trainNetwork(session: Session, training: NetworkTraining): Promise<void> {
  const { device, network, samples, student, recipe } = session;
  const { losses, steps, stage } = training;
  if (steps === 0) return;
  const step = training.training ?? stagesFor([BLOCKWISE], recipe)[0]!;
  const share = partOfActivations(step.activations, steps);
  const most = networkBatch(device, network, samples.clean, session.batch);
  const own = training.training && recipe.batchSize === null ? training.training.batch : most;
  const batch = Math.min(most, training.batch ?? own);
  const { tensors = [], tensorWeight = 1, divergence, labels } = losses;
  const { importance } = losses;
  const weights = importance
    ? importanceWeights(session, importance)
    : await targetWeights(session, tensors, tensorWeight);
  const table = batchTable(samples.clean, batch, steps, recipe.seed + 1);
  using batches = new MiniBatches(device, table, batch);
  const transforms = device.uint32(transformTable(recipe.augment, table.length, recipe.seed), {
    label: "transforms",
  });
  const black = device.fromArray([samples.black.length], samples.black, { label: "black" });
  const words = device.uint32(
    labels ? pickLabels(labels.classes, samples.clean, table) : new Uint32Array(4),
    { label: "labels" },
  );
  const state = student.activations.get(network.input);
  using inputQuantizer = new NetworkValues(
    device,
    new Map(),
    new Map(state ? [[network.input, state]] : []),
  );
  const teacherPart = partBetween(network.teacher, [network.input], [network.output]);
  const keep = new Set(tensors);
  let targets = new Map<string, Tensor>();
  const importances = new Map<string, Tensor>();
  let labelBatch: Tensor | undefined;
  const terms = tensors.length + (divergence ? 1 : 0) + (labels ? 1 : 0);
  await train({
    device,
    student,
    part: partBetween(network.trained, [network.input], [network.output]),
    layers: [...student.layers.keys()],
    constants: session.teacher,
    steps,
    batch,
    rates: training.rates,
    seed: recipe.seed,
    weightQuantizer: step.weightQuantizer,
    activationQuantizer: step.activationQuantizer,
    optimization: step.optimization,
    ...(share !== undefined && { quantizedShare: share }),
    ...(importance && { roundingWeights: roundingWeights(network, importance) }),
    tileStorage: recipe.tileStorage,
    batchNormLiveSteps: batchNormLiveSteps(recipe, steps),
    keep,
    terms,
    onStep: (done, loss) => session.report({ stage, done, total: steps, loss }),
    signal: session.signal,
    compiling: session.compiling,
    inputs: (plan, trainingState) => {
      const gathered = samples.train.recordGather(plan, batches, trainingState, network.input);
      const tables = { transforms, black, state: trainingState };
      const x = augments(recipe, gathered.shape)
        ? recordAugmentation(plan, gathered, tables, steps)
        : gathered;
      if (tensors.length > 0 || divergence) {
        const inputs = new Map([[network.input, x]]);
        targets = recordForward(plan, teacherPart, session.teacher, inputs, keep);
      }
      for (const [name, { rows }] of importance ?? []) {
        const label = `importance of ${name}`;
        importances.set(name, rows.recordGather(plan, batches, trainingState, label));
      }
      if (labels) {
        const size = batch * labels.classes.length / samples.clean;
        labelBatch = plan.tensor([size], "labels of the batch");
        plan.run(gatherWords({ batch: size, steps }), {
          words,
          state: trainingState,
          y: labelBatch,
        });
      }
      const quantizer = inputQuantizer.quantizer(network.input);
      return new Map([[network.input, fakeQuantizeInput(plan, x, quantizer)]]);
    },
    tensorErrors: () =>
      new Map(tensors.map((name, term) => {
        const error = { teacher: targets.get(name)!, weight: weights.get(name)!, term };
        const importance = importances.get(name);
        return [name, importance ? { ...error, importance } : error];
      })),
    ...((divergence || labels) && {
      recordLosses: (context: LossContext) => {
        const logits = context.values.get(network.output)!;
        const { rows, channels: classes } = rowsAndChannels(logits.shape);
        let term = tensors.length;
        if (divergence) {
          const kernel = distillationLoss({ rows, classes, ...divergence });
          const teacher = targets.get(network.output)!;
          recordRowLoss(
            context,
            logits,
            rows,
            { terms, term: term++ },
            (loss, dlogits) => context.plan.run(kernel, { teacher, logits, loss, dlogits }),
          );
        }
        if (labels && labelBatch) {
          const kernel = crossEntropy({ rows, classes, weight: labels.weight });
          const bound = { logits, labels: labelBatch };
          recordRowLoss(
            context,
            logits,
            rows,
            { terms, term },
            (loss, dlogits) => context.plan.run(kernel, { ...bound, loss, dlogits }),
          );
        }
      },
    }),
  });
  for (const tensor of [transforms, black, words, ...weights.values()]) {
    device.release(tensor);
  }
}

/**
 * Inputs of a step of whole-network training: both networks' activations are alive at once, and the student's gradients.
 *
 * @param device whose limits count
 * @param network the network
 * @param clean samples there are
 * @param batch upper bound
 * @returns at least 1
 */
export function networkBatch(
  device: Pick<Device, "maxTensorBytes">,
  network: Network,
  clean: number,
  batch: number,
): number {
  return Math.min(clean, fittingBatch(device, network.trained, batch, 2 ** 29));
}

/**
 * T^2 KL of the student's class probabilities from the teacher's on held-out samples.
 *
 * @param session the session
 * @param temperature T
 * @returns mean over the held-out samples, or 0 when there are none
 */
export async function heldOutDivergence(session: Session, temperature: number): Promise<number> {
  const { device, network, student, samples } = session;
  const { heldOut } = samples;
  const part = partBetween(network.teacher, [network.input], [network.output]);
  using values = studentValues(device, network, student, part);
  const batch = Math.min(heldOut.rows, session.batch);
  let sum = 0, rows = 0;
  for (let first = 0; first + batch <= heldOut.rows && batch > 0; first += batch) {
    using plan = new Plan(device);
    const x = plan.tensor([batch, ...heldOut.rowShape], network.input);
    heldOut.copyOut(first, batch, x);
    const input = fakeQuantizeInput(plan, x, values.quantizer(network.input));
    const teacher = recordForward(plan, part, session.teacher, new Map([[network.input, x]]))
      .get(network.output)!;
    const logits = recordForward(plan, part, values, new Map([[network.input, input]]))
      .get(network.output)!;
    const { rows: count, channels: classes } = rowsAndChannels(logits.shape);
    const loss = plan.tensor([count, 1], "divergence");
    const dlogits = plan.tensor(logits.shape, "unused gradient");
    plan.run(distillationLoss({ rows: count, classes, temperature }), {
      teacher,
      logits,
      loss,
      dlogits,
    });
    plan.replay();
    for (const value of await device.read(loss)) sum += value;
    rows += count;
  }
  return rows === 0 ? 0 : sum / rows;
}

/**
 * Records a loss with one value a row, and keeps the rows' mean in the loss history.
 *
 * @param context the step
 * @param logits what the loss is of
 * @param rows of the logits
 * @param place in the history
 * @param record records the kernel that gives the rows' losses and the gradient of their mean
 */
export function recordRowLoss(
  { plan, tape, state, losses, steps }: LossContext,
  logits: Tensor,
  rows: number,
  place: { readonly terms: number; readonly term: number },
  record: (loss: Tensor, dlogits: Tensor) => void,
): void {
  const loss = plan.tensor([rows, 1], "loss of the rows");
  tape.give(logits, (dlogits) => record(loss, dlogits));
  plan.run(rememberRowLoss({ rows, historySize: steps, ...place }), { loss, state, losses });
  plan.release(loss);
}

/** Whether samples are shifted and mirrored anew in every step. */
function augments(recipe: Recipe, shape: readonly number[]): boolean {
  const { shift, flip } = recipe.augment;
  return copiesFor(recipe, shape) > 1 && (shift > 0 || flip);
}

/** channels / largest mean importance, by tensor (sample layer attention of Sony's Model Compression Toolkit). */
function importanceWeights(
  { device, network }: Session,
  importance: ReadonlyMap<string, Importance>,
): Map<string, Tensor> {
  const largest = largestMean(importance);
  return new Map(Array.from(importance.keys(), (name) => {
    const { channels } = rowsAndChannels(network.teacher.shapes.get(name)!);
    const value = channels / largest;
    return [name, device.fromArray([1], [value], { label: `weight of ${name}` })];
  }));
}

/** Mean importance of the tensor that a layer ends with, over the largest, by node name. */
function roundingWeights(
  network: Network,
  importance: ReadonlyMap<string, Importance>,
): Map<string, number> {
  const largest = largestMean(importance);
  return new Map(Array.from(layerEnds(network), ([layer, tensor]) => {
    const { mean = largest } = importance.get(tensor) ?? {};
    return [layer, mean / largest];
  }));
}

function largestMean(importance: ReadonlyMap<string, Importance>): number {
  return Math.max(...Array.from(importance.values(), ({ mean }) => mean)) || 1;
}

/** weight / (number of tensors * variance of the teacher's tensor), by tensor. */
async function targetWeights(
  { device, network, samples, teacher, batch }: Session,
  tensors: readonly string[],
  weight: number,
): Promise<Map<string, Tensor>> {
  const result = new Map<string, Tensor>();
  if (tensors.length === 0) return result;
  const part = partBetween(network.teacher, [network.input], [network.output]);
  const count = Math.min(batch, samples.clean);
  using plan = new Plan(device);
  const x = plan.tensor([count, ...samples.train.rowShape], network.input);
  samples.train.copyOut(0, count, x);
  const inputs = new Map([[network.input, x]]);
  const values = recordForward(plan, part, teacher, inputs, new Set(tensors));
  const sums = tensors.map((name) => {
    const y = values.get(name)!;
    const tensor = device.tensor([16], { label: `sums of ${name}` });
    plan.run(errorSums(rowsAndChannels(y.shape), device.target), { y, teacher: y, sums: tensor });
    return tensor;
  });
  plan.replay();
  for (const [i, name] of tensors.entries()) {
    const { targetVariance } = await readErrorSums(device, sums[i]!);
    const value = weight / (tensors.length * (targetVariance + 1e-8));
    result.set(name, device.fromArray([1], [value], { label: `weight of ${name}` }));
    device.release(sums[i]!);
  }
  return result;
}
