// Unit after unit: the student's unit learns to give what the teacher's gives, on inputs that come from the student's
// own, already finished, front (or from the teacher). Activations move through the network once a stage. A unit that is
// worse on held-out inputs than its PTQ start, the better of nearest and compensated rounding, is rolled back. How a unit
// trains is said by the stage (stage.ts).
import type { Block } from "../graph/blocks.ts";
import type { Student } from "../quant/student.ts";
import { compensateLayers } from "./compensate.ts";
import { EarlyStop } from "./early_stop.ts";
import type { Frontier } from "./frontier.ts";
import { fisherImportance, hessianImportance, type Importance } from "./importance.ts";
import { advance, type NetworkValues, type Part, partBetween, studentValues } from "./inference.ts";
import { compareRows } from "./measure.ts";
import { quantizeInputs, type Session } from "./session.ts";
import type { ActivationMode, Stage } from "./stage.ts";
import { compileUnits, layersOf, trainUnit } from "./unit_training.ts";

/** The four frontiers: training and held-out samples, as the teacher and as the student see them. */
export interface Frontiers {
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
 * @param training how each is trained
 */
export async function distillUnits(
  session: Session,
  stage: string,
  units: readonly Block[],
  training: Stage,
): Promise<void> {
  const { network, samples, recipe } = session;
  const { steps, activations } = training;
  const total = units.length * steps;
  await compileUnits(session, units, training);
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
    if (training.inputMode === "student") move(session, frontiers.teacher, targets, alive);
    const start = await deployStart(session, teacherPart, frontiers, heldOutTargets, activations);
    const restore = snapshot(session.student, teacherPart);
    const ownSteps = training.adaptive ? stepsFor(steps, start.mse / start.targetVariance) : steps;
    const importance = await importanceOf(session, unit, training, frontiers, targets, [...alive]);
    const watch = recipe.earlyStop === null ? undefined : new EarlyStop({
      steps: ownSteps,
      patience: recipe.earlyStop,
      measure: async () => {
        const now = await deploy(session, teacherPart, frontiers, heldOutTargets, activations);
        disposeAll(now.outputs);
        return now.mse;
      },
      snapshot: () => snapshot(session.student, teacherPart),
    });
    await trainUnit(session, unit, frontiers, targets, {
      ...training,
      steps: ownSteps,
      importance,
      seed: recipe.seed + i,
      watch,
      onStep: (step, loss) => {
        const done = Math.round((i + step / ownSteps) * steps);
        session.report({ stage, unit: unit.name, done, total, loss });
      },
    });
    importance?.rows[Symbol.dispose]();
    const last = await deploy(session, teacherPart, frontiers, heldOutTargets, activations);
    let trained = last;
    if (watch?.restoreBest(last.mse)) {
      disposeAll(last.outputs);
      trained = await deploy(session, teacherPart, frontiers, heldOutTargets, activations);
    }
    const judged = training.rollBack && steps > 0 && samples.heldOut.rows > 0;
    const rollBack = judged && !(trained.mse < start.mse);
    if (rollBack) {
      restore();
      for (const layer of layersOf(session, unit)) session.rolledBack.add(layer);
    }
    const [kept, dropped] = rollBack ? [start, trained] : [trained, start];
    disposeAll(dropped.outputs);
    move(session, frontiers.teacher, targets, needed);
    move(session, frontiers.heldOutTeacher, heldOutTargets, needed);
    move(session, frontiers.heldOutStudent, kept.outputs, needed);
    using values = deployedValues(session, teacherPart, activations);
    const outputs = needed.size === 0
      ? new Map()
      : await forward(session, teacherPart, frontiers.student, values);
    move(session, frontiers.student, outputs, needed);
    session.device.trim();
  }
}

/** Errors of a unit over the variance of its target, from which it gets two thirds of its steps, and all of them. */
const NOTABLE_ERROR = 0.01, LARGE_ERROR = 0.15;

/**
 * Steps that a unit's start is worth: where rounding costs little there is little to win, and more steps only learn the
 * training inputs by heart.
 *
 * @param steps all there are
 * @param error of the unit as calibrated, over the variance of its target; NaN when nothing is held out to measure it
 * @returns one to four sixths of the steps, or all
 */
export function stepsFor(steps: number, error: number): number {
  if (!(error < LARGE_ERROR)) return steps;
  const sixths = Math.ceil(4 * Math.sqrt(error / NOTABLE_ERROR));
  return Math.ceil(steps * Math.min(4, Math.max(1, sixths)) / 6);
}

/** What the loss weights a unit's squared errors with. */
async function importanceOf(
  session: Session,
  unit: Block,
  { loss: { kind }, activations, steps }: Stage,
  { student, teacher }: Frontiers,
  targets: Frontier,
  alive: readonly string[],
): Promise<Importance | undefined> {
  if (kind === "power" || steps === 0) return undefined;
  const { network } = session;
  const output = unit.outputs[0]!;
  const ahead: Frontier = new Map([...teacher, ...targets]);
  const live = [output, ...alive.filter((name) => name !== output && ahead.has(name))];
  const rest = partBetween(network.teacher, live, [network.output]);
  if (kind === "hessian") {
    return (await hessianImportance(session, rest, ahead, [output])).get(output);
  }
  const part = partBetween(network.teacher, unit.inputs, unit.outputs);
  using values = deployedValues(session, part, activations);
  const outputs = await forward(session, part, student, values);
  const found = await fisherImportance(session, rest, new Map([...student, ...outputs]), ahead);
  disposeAll(outputs);
  return found;
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

/** The student's integers, with its activations quantized unless the stage leaves them float. */
function deployedValues(
  { device, network, student }: Session,
  part: Part,
  activations: ActivationMode,
): NetworkValues {
  return studentValues(device, network, student, part, activations !== "float");
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
  activations: ActivationMode,
): Promise<Deployed> {
  const { device, samples, batch } = session;
  const output = part.outputs[0]!;
  using values = deployedValues(session, part, activations);
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
  activations: ActivationMode,
): Promise<Deployed> {
  const nearest = await deploy(session, part, frontiers, targets, activations);
  if (session.recipe.weightRounding === "nearest") return nearest;
  const restore = snapshot(session.student, part);
  await compensateLayers(session, part, frontiers.student);
  const compensated = await deploy(session, part, frontiers, targets, activations);
  const worse = session.samples.heldOut.rows > 0 && !(compensated.mse < nearest.mse);
  if (worse) restore();
  const [kept, dropped] = worse ? [nearest, compensated] : [compensated, nearest];
  disposeAll(dropped.outputs);
  return kept;
}

function disposeAll(frontier: Frontier): void {
  for (const set of frontier.values()) set[Symbol.dispose]();
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
