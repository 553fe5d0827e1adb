// One training loop for every method: a step is recorded once (mini-batch, forward pass of the student, losses, backward
// pass, optimizer) and replayed. What differs between methods comes in as functions: where the inputs come from, and
// what the losses are.
import { binaryForward } from "../../kernels/elementwise.ts";
import { meanSquaredError, type MeanSquaredErrorSpec } from "../../kernels/mse.ts";
import { advanceSchedule, finishStep, STATE_SEED, STATE_SIZE } from "../../kernels/schedule.ts";
import type { Kernel } from "../../kernels/kernel.ts";
import type { TileStorage } from "../../kernels/tile_storage.ts";
import { Tape } from "../autograd/tape.ts";
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { fuseLayers } from "../graph/layers.ts";
import { consumers } from "../graph/topology.ts";
import {
  type ActivationQuantizer,
  type LiveBatchNorm,
  type OpContext,
  rowsAndChannels,
  type SquaredError,
  standsAlone,
  type Trainable,
} from "../ops/context.ts";
import { recordSteps } from "../ops/ops.ts";
import type { ActivationTrainer, PartialQuantization } from "../quant/activation_parameters.ts";
import type { Student } from "../quant/student.ts";
import {
  type LearningRates,
  TrainingParameters,
  type WeightQuantizer,
} from "../quant/training_parameters.ts";
import type { EarlyStop } from "./early_stop.ts";
import { graphOf, type NetworkValues, type Part } from "./inference.ts";
import { shapesForBatch } from "./network.ts";
import { OPTIMIZATION, type Optimization } from "./optimization.ts";
import { batchNormPolicy, type Recipe } from "./recipe.ts";

/** What the losses of a step are recorded with. */
export interface LossContext {
  readonly plan: Plan;
  readonly tape: Tape;
  /** The student's tensors by name. */
  readonly values: ReadonlyMap<string, Tensor>;
  readonly state: Tensor;
  /** [steps * terms]: the loss history. */
  readonly losses: Tensor;
  readonly steps: number;
}

/** A term of the loss: weight * mean(importance * |student - teacher|^exponent) of a tensor. */
export interface TensorError {
  /** The teacher's tensor for the mini-batch. */
  readonly teacher: Tensor;
  /** [1]. */
  readonly weight: Tensor;
  /** Its place among the terms. */
  readonly term: number;
  /** 2 by default. */
  readonly exponent?: number;
  /** Of each element, in the shape of the tensor, or of each sample, [batch, 1]; 1 by default. */
  readonly importance?: Tensor;
}

/** What a step trains, on the GPU, with its optimizer. */
export interface StepParameters extends Disposable {
  /** Weight or bias by initializer name. */
  parameter(name: string): Trainable | undefined;
  /** Quantizer by tensor name. */
  quantizer(tensor: string): ActivationQuantizer | undefined;
  /** Batch norm by node name. */
  batchNorm(node: string): LiveBatchNorm | undefined;
  /** Records what precedes the forward pass. */
  recordForward(plan: Plan): void;
  /** Records what follows the backward pass. */
  recordStep(plan: Plan): void;
  /** Keeps the trained values. */
  store(): Promise<void>;
}

/** A training run, whatever it trains. */
export interface TrainingLoop {
  readonly device: Device;
  /** Part of the network that runs, in the form that trains. */
  readonly part: Part;
  /** Constants of the part that do not train. */
  readonly constants: NetworkValues;
  readonly steps: number;
  readonly batch: number;
  /** Of random choices within a step; 0 by default. */
  readonly seed?: number;
  /** Steps in which batch norm uses the statistics of the batch. */
  readonly batchNormLiveSteps: number;
  /** By default {@linkcode OPTIMIZATION}. */
  readonly optimization?: Optimization;
  /** Of the forward pass; default float32. */
  readonly tileStorage?: TileStorage;
  /** Tensors that must exist by themselves because a loss reads them. */
  readonly keep: ReadonlySet<string>;
  /** Terms of the loss that are kept in the history. */
  readonly terms: number;
  /** Records where the inputs of a step come from. */
  readonly inputs: (plan: Plan, state: Tensor) => Map<string, Tensor>;
  /** Squared errors among the losses, by tensor; called once the inputs are recorded. */
  readonly tensorErrors?: () => ReadonlyMap<string, TensorError>;
  /** Records the other losses and gives their gradients to the tape. */
  readonly recordLosses?: (context: LossContext) => void;
  /** Called now and then with the number of steps done and the newest loss. */
  readonly onStep?: ((done: number, loss: number) => void) | undefined;
  /** Sees the student, stored, after every so many steps, in whole looks at the loss, and may end the training. */
  readonly watch?: Pick<EarlyStop, "every" | "stops"> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Compiles the step's kernels in several threads first; without it they were compiled before, or are later. */
  readonly compiling?: CompileOptions;
}

/** A training run of a student. */
export interface TrainingRun extends TrainingLoop {
  readonly student: Student;
  /** Node names of the layers that train. */
  readonly layers: readonly string[];
  readonly rates: LearningRates;
  readonly weightQuantizer: WeightQuantizer;
  /** "lsq" by default. */
  readonly activationQuantizer?: ActivationTrainer;
  /** Part of the activations that is quantized; null leaves them float, and everything is the default. */
  readonly quantizedShare?: PartialQuantization | null;
  /** How much the rounding regulariser counts in a layer, by node name; 1 by default. */
  readonly roundingWeights?: ReadonlyMap<string, number>;
  /** Part of a batch's statistics in the running ones; 0.05 by default. */
  readonly batchNormMomentum?: number;
}

/** A loss or weight stopped being a finite number. */
export class DivergedError extends Error {
  override readonly name = "DivergedError";
}

const BATCH_NORM_MOMENTUM = 0.05;
/** Part of the steps in which a live batch norm uses the statistics of the batch. */
const BATCH_NORM_LIVE = 0.7;
/** Steps between two looks at the loss. */
const STEPS_PER_LOOK = 10;
/** A submit costs as much as several dispatches; the adapter begins once the first is in. */
const STEPS_PER_SUBMIT = 5;

/**
 * Steps in which batch norm uses the statistics of the batch.
 *
 * @param recipe whose policy decides
 * @param steps of the training run
 * @returns the first so many steps
 */
export function batchNormLiveSteps(recipe: Recipe, steps: number): number {
  return batchNormPolicy(recipe) === "live" ? Math.floor(BATCH_NORM_LIVE * steps) : 0;
}

/**
 * Trains the layers of a part and stores the result in the student.
 *
 * @param run what to train, on what, and how
 * @returns the loss of every step taken, all terms together
 * @throws DivergedError when the loss is not finite
 * @throws DOMException when the signal aborts
 */
export function train(run: TrainingRun): Promise<Float32Array> {
  return trainParameters(run, studentParameters(run));
}

/**
 * Kernels of a step, for compiling them ahead; nothing runs.
 *
 * @param run as for {@linkcode train}
 * @returns each kernel once
 */
export function stepKernels(run: TrainingRun): readonly Kernel[] {
  return surveyStep(run, studentParameters(run));
}

/** How the parameters of a step come to be. */
export interface ParametersOfStep {
  /** Makes the parameters for a training state. */
  readonly make: (state: Tensor) => StepParameters;
  /** Tensors that have quantizers. */
  readonly quantized: ReadonlySet<string>;
}

function studentParameters(run: TrainingRun): ParametersOfStep {
  const { device, student, part } = run;
  const made = new Set(part.nodes.flatMap((node) => node.outputs));
  const activations = new Map<string, number>(), features = new Map<string, number>();
  for (const tensor of student.activations.keys()) {
    if (!made.has(tensor)) continue;
    const { rows, channels } = rowsAndChannels(part.source.shapes.get(tensor) ?? []);
    activations.set(tensor, channels);
    features.set(tensor, rows * channels);
  }
  const { optimizer = "adam", beta1, beta2, rounding } = run.optimization ?? OPTIMIZATION;
  const options = {
    rates: run.rates,
    weightQuantizer: run.weightQuantizer,
    activationQuantizer: run.activationQuantizer ?? "lsq",
    features,
    optimizer,
    batchNormMomentum: run.batchNormMomentum ?? BATCH_NORM_MOMENTUM,
    roundingRegularizer: rounding.regularizer,
    ...(run.roundingWeights && { roundingWeights: run.roundingWeights }),
    ...(run.quantizedShare !== undefined && { quantizedShare: run.quantizedShare }),
    beta1,
    beta2,
  };
  return {
    make: (state) =>
      new TrainingParameters(device, student, run.layers, activations, state, options),
    quantized: new Set(activations.keys()),
  };
}

/**
 * Trains and stores parameters of any kind.
 *
 * @param run on what, and how
 * @param parametersOfStep what trains
 * @returns the loss of every step taken, all terms together
 * @throws DivergedError when the loss is not finite
 * @throws DOMException when the signal aborts
 */
export async function trainParameters(
  run: TrainingLoop,
  parametersOfStep: ParametersOfStep,
): Promise<Float32Array> {
  const { device, part, steps } = run;
  if (steps === 0) return new Float32Array();
  if (run.compiling) {
    await device.compileAhead(surveyStep(run, parametersOfStep), run.compiling);
  }
  using memory = new StepMemory(run);
  using parameters = parametersOfStep.make(memory.state);
  using plan = new Plan(device);
  recordStep(plan, run, memory, parameters, parametersOfStep.quantized);
  let history = new Float32Array();
  let done = 0;
  for (let watched = 0; done < steps;) {
    await device.breathe();
    run.signal?.throwIfAborted();
    const next = Math.min(STEPS_PER_LOOK, steps - done);
    plan.replay(next, STEPS_PER_SUBMIT);
    done += next;
    history = await device.read(memory.losses);
    const loss = totalLoss(history, done - 1, run.terms);
    if (!Number.isFinite(loss)) {
      throw new DivergedError(`the loss of "${part.outputs[0]}" is ${loss} at step ${done}`);
    }
    run.onStep?.(done, loss);
    if (run.watch === undefined || done - watched < run.watch.every || done === steps) continue;
    watched = done;
    await parameters.store();
    if (await run.watch.stops(done)) break;
  }
  await parameters.store();
  return Float32Array.from({ length: done }, (_, step) => totalLoss(history, step, run.terms));
}

function surveyStep(run: TrainingLoop, { make, quantized }: ParametersOfStep): readonly Kernel[] {
  using memory = new StepMemory(run);
  using parameters = make(memory.state);
  using survey = new KernelSurvey(run.device);
  recordStep(survey, run, memory, parameters, quantized);
  return survey.kernels;
}

/** What a step keeps besides its parameters. */
class StepMemory implements Disposable {
  /** The training state of kernels/schedule.ts. */
  readonly state: Tensor;
  /** [steps * terms]. */
  readonly losses: Tensor;
  readonly #device: Device;

  constructor({ device, steps, terms, seed = 0 }: TrainingLoop) {
    this.#device = device;
    const start = new Float32Array(STATE_SIZE);
    // Integers that float32 holds exactly.
    start[STATE_SEED] = seed % 2 ** 24;
    this.state = device.fromArray([STATE_SIZE], start, { label: "training state" });
    this.losses = device.tensor([steps * terms], { label: "loss history" });
  }

  [Symbol.dispose](): void {
    this.#device.release(this.state);
    this.#device.release(this.losses);
  }
}

/** Records a step: mini-batch, forward pass, losses, backward pass, optimizer. */
function recordStep(
  plan: Plan,
  run: TrainingLoop,
  { state, losses }: StepMemory,
  parameters: StepParameters,
  quantized: ReadonlySet<string>,
): void {
  const { device, part, steps, batch } = run;
  const shapes = shapesForBatch(part.source, batch);
  const graph = graphOf(part);
  const { beta1, beta2, schedule, warmup, rounding } = run.optimization ?? OPTIMIZATION;
  plan.run(
    advanceSchedule({
      steps,
      warmupSteps: Math.max(1, Math.trunc(warmup * steps)),
      schedule,
      beta1,
      beta2,
      batchNormLiveSteps: run.batchNormLiveSteps,
      roundingWarmup: rounding.warmup,
      roundingBetaStart: rounding.betaStart,
      roundingBetaEnd: rounding.betaEnd,
      ...(rounding.betaDecay && { roundingBetaDecay: rounding.betaDecay }),
    }, device.target),
    { state },
  );
  parameters.recordForward(plan);
  const tape = new Tape(plan, (shape) => binaryForward({ operator: "add", a: shape, b: shape }));
  const values = run.inputs(plan, state);
  const errors = run.tensorErrors?.() ?? new Map<string, TensorError>();
  const history = { scale: 1, historySize: steps, terms: run.terms, state, losses };
  // With other losses a tensor of the network's end may have more readers than the graph tells of.
  const readers = consumers(graph);
  const fused = Array.from(errors).filter(([name, { exponent, importance }]) => {
    const plain = exponent === undefined && importance === undefined;
    return plain && !standsAlone(parameters.quantizer(name)) && !run.recordLosses &&
      !readers.has(name);
  }).map(([name, error]): [string, SquaredError] => [name, { ...error, ...history }]);
  const context: OpContext = {
    recorder: plan,
    graph,
    shapes,
    values,
    parameter: (name) => parameters.parameter(name) ?? { value: run.constants.parameter(name) },
    quantizer: (tensor) => parameters.quantizer(tensor),
    batchNorm: (node) => parameters.batchNorm(node),
    tape,
    tileStorage: run.tileStorage,
    squaredErrors: new Map(fused),
  };
  const keep = new Set([...quantized, ...run.keep]);
  recordSteps(context, fuseLayers(graph, keep, shapes));
  for (const [name, error] of errors) {
    const y = values.get(name);
    if (y !== undefined) recordTensorError(plan, tape, y, { ...error, ...history });
  }
  run.recordLosses?.({ plan, tape, values, state, losses, steps });
  tape.backward();
  parameters.recordStep(plan);
  plan.run(finishStep(device.target), { state });
}

/** An error that is not fused into the layer that makes the tensor. */
function recordTensorError(
  plan: Plan,
  tape: Tape,
  y: Tensor,
  { teacher, weight, state, losses, importance, ...term }: TensorError & SquaredError,
): void {
  const { rows, channels } = rowsAndChannels(y.shape);
  const ofElements = importance?.shape.join() === y.shape.join();
  const spec: MeanSquaredErrorSpec = {
    rows,
    channels,
    ...term,
    ...(importance && { importance: ofElements ? "element" : rows / y.shape[0]! }),
  };
  const kernel = meanSquaredError(spec, plan.device.target);
  const bound = { y, teacher, weight, state, losses, ...(importance && { importance }) };
  tape.give(y, (dy) => plan.run(kernel, { ...bound, dy }));
}

function totalLoss(history: Float32Array, step: number, terms: number): number {
  return history.subarray(step * terms, (step + 1) * terms).reduce((sum, term) => sum + term, 0);
}
