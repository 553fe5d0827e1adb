// A dry run: what a recipe would do with a network, layer by layer and unit by unit, and what that would cost. Nothing is
// trained; for the time the teacher goes forward a few times on the device.
import { paddedSize } from "../../kernels/kernel.ts";
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import { Plan } from "../gpu/plan.ts";
import { countMacs, countWeights } from "../graph/cost.ts";
import type { Graph } from "../graph/graph.ts";
import { learnedOfActivations } from "../quant/activation_parameters.ts";
import { WEIGHT_QUANTIZERS } from "../quant/weight_quantizers.ts";
import { EXPONENT_INPUTS, EXPONENT_PASSES, observerOf } from "./calibrate.ts";
import type { DistillOptions, RecognisedData } from "./distill.ts";
import { type FrontierPlace, placedBytes } from "./frontier_memory.ts";
import { partBetween, recordForward, teacherValues } from "./inference.ts";
import type { Network } from "./network.ts";
import { type PlannedStage, plannedStages } from "./planned_stages.ts";
import { type PreparedRun, prepareRun } from "./prepare_run.ts";
import { copiesFor } from "./presets.ts";
import { batchNormPolicy, type Recipe } from "./recipe.ts";

/** A layer, or a pooling that computes on integers. */
export interface PlannedLayer {
  readonly name: string;
  readonly opType: string;
  /** Unit that it is trained in. */
  readonly unit: string | null;
  /** Multiply-accumulates for one input; `null` for a pooling. */
  readonly macs: number | null;
  /** Weights, biases not included; `null` for a pooling. */
  readonly weights: number | null;
  /** `null` where it has none or stays float. */
  readonly weightBits: number | null;
  /** Of the tensor that it reads; `null` where that stays float. */
  readonly activationBits: number | null;
}

/** One training. */
export interface PlannedUnit {
  readonly stage: string;
  readonly name: string;
  /** Whether it is the whole network, with the teacher beside it. */
  readonly whole: boolean;
  /** Names of its layers, those that stay float included. */
  readonly layers: readonly string[];
  readonly macs: number;
  /** What trains, for example `weights, scales, biases`; none where every layer stays float. */
  readonly trains: string;
  /** At most. */
  readonly steps: number;
  /** How many are likely. */
  readonly likelySteps: number;
  readonly batch: number;
}

/** Estimated seconds, without the compilation of kernels that are in no cache yet. */
export interface PlannedSeconds {
  readonly calibrate: number;
  readonly distill: number;
  readonly evaluate: number;
  readonly total: number;
}

/** What a run would do. */
export interface RunPlan {
  readonly model: string;
  readonly method: string;
  readonly weightBits: number;
  /** `null` where they stay float. */
  readonly activationBits: number | null;
  /** Whether the activations' ranges are calibrated, or taken at run time from what each layer reads. */
  readonly activationRanges: Recipe["activationRanges"];
  readonly layers: readonly PlannedLayer[];
  readonly units: readonly PlannedUnit[];
  /** Inputs trained on, versions of each, inputs held out, inputs evaluated. */
  readonly samples: {
    readonly train: number;
    readonly copies: number;
    readonly heldOut: number;
    readonly evaluate: number;
  };
  readonly memory: {
    /** Bytes of the activations of all samples, at most. */
    readonly activations: number;
    /** Where those lie and how they are stored. */
    readonly place: FrontierPlace;
    /** Bytes of the largest training step, about. */
    readonly step: number;
  };
  readonly seconds: PlannedSeconds;
  /** What the time was estimated from: a forward pass of so many inputs took so many seconds. */
  readonly measured: { readonly adapter: string; readonly batch: number; readonly seconds: number };
}

/**
 * Plans a run.
 *
 * @param model the trained fp32 network
 * @param data its inputs; only their number matters
 * @param recipe complete
 * @param options device, progress and abort signal
 * @returns the plan
 * @throws UnsupportedError when the network cannot be executed
 * @throws RangeError when an override matches no layer, or a mini-batch does not fit
 * @throws GpuError when the device fails
 */
export async function planRun(
  model: Graph,
  data: RecognisedData,
  recipe: Recipe,
  { device, onProgress = () => {}, signal }: DistillOptions & { readonly device: Device },
): Promise<RunPlan> {
  const prepared = prepareRun(device, model, data.calibration.count, recipe);
  const stages = plannedStages(device, prepared, recipe);
  const batch = stages[0]?.batch ?? prepared.batch;
  const seconds = await forwardSeconds(device, prepared.network, batch, {
    onCompiled: (done, total) => onProgress({ stage: "compile", done, total }),
    signal,
  });
  const measured = { adapter: device.adapterName, batch, seconds };
  return describeRun(recipe, prepared, stages, data.evaluation?.count ?? 0, measured);
}

/**
 * The plan of a run whose forward pass was measured.
 *
 * @param recipe complete
 * @param prepared the run
 * @param stages its training
 * @param evaluate inputs evaluated
 * @param measured a forward pass of the teacher
 * @returns the plan
 */
export function describeRun(
  recipe: Recipe,
  prepared: PreparedRun,
  stages: readonly PlannedStage[],
  evaluate: number,
  measured: RunPlan["measured"],
): RunPlan {
  const { network, split, counts, frontier: place } = prepared;
  const { graph, shapes } = network.teacher;
  const macs = countMacs(graph, shapes);
  const units = stages.map((planned) => unitOf(planned, network, recipe, macs));
  const unitNames = new Map(
    stages.filter(({ whole }) => !whole).flatMap(({ unit }) =>
      unit.nodes.map((node): [string, string] => [node.name, unit.name])
    ),
  );
  return {
    model: recipe.model,
    method: recipe.method,
    weightBits: recipe.weightBits,
    activationBits: recipe.activationBits,
    activationRanges: recipe.activationRanges,
    layers: layersOf(network, macs, unitNames),
    units,
    samples: {
      train: split.train.length,
      copies: copiesFor(recipe, network.teacher.shapes.get(network.input)!),
      heldOut: split.heldOut.length,
      evaluate,
    },
    memory: {
      activations: placedBytes(network, counts, recipe, place),
      place,
      step: Math.max(0, ...stages.map((planned) => stepBytes(network, planned))),
    },
    seconds: estimateSeconds(prepared, units, evaluate, recipe, measured),
    measured,
  };
}

function layersOf(
  { teacher: { graph }, weightBits, activationBits, activationRanges }: Network,
  macs: ReadonlyMap<string, number>,
  units: ReadonlyMap<string, string>,
): PlannedLayer[] {
  const weights = countWeights(graph);
  const isPool = (tensor: string, name: string) => activationBits.has(tensor) && !weights.has(name);
  const poolings = new Set(
    activationRanges === "static" ? ["AveragePool", "GlobalAveragePool", "ReduceMean"] : [],
  );
  return graph.nodes
    .filter(({ name, opType, inputs }) =>
      weights.has(name) || (poolings.has(opType) && isPool(inputs[0]!, name))
    )
    .map(({ name, opType, inputs }) => ({
      name,
      opType,
      unit: units.get(name) ?? null,
      macs: macs.get(name) ?? null,
      weights: weights.get(name) ?? null,
      weightBits: weightBits.get(name) ?? null,
      activationBits: activationBits.get(inputs[0]!) ?? null,
    }));
}

function unitOf(
  planned: PlannedStage,
  { weightBits, batchNorms }: Network,
  recipe: Recipe,
  macs: ReadonlyMap<string, number>,
): PlannedUnit {
  const { stage, unit, whole, steps, likelySteps, batch } = planned;
  const layers = unit.nodes.map(({ name }) => name).filter((name) => macs.has(name));
  const quantized = layers.filter((name) => weightBits.has(name));
  const trains = quantized.length > 0 && steps > 0;
  return {
    stage,
    name: unit.name,
    whole,
    layers,
    macs: layers.reduce((sum, name) => sum + macs.get(name)!, 0),
    trains: trains
      ? trainedParts(planned, recipe, quantized.some((name) => batchNorms.has(name)))
      : "",
    steps: quantized.length > 0 ? steps : 0,
    likelySteps: quantized.length > 0 ? likelySteps : 0,
    batch,
  };
}

function trainedParts(
  { training: { rates, weightQuantizer, activationQuantizer } }: PlannedStage,
  recipe: Recipe,
  hasBatchNorm: boolean,
): string {
  const live = hasBatchNorm && batchNormPolicy(recipe) === "live";
  const activations = learnedOfActivations(activationQuantizer);
  const parts: Record<string, number> = {
    [weightQuantizer === "softRounding" ? "rounding" : "weights"]: rates.weights,
    "weight scales": WEIGHT_QUANTIZERS[weightQuantizer].learnsScales ? rates.weightScales : 0,
    ...(activations !== null && { [activations]: rates.activationScales }),
    [hasBatchNorm ? `batch norm${live ? " (live)" : ""}` : "biases"]: rates.biases,
  };
  return Object.keys(parts).filter((part) => parts[part]! > 0).join(", ");
}

/** Weights, their quantized values, both gradients and two moments. */
const COPIES_OF_PARAMETERS = 6;

/** Bytes of a training step: what the forward pass makes stays for the backward pass, whose gradients come and go. */
function stepBytes(network: Network, { unit, whole, batch }: PlannedStage): number {
  const { trained, teacher } = network;
  const { nodes, source: { shapes } } = partBetween(trained, unit.inputs, unit.outputs);
  const bytes = (name: string) => 4 * paddedSize(shapes.get(name) ?? teacher.shapes.get(name)!);
  const tensors = [...unit.inputs, ...nodes.flatMap(({ outputs }) => outputs)].map(bytes);
  const largest = Math.max(...tensors);
  const constants = new Set(nodes.flatMap(({ inputs }) => inputs));
  let parameters = 0;
  for (const name of constants) if (trained.graph.initializers.has(name)) parameters += bytes(name);
  const kept = tensors.reduce((sum, size) => sum + size, 0) + 2 * largest;
  // The teacher runs beside a whole network.
  return batch * (kept + (whole ? 2 * largest : largest)) + COPIES_OF_PARAMETERS * parameters;
}

/** A training step costs so many forward passes, by measurement on ResNet-20. */
const STEP_COST = 4;

function estimateSeconds(
  { network, split, trainRows, batch }: PreparedRun,
  units: readonly PlannedUnit[],
  evaluate: number,
  recipe: Recipe,
  measured: RunPlan["measured"],
): PlannedSeconds {
  const { graph, shapes } = network.teacher;
  const all = Array.from(countMacs(graph, shapes).values()).reduce((sum, macs) => sum + macs, 0);
  const clean = split.train.length, heldOut = split.heldOut.length;
  // Teacher and student, before and after.
  const judging = 2 * (heldOut > 0 ? heldOut : Math.min(clean, batch));
  // Inputs that go forward through the whole network.
  const calibrating = calibrationInputs(network, recipe, clean) + judging;
  const moving = (units.some(({ whole }) => !whole) ? 2 * trainRows + 3 * heldOut : 0) +
    (units.some(({ whole }) => whole) ? 4 * heldOut : 0);
  const steps = units.reduce((sum, { whole, likelySteps, batch, macs }) => {
    return sum + (STEP_COST + (whole ? 1 : 0)) * likelySteps * batch * macs / all;
  }, 0);
  const seconds = (inputs: number) => inputs * measured.seconds / measured.batch;
  const calibrateSeconds = seconds(calibrating);
  const distillSeconds = seconds(moving + steps + judging);
  const evaluateSeconds = seconds(2 * evaluate);
  return {
    calibrate: calibrateSeconds,
    distill: distillSeconds,
    evaluate: evaluateSeconds,
    total: calibrateSeconds + distillSeconds + evaluateSeconds,
  };
}

/** Inputs that go forward before the weights' scales are chosen, each as often as it does. */
function calibrationInputs(
  { activationBits, activationRanges }: Network,
  recipe: Recipe,
  clean: number,
): number {
  const { calibrationSamples, migration, weightObserver } = recipe;
  const observed = Math.min(clean, calibrationSamples);
  const balanced = (migration === null ? 0 : 1) + (weightObserver === "hessian" ? 1 : 0);
  if (activationBits.size === 0 || activationRanges === "dynamic") return balanced * observed;
  const { observer, p } = observerOf(recipe);
  const chosen = observer === "mse" && p === undefined
    ? EXPONENT_PASSES * Math.min(observed, EXPONENT_INPUTS)
    : 0;
  return (2 + balanced) * observed + chosen;
}

/** Passes of which the median counts. */
const PASSES = 5;

/** Seconds of a forward pass of the teacher. */
async function forwardSeconds(
  device: Device,
  network: Network,
  batch: number,
  compiling: CompileOptions,
): Promise<number> {
  const part = partBetween(network.teacher, [network.input], [network.output]);
  const rowShape = network.teacher.shapes.get(network.input)!.slice(1);
  using values = teacherValues(device, network);
  const record = (plan: Plan) => {
    const x = plan.tensor([batch, ...rowShape], network.input);
    recordForward(plan, part, values, new Map([[network.input, x]]));
    return x;
  };
  using survey = new KernelSurvey(device);
  record(survey);
  await device.compileAhead(survey.kernels, compiling);
  using plan = new Plan(device);
  const x = record(plan);
  device.upload(x, new Float32Array(x.shape.reduce((size, n) => size * n)).fill(0.5));
  const times: number[] = [];
  for (let pass = 0; pass <= PASSES; pass++) {
    compiling.signal?.throwIfAborted();
    const start = performance.now();
    plan.replay();
    await device.synchronize();
    // The first warms up.
    if (pass > 0) times.push((performance.now() - start) / 1000);
  }
  return times.sort((a, b) => a - b)[Math.floor(PASSES / 2)]!;
}
