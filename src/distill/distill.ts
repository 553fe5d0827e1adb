// The verb: a network and unlabelled inputs in, the quantized student and a report out.
import type { NdArray } from "../core/nd_array.ts";
import type { CompileOptions } from "../gpu/compile_in_threads.ts";
import { Device } from "../gpu/device.ts";
import { pickLabels } from "../data/labels.ts";
import { type ImageSet, inputSizeOf, normalize, recogniseImages } from "../data/image_set.ts";
import type { Split } from "../data/sampler.ts";
import type { Graph } from "../graph/graph.ts";
import type { QuantizedGraph } from "../graph/quantized_graph.ts";
import { calibrate, observerOf } from "./calibrate.ts";
import { createStudent } from "./create_student.ts";
import { agreement, layerEnds, measureLayers, predict, topClasses } from "./evaluate.ts";
import { type Residence, RowSet } from "./frontier.ts";
import { partBetween, studentValues, teacherValues } from "./inference.ts";
import { inputPowers } from "./input_powers.ts";
import { METHODS } from "./methods/methods.ts";
import { migrateActivations } from "./migration.ts";
import type { Network } from "./network.ts";
import { rowsAndChannels } from "../ops/context.ts";
import { copiesFor } from "./presets.ts";
import { prepareRun } from "./prepare_run.ts";
import { parseRecipe, type Recipe } from "./recipe.ts";
import { reestimateBatchNorm } from "./reestimate_batch_norm.ts";
import { type LayerReport, type Report, VERSION } from "./report.ts";
import type { Progress, Samples, Session } from "./session.ts";
import { augmentedCopies } from "./augmentation.ts";

export type { Progress } from "./session.ts";

/** Inputs of a run. Labels are needed by method "qat" and to measure top-1 only. */
export interface DistillData {
  /** Unlabelled inputs: an array [N, C, H, W], [N, H, W, C], [N, steps, features] or [N, features], or one already recognised. */
  readonly calibration: NdArray | ImageSet;
  /** Class numbers of the calibration inputs. */
  readonly calibrationLabels?: Uint32Array<ArrayBuffer>;
  /** Inputs to measure teacher and student on. */
  readonly evaluation?: NdArray | ImageSet;
  /** Their class numbers. */
  readonly evaluationLabels?: Uint32Array<ArrayBuffer>;
}

/** The data of a run with every array recognised. */
export interface RecognisedData extends DistillData {
  readonly calibration: ImageSet;
  readonly evaluation?: ImageSet;
}

/** Where a run takes place and who watches. */
export interface DistillOptions {
  /** Opened and closed by the run when absent. */
  readonly device?: Device;
  /** Called now and then. */
  readonly onProgress?: (progress: Progress) => void;
  /** Stops the run between two steps. */
  readonly signal?: AbortSignal;
  /**
   * The teacher's classes by evaluation set: filled by a run and read by later ones, so that several runs of one model
   * with one normalization evaluate it once.
   */
  readonly teacherClasses?: WeakMap<ImageSet, Uint32Array<ArrayBuffer>>;
}

/**
 * Makes a quantized student of a network.
 *
 * @param model the trained fp32 network
 * @param data unlabelled inputs, and what to evaluate on
 * @param recipe what differs from the defaults
 * @param options device, progress and abort signal
 * @returns the student, ready for export, and the report
 * @throws UnsupportedError when the network cannot be executed
 * @throws RangeError when data and network do not fit
 * @throws GpuError when the device fails
 */
export async function distill(
  model: Graph,
  data: DistillData,
  recipe: Partial<Recipe> = {},
  options: DistillOptions = {},
): Promise<{ student: QuantizedGraph; report: Report }> {
  const complete = parseRecipe(recipe);
  const recognised = recogniseData(model, data);
  const device = options.device ?? await Device.open();
  try {
    return await run(device, model, recognised, complete, options);
  } finally {
    if (options.device === undefined) device.dispose();
  }
}

async function run(
  device: Device,
  model: Graph,
  data: RecognisedData,
  recipe: Recipe,
  { onProgress = () => {}, signal, teacherClasses = new WeakMap() }: DistillOptions,
): Promise<{ student: QuantizedGraph; report: Report }> {
  const start = performance.now();
  const prepared = prepareRun(device, model, data.calibration.count, recipe);
  const { split, batch, frontier } = prepared;
  const samples = uploadSamples(device, prepared.network, data, split, recipe, frontier.residence);
  const compiling: CompileOptions = {
    onCompiled: (done, total) => onProgress({ stage: "compile", done, total }),
    signal,
  };
  const observed = {
    batch: Math.min(batch, samples.clean),
    samples: Math.min(samples.clean, recipe.calibrationSamples),
    compiling,
  };
  const network = recipe.migration === null
    ? prepared.network
    : await migrateActivations(device, prepared.network, samples.train, recipe.migration, observed);
  using teacher = teacherValues(device, network);
  const total = samples.clean;
  onProgress({ stage: "calibrate", done: 0, total });
  const { states, exponent } = await calibrate(device, network, teacher, samples.train, {
    ...observed,
    ...observerOf(recipe),
  });
  const powers = recipe.weightObserver === "hessian"
    ? await inputPowers(device, network, teacher, samples.train, observed)
    : undefined;
  const student = createStudent(network, states, recipe, powers);
  onProgress({ stage: "calibrate", done: total, total });
  const judged = samples.heldOut.rows > 0 ? samples.heldOut : samples.train;
  const before = await measureLayers(device, network, teacher, student, judged, compiling);
  const calibrated = performance.now();

  const rolledBack = new Set<string>();
  const session: Session = {
    device,
    network,
    student,
    teacher,
    samples,
    recipe,
    batch,
    frontier,
    report: onProgress,
    signal,
    compiling,
    rolledBack,
  };
  await METHODS[recipe.method](session);
  if (recipe.reestimateBatchNorm) await reestimateBatchNorm(session);
  const after = await measureLayers(device, network, teacher, student, judged);
  const frozen = student.freeze(network.folded);
  samples.train[Symbol.dispose]();
  samples.heldOut[Symbol.dispose]();
  const distilled = performance.now();

  const classes = await evaluate(session, data, teacherClasses);
  const end = performance.now();
  const measured = network.teacher.graph.nodes.filter(({ name }) => after.has(name));
  const layers = measured.map(({ name, opType }): LayerReport => ({
    name,
    opType,
    weightBits: network.weightBits.get(name) ?? null,
    activationBits: outputBits(network, name),
    mseBefore: before.get(name)!.mse,
    mseAfter: after.get(name)!.mse,
    sqnrDb: after.get(name)!.sqnrDb,
    cosine: after.get(name)!.cosine,
    rolledBack: rolledBack.has(name),
  }));
  const seconds = (from: number, to: number) => (to - from) / 1000;
  return {
    student: frozen,
    report: {
      stilla: VERSION,
      adapter: device.adapterName,
      tunedTiles: device.target.tiles?.size ?? 0,
      method: recipe.method,
      weightBits: recipe.weightBits,
      activationBits: recipe.activationBits,
      activationRanges: recipe.activationRanges,
      activationExponent: exponent,
      seed: recipe.seed,
      streamed: frontier.residence === "host",
      notEqualized: Object.fromEntries(network.notEqualized),
      samples: { train: samples.clean, heldOut: samples.heldOut.rows },
      layers,
      network: { ...classes, sizeBytes: null, weightBytes: weightBytes(frozen) },
      seconds: {
        calibrate: seconds(start, calibrated),
        distill: seconds(calibrated, distilled),
        evaluate: seconds(distilled, end),
        total: seconds(start, end),
      },
    },
  };
}

function recogniseData(model: Graph, data: DistillData): RecognisedData {
  const size = inputSizeOf(model, model.name);
  const images = (set: NdArray | ImageSet, name: string) =>
    "layout" in set ? set : recogniseImages(set, size, name);
  const { calibration, evaluation, ...labels } = data;
  return {
    ...labels,
    calibration: images(calibration, "calibration"),
    ...(evaluation && { evaluation: images(evaluation, "evaluation") }),
  };
}

/** Normalizes and uploads the calibration inputs, with augmented copies behind the clean ones. */
function uploadSamples(
  device: Device,
  network: Network,
  { calibration, calibrationLabels }: RecognisedData,
  split: Split,
  recipe: Recipe,
  residence: Residence,
): Samples {
  const shape = network.teacher.shapes.get(network.input)!;
  const rowShape = shape.slice(1);
  const clean = normalize(calibration, split.train, recipe);
  const { channels } = calibration;
  const black = normalize(
    {
      ...calibration,
      count: 1,
      data: new (calibration.data.constructor as Uint8ArrayConstructor)(calibration.data.length),
    },
    [0],
    recipe,
  ).slice(0, channels);
  const augment = { ...recipe.augment, copies: copiesFor(recipe, shape) };
  const copies = augmentedCopies(clean, calibration, black, augment, recipe.seed);
  const { length } = split.train;
  const rows = length * (1 + copies.length);
  const train = new RowSet(device, rows, rowShape, "training inputs", { residence });
  [clean, ...copies].forEach((rows, i) => train.upload(i * length, rows));
  const held = split.heldOut.length;
  const heldOut = new RowSet(device, held, rowShape, "held-out inputs", { residence });
  heldOut.upload(0, normalize(calibration, split.heldOut, recipe));
  return {
    train,
    clean: length,
    heldOut,
    black,
    ...(calibrationLabels && {
      labels: pickLabels(calibrationLabels, calibration.count, split.train),
    }),
  };
}

/** Classes of teacher and student on the evaluation inputs. */
async function evaluate(
  { device, network, student, teacher, recipe, report, signal }: Session,
  { evaluation, evaluationLabels }: RecognisedData,
  known: WeakMap<ImageSet, Uint32Array<ArrayBuffer>>,
): Promise<Pick<Report["network"], "evaluated" | "top1Teacher" | "top1Student" | "agreement">> {
  if (evaluation === undefined) {
    return { evaluated: null, top1Teacher: null, top1Student: null, agreement: null };
  }
  const { count } = evaluation;
  const earlier = known.get(evaluation);
  const start = earlier ? 0 : count;
  const progress = (offset: number) => (done: number) => {
    signal?.throwIfAborted();
    report({ stage: "evaluate", done: offset + done, total: start + count });
  };
  const part = partBetween(network.teacher, [network.input], [network.output]);
  using values = studentValues(device, network, student, part);
  const { rows: steps } = rowsAndChannels(network.teacher.shapes.get(network.output)!);
  const classes = async (of: typeof values, offset: number) => {
    const logits = await predict(device, network, of, evaluation, recipe, progress(offset));
    return topClasses(logits, count * steps);
  };
  const teacherClasses = earlier ?? await classes(teacher, 0);
  known.set(evaluation, teacherClasses);
  const studentClasses = await classes(values, start);
  const top1 = (found: Uint32Array) =>
    evaluationLabels === undefined ? null : agreement(found, evaluationLabels);
  return {
    evaluated: count,
    top1Teacher: top1(teacherClasses),
    top1Student: top1(studentClasses),
    agreement: agreement(teacherClasses, studentClasses),
  };
}

/** Bits of the tensor that a layer's step ends with; null where it stays float. */
function outputBits(network: Network, layer: string): number | null {
  return network.activationBits.get(layerEnds(network).get(layer) ?? "") ?? null;
}

/** Bytes of weights at their bit width and biases at 32 bits, packed; of layers that stay float nothing. */
function weightBytes({ graph, weights }: QuantizedGraph): number {
  let bits = 0;
  for (const { inputs: [, weight = "", bias = ""] } of graph.nodes) {
    const tensor = weights.get(weight);
    if (tensor === undefined) continue;
    bits += tensor.values.data.length * tensor.bits;
    bits += (graph.initializers.get(bias)?.data.length ?? 0) * 32;
  }
  return Math.ceil(bits / 8);
}
