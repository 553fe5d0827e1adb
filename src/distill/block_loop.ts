// Unit after unit: the student's unit learns to give what the teacher's gives, on inputs that come from the student's
// own, already finished, front (or from the teacher). Activations move through the network once. A unit that is worse
// on held-out inputs than its PTQ start, the better of nearest and compensated rounding, is rolled back. The recipe:
// straight-through latent weights with learned scales, the error measured behind the unit's output quantizer and divided
// by the target's variance, batch norm folded or, at low bits, live at first.
import { mixTensors } from "../../kernels/mix.ts";
import { batchTable } from "../data/sampler.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import type { Block } from "../graph/blocks.ts";
import type { Student } from "../quant/student.ts";
import type { LearningRates } from "../quant/training_parameters.ts";
import { compensateLayers } from "./compensate.ts";
import type { Frontier } from "./frontier.ts";
import { advance, type Part, partBetween, studentValues } from "./inference.ts";
import { compareRows } from "./measure.ts";
import { MiniBatches } from "./mini_batches.ts";
import { shapesForBatch } from "./network.ts";
import type { Recipe } from "./recipe.ts";
import { quantizeInputs, type Session } from "./session.ts";
import { batchNormLiveSteps, stepKernels, train } from "./training.ts";

const MIX_STREAM = 0x1d3a_71;

/** The four frontiers: training and held-out samples, as the teacher and as the student see them. */
interface Frontiers {
  readonly teacher: Frontier;
  readonly student: Frontier;
  readonly heldOutTeacher: Frontier;
  readonly heldOutStudent: Frontier;
}

/**
 * Distils unit after unit.
 *
 * @param session the session; its student is improved in place
 * @param stage name for progress
 * @param units units of the folded channels-last graph, in execution order
 * @param steps training steps of a unit
 */
export async function distillUnits(
  session: Session,
  stage: string,
  units: readonly Block[],
  steps: number,
): Promise<void> {
  const { network, samples, recipe } = session;
  const total = units.length * steps;
  await compileUnits(session, units, steps);
  // Augmented copies and the teacher's outputs on training samples are for training only.
  const seen = steps > 0 ? samples.train.rows : samples.clean;
  const frontiers: Frontiers = {
    teacher: new Map([[network.input, samples.train]]),
    student: new Map([[network.input, await quantizeInputs(session, samples.train, seen)]]),
    heldOutTeacher: new Map([[network.input, samples.heldOut]]),
    heldOutStudent: new Map([[network.input, await quantizeInputs(session, samples.heldOut)]]),
  };
  for (const [i, unit] of units.entries()) {
    const teacherPart = partBetween(network.teacher, unit.inputs, unit.outputs);
    const targets: Frontier = steps > 0
      ? await forward(session, teacherPart, frontiers.teacher)
      : new Map();
    const heldOutTargets = await forward(session, teacherPart, frontiers.heldOutTeacher);
    const needed = new Set(units.slice(i + 1).flatMap((later) => later.inputs));
    // The teacher's inputs have served, unless the input mode reads them again.
    const alive = new Set([...needed, ...unit.outputs]);
    move(session, frontiers.heldOutTeacher, heldOutTargets, alive);
    if (recipe.inputMode === "student") move(session, frontiers.teacher, targets, alive);
    const start = await deployStart(session, teacherPart, frontiers, heldOutTargets);
    const restore = snapshot(session.student, teacherPart);
    const ownSteps = recipe.steps === steps
      ? steps
      : stepsFor(steps, start.mse / start.targetVariance);
    await trainUnit(session, unit, frontiers, targets, {
      steps: ownSteps,
      seed: recipe.seed + i,
      onStep: (step, loss) => {
        const done = Math.round((i + step / ownSteps) * steps);
        session.report({ stage, unit: unit.name, done, total, loss });
      },
    });
    const trained = await deploy(session, teacherPart, frontiers, heldOutTargets);
    const rollBack = steps > 0 && samples.heldOut.rows > 0 && !(trained.mse < start.mse);
    if (rollBack) {
      restore();
      for (const layer of layersOf(session, unit)) session.rolledBack.add(layer);
    }
    const [kept, dropped] = rollBack ? [start, trained] : [trained, start];
    for (const set of dropped.outputs.values()) set[Symbol.dispose]();
    move(session, frontiers.teacher, targets, needed);
    move(session, frontiers.heldOutTeacher, heldOutTargets, needed);
    move(session, frontiers.heldOutStudent, kept.outputs, needed);
    using values = studentValues(session.device, network, session.student, teacherPart);
    const outputs = needed.size === 0
      ? new Map()
      : await forward(session, teacherPart, frontiers.student, values);
    move(session, frontiers.student, outputs, needed);
    session.device.trim();
  }
}

/** Error of a unit over the variance of its target from which it gets all of its steps. */
const LARGE_ERROR = 0.01;

/**
 * Steps that a unit's start is worth: where rounding costs little there is little to win.
 *
 * @param steps all there are
 * @param error of the unit as calibrated, over the variance of its target; NaN when nothing is held out to measure it
 * @returns a quarter of the steps, two, three, or all
 */
export function stepsFor(steps: number, error: number): number {
  if (!(error < LARGE_ERROR)) return steps;
  return Math.ceil(steps * Math.max(1, Math.ceil(4 * Math.sqrt(error / LARGE_ERROR))) / 4);
}

/**
 * Inputs of a unit's step: many small steps reach a low error sooner than few large ones, and on a CPU an input costs
 * the same in either.
 */
export const UNIT_BATCH = 16;

function unitBatch({ batch, recipe, samples }: Session): number {
  return Math.min(batch, recipe.batchSize ?? UNIT_BATCH, samples.train.rows);
}

/** Learning rates at {@linkcode UNIT_BATCH}. */
const RATES: LearningRates = {
  weights: 0.01,
  weightScales: 1e-3,
  activationScales: 2e-3,
  biases: 1e-3,
};

/**
 * Learning rates of a unit.
 *
 * @param recipe its own number scales all of them
 * @param batch inputs of a step: a mean over more of them allows larger steps (Malladi et al. 2022, for Adam)
 * @returns the rates
 */
export function learningRates(recipe: Pick<Recipe, "learningRate">, batch: number): LearningRates {
  const { learningRate } = recipe;
  const factor = learningRate === null
    ? Math.sqrt(batch / UNIT_BATCH)
    : learningRate / RATES.weights;
  return {
    weights: RATES.weights * factor,
    weightScales: RATES.weightScales * factor,
    activationScales: RATES.activationScales * factor,
    biases: RATES.biases * factor,
  };
}

/** What every training run of a unit has, whatever its inputs are. */
function unitTraining(session: Session, unit: Block, steps: number) {
  const { device, network, recipe, student } = session;
  const batch = unitBatch(session);
  return {
    device,
    student,
    part: partBetween(network.trained, unit.inputs, unit.outputs),
    layers: layersOf(session, unit),
    constants: session.teacher,
    steps,
    batch,
    rates: learningRates(recipe, batch),
    weightQuantizer: recipe.weightQuantizer,
    tileStorage: recipe.tileStorage,
    batchNormLiveSteps: batchNormLiveSteps(recipe, steps),
    keep: new Set(unit.outputs),
    terms: 1,
    signal: session.signal,
  };
}

/** Node names of the unit's layers that train. */
function layersOf({ student }: Session, unit: Block): string[] {
  return unit.nodes.map((node) => node.name).filter((name) => student.layers.has(name));
}

/** Has the kernels of all units compiled, whose mini-batches need not exist for that. */
async function compileUnits(
  session: Session,
  units: readonly Block[],
  steps: number,
): Promise<void> {
  if (steps === 0) return;
  const { device, network, compiling } = session;
  const kernels = units.filter((unit) => layersOf(session, unit).length > 0).flatMap((unit) => {
    const run = unitTraining(session, unit, steps);
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
      tensorErrors: () => new Map([[output, { teacher: teacher!, weight: teacher!, term: 0 }]]),
    });
  });
  await device.compileAhead(kernels, compiling);
}

async function trainUnit(
  session: Session,
  unit: Block,
  frontiers: Frontiers,
  targets: Frontier,
  options: {
    readonly steps: number;
    readonly seed: number;
    readonly onStep: (done: number, loss: number) => void;
  },
): Promise<void> {
  const { device, recipe, samples } = session;
  const { steps, seed, onStep } = options;
  const run = unitTraining(session, unit, steps);
  if (run.layers.length === 0 || steps === 0) return;
  const output = unit.outputs[0]!;
  const target = targets.get(output)!;
  const { targetVariance } = await compareRows(device, target, target, session.batch);
  const weight = device.fromArray([1], [1 / (targetVariance + 1e-8)], { label: "loss weight" });
  const table = batchTable(samples.train.rows, run.batch, steps, seed);
  using batches = new MiniBatches(device, table, run.batch);
  let targetBatch: Tensor | undefined;
  await train({
    ...run,
    onStep,
    inputs: (plan, state) => {
      targetBatch = target.recordGather(plan, batches, state, `target ${output}`);
      const gather = (from: Frontier, name: string) =>
        from.get(name)!.recordGather(plan, batches, state, name);
      return new Map(unit.inputs.map((name, i): [string, Tensor] => {
        if (recipe.inputMode === "teacher") return [name, gather(frontiers.teacher, name)];
        const a = gather(frontiers.student, name);
        if (recipe.inputMode === "student") return [name, a];
        const b = gather(frontiers.teacher, name);
        const y = plan.tensor(a.shape, name);
        const mix = { shape: a.shape, probability: 0.5, seed: seed + MIX_STREAM * (i + 1) };
        plan.run(mixTensors(mix), { a, b, state, y });
        return [name, y];
      }));
    },
    tensorErrors: () => new Map([[output, { teacher: targetBatch!, weight, term: 0 }]]),
  });
  device.release(weight);
}

function forward(
  session: Session,
  part: Part,
  from: Frontier,
  values = session.teacher,
): Promise<Frontier> {
  const { device, batch, frontier: { residence, compact } } = session;
  const storage = (name: string) => compact ? values.rowStorage(name) : "float32";
  return advance(device, part, values, from, { batch, storage, residence });
}

/** Held-out outputs of a deployed unit, their mean squared error, and the variance of what they should be. */
interface Deployed {
  readonly outputs: Frontier;
  readonly mse: number;
  readonly targetVariance: number;
}

/** Runs the deployed unit. */
async function deploy(
  session: Session,
  part: Part,
  { heldOutStudent }: Frontiers,
  targets: Frontier,
): Promise<Deployed> {
  const { device, network, samples, student, batch } = session;
  const output = part.outputs[0]!;
  using values = studentValues(device, network, student, part);
  const outputs = await forward(session, part, heldOutStudent, values);
  if (samples.heldOut.rows === 0) return { outputs, mse: NaN, targetVariance: NaN };
  const { mse, targetVariance } = await compareRows(
    device,
    outputs.get(output)!,
    targets.get(output)!,
    batch,
  );
  return { outputs, mse, targetVariance };
}

/** As {@linkcode deploy}, before training: with compensated rounding if that is asked for and better. */
async function deployStart(
  session: Session,
  part: Part,
  frontiers: Frontiers,
  targets: Frontier,
): Promise<Deployed> {
  const nearest = await deploy(session, part, frontiers, targets);
  if (session.recipe.weightRounding === "nearest") return nearest;
  const restore = snapshot(session.student, part);
  await compensateLayers(session, part, frontiers.student);
  const compensated = await deploy(session, part, frontiers, targets);
  const worse = session.samples.heldOut.rows > 0 && !(compensated.mse < nearest.mse);
  if (worse) restore();
  const [kept, dropped] = worse ? [nearest, compensated] : [compensated, nearest];
  for (const set of dropped.outputs.values()) set[Symbol.dispose]();
  return kept;
}

/** Remembers the state of a part; the result puts it back. */
function snapshot(student: Student, part: Part): () => void {
  const names = part.nodes.flatMap((node) => [node.name, ...node.outputs]);
  const layers = names.flatMap((name) => student.layers.get(name) ?? []);
  const activations = names.flatMap((name) => student.activations.get(name) ?? []);
  return () => {
    for (const layer of layers) student.setLayer(layer);
    for (const state of activations) student.setActivation(state);
  };
}

/** Puts new row sets in place; sets that nobody needs any more are freed. */
function move(
  { samples }: Session,
  frontier: Frontier,
  outputs: Frontier,
  needed: ReadonlySet<string>,
): void {
  for (const [name, set] of outputs) frontier.set(name, set);
  for (const [name, set] of frontier) {
    if (needed.has(name)) continue;
    if (set !== samples.train && set !== samples.heldOut) set[Symbol.dispose]();
    frontier.delete(name);
  }
}
