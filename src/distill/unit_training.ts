// Training of one unit: a mini-batch of its inputs, the error of its output against the teacher's, as the stage says.
import { mixTensors } from "../../kernels/mix.ts";
import { chooseNearest } from "../../kernels/choose_nearest.ts";
import { batchTable } from "../data/sampler.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { Block } from "../graph/blocks.ts";
import { rowsAndChannels } from "../ops/context.ts";
import type { PartialQuantization } from "../quant/activation_parameters.ts";
import type { EarlyStop } from "./early_stop.ts";
import type { Frontiers } from "./block_loop.ts";
import type { Frontier, RowSet } from "./frontier.ts";
import type { Importance } from "./importance.ts";
import { NetworkValues, partBetween } from "./inference.ts";
import { fakeQuantizeInput } from "./input_quantizer.ts";
import { compareRows } from "./measure.ts";
import { MiniBatches } from "./mini_batches.ts";
import { shapesForBatch } from "./network.ts";
import type { Session } from "./session.ts";
import { type ActivationMode, learningRates, type Stage } from "./stage.ts";
import {
  batchNormLiveSteps,
  stepKernels,
  type TensorError,
  train,
  type TrainingRun,
} from "./training.ts";

/** Streams of random choices: those of dropped activations count from 1. */
const MIX_STREAM = 0x100;
/** Probability of the student's element in mixed inputs, and of quantizing an element of a dropped activation (QDrop). */
const HALF = 0.5;

/** A stage for one unit. */
export interface UnitTraining extends Stage {
  readonly seed: number;
  /** What squared errors are weighted with, if the loss says so. */
  readonly importance?: Importance | undefined;
  readonly onStep: (done: number, loss: number) => void;
  /** May end the training. */
  readonly watch?: EarlyStop | undefined;
}

/** Node names of the unit's layers that train. */
export function layersOf({ student }: Pick<Session, "student">, unit: Block): string[] {
  return unit.nodes.map((node) => node.name).filter((name) => student.layers.has(name));
}

/**
 * Has the kernels of all units compiled, whose mini-batches need not exist for that.
 *
 * @param session the session
 * @param units all of them
 * @param stage how they will train
 */
export async function compileUnits(
  session: Session,
  units: readonly Block[],
  stage: Stage,
): Promise<void> {
  if (stage.steps === 0) return;
  const { device, network, compiling } = session;
  const kernels = units.filter((unit) => layersOf(session, unit).length > 0).flatMap((unit) => {
    const run = runOf(session, unit, stage, 0);
    const shapes = shapesForBatch(network.teacher, run.batch);
    const output = unit.outputs[0]!;
    const tensor = (plan: Plan, name: string) => plan.tensor(shapes.get(name)!, name);
    let teacher: Tensor | undefined;
    return stepKernels({
      ...run,
      inputs: (plan) => {
        teacher = tensor(plan, output);
        return new Map(unit.inputs.map((name) => [name, tensor(plan, name)]));
      },
      tensorErrors: () =>
        new Map([[output, errorOf(stage, { teacher: teacher!, weight: teacher!, term: 0 })]]),
    });
  });
  await device.compileAhead(kernels, compiling);
}

/**
 * Trains a unit of the student.
 *
 * @param session the session; its student is improved in place
 * @param unit the unit
 * @param frontiers its inputs
 * @param targets the teacher's outputs
 * @param training how
 */
export async function trainUnit(
  session: Session,
  unit: Block,
  frontiers: Frontiers,
  targets: Frontier,
  training: UnitTraining,
): Promise<void> {
  const { device, samples } = session;
  const { steps, seed, onStep, importance, watch } = training;
  const run = runOf(session, unit, training, seed);
  if (run.layers.length === 0 || steps === 0) return;
  const output = unit.outputs[0]!;
  const target = targets.get(output)!;
  const scale = await lossScale(session, training, target) / (importance?.mean || 1);
  const weight = device.fromArray([1], [scale], { label: "loss weight" });
  const table = batchTable(samples.train.rows, run.batch, steps, seed);
  using batches = new MiniBatches(device, table, run.batch);
  using inputGrids = inputQuantizers(session, unit);
  let targetBatch: Tensor | undefined, importanceBatch: Tensor | undefined;
  await train({
    ...run,
    onStep,
    watch,
    inputs: (plan, state) => {
      targetBatch = target.recordGather(plan, batches, state, `target ${output}`);
      importanceBatch = importance?.rows.recordGather(plan, batches, state, "importance");
      const gather = (from: Frontier, name: string) =>
        from.get(name)!.recordGather(plan, batches, state, name);
      const student = (name: string) => gather(frontiers.student, name);
      const teacher = (name: string) => gather(frontiers.teacher, name);
      const quantized = (name: string) => {
        const isFloat = training.activations === "float";
        const quantizer = isFloat ? undefined : inputGrids.quantizer(name);
        return fakeQuantizeInput(plan, teacher(name), quantizer);
      };
      const inputOf = (name: string, i: number): Tensor => {
        if (training.inputMode === "student") return student(name);
        if (training.inputMode === "teacher") return quantized(name);
        if (training.inputMode === "float") return teacher(name);
        const a = student(name), y = plan.tensor(a.shape, name);
        if (training.inputMode === "nearest") {
          plan.run(chooseNearest({ shape: a.shape }, device.target), { a, b: quantized(name), y });
        } else {
          const mix = { shape: a.shape, probability: HALF, stream: MIX_STREAM + i };
          plan.run(mixTensors(mix), { a, b: teacher(name), state, y });
        }
        return y;
      };
      return new Map(unit.inputs.map((name, i): [string, Tensor] => [name, inputOf(name, i)]));
    },
    tensorErrors: () => {
      const error = { teacher: targetBatch!, weight, term: 0 };
      const weighted = importanceBatch ? { ...error, importance: importanceBatch } : error;
      return new Map([[output, errorOf(training, weighted)]]);
    },
  });
  device.release(weight);
}

/** Factor of the mean error. */
async function lossScale(
  { device, batch }: Session,
  { loss: { scale } }: Stage,
  target: RowSet,
): Promise<number> {
  if (scale === "mean") return 1;
  if (scale === "channelSum") return rowsAndChannels([1, ...target.rowShape]).channels;
  const { targetVariance } = await compareRows(device, target, target, batch);
  return 1 / (targetVariance + 1e-8);
}

/** What every training run of a unit has, whatever its inputs are. */
function runOf(
  session: Session,
  unit: Block,
  stage: Stage,
  seed: number,
): Omit<TrainingRun, "inputs"> {
  const { device, network, recipe, student, samples } = session;
  const { steps } = stage;
  const batch = Math.min(session.batch, stage.batch, samples.train.rows);
  const share = partOfActivations(stage.activations, steps);
  return {
    device,
    student,
    part: partBetween(network.trained, unit.inputs, unit.outputs),
    layers: layersOf(session, unit),
    constants: session.teacher,
    steps,
    batch,
    seed,
    rates: learningRates(stage, recipe, batch),
    weightQuantizer: stage.weightQuantizer,
    activationQuantizer: stage.activationQuantizer,
    optimization: stage.optimization,
    tileStorage: recipe.tileStorage,
    ...(share !== undefined && { quantizedShare: share }),
    batchNormLiveSteps: batchNormLiveSteps(recipe, steps),
    keep: new Set(unit.outputs),
    terms: 1,
    signal: session.signal,
  };
}

/** What a mode quantizes; null for nothing, undefined for everything. */
export function partOfActivations(
  mode: ActivationMode,
  steps: number,
): PartialQuantization | null | undefined {
  if (mode === "quantized") return undefined;
  if (mode === "float") return null;
  return mode === "gradual" ? { kind: "gradual", steps } : { kind: "random", probability: HALF };
}

function errorOf({ loss }: Stage, error: TensorError): TensorError {
  return loss.exponent === 2 ? error : { ...error, exponent: loss.exponent };
}

/** The student's quantizers of a unit's inputs. */
function inputQuantizers({ device, student }: Session, unit: Block): NetworkValues {
  const states = unit.inputs.flatMap((name) => {
    const state = student.activations.get(name);
    return state ? [[name, state] as const] : [];
  });
  return new NetworkValues(device, new Map(), new Map(states));
}
