// ResNet-20 in stilla: training steps, distillation and inference, by the functions a user calls.
import { cutIntoBlocks } from "../../src/graph/blocks.ts";
import { distill, type Progress } from "../../src/distill/distill.ts";
import { topClasses } from "../../src/distill/evaluate.ts";
import {
  NetworkValues,
  partBetween,
  recordForward,
  teacherValues,
} from "../../src/distill/inference.ts";
import { fakeQuantizeInput } from "../../src/distill/input_quantizer.ts";
import { type Network, prepareNetwork } from "../../src/distill/network.ts";
import { type LabelledImages, trainFloat } from "../../src/distill/pretrain.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import { normalize } from "../../src/data/image_set.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { row, wallTimes } from "../harness.ts";
import { CIFAR10, readImages, readModel } from "../resnet20.ts";
import { StepClock, stepsFor } from "../training_run.ts";
import { BATCH, TEST_IMAGES } from "./cases.ts";
import {
  attempt,
  type Job,
  type RecipeJob,
  type ResNet20Job,
  say,
  STUDENT_FILE,
} from "./protocol.ts";

/** Bits play no part in fp32 inference; preparing a network asks for them. */
const NO_BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };
/** The images as they are. */
const PLAIN = { copies: 1, shift: 0, flip: false };
/** Images for the ranges of the int8 student. */
const CALIBRATION_IMAGES = 256;

/** What every case here works with. */
interface Setting {
  readonly device: Device;
  readonly job: Job;
  readonly model: Graph;
  readonly data: string;
}

/**
 * Measures everything that the job asks for.
 *
 * @param device where
 * @param job samples and the folder for other peers' files
 * @param resnet20 the cases
 */
export async function measureResNet20(
  device: Device,
  job: Job,
  resnet20: ResNet20Job,
): Promise<void> {
  const { data, training, qat, layerwise, inference, recipes } = resnet20;
  const setting: Setting = { device, job, model: readModel(data), data };
  if (training) await attempt(training.case, () => measureTraining(setting, training));
  if (qat) await attempt(qat.case, () => measureQat(setting, qat.case));
  if (layerwise) await attempt(layerwise.case, () => measureLayerwise(setting, layerwise));
  if (inference) await measureInference(setting, inference);
  for (const recipe of recipes) await attempt(recipe.case, () => measureRecipe(setting, recipe));
}

/** All weights, fp32, Adam. Every mini-batch holds the same 64 images, so that all peers see the same loss. */
async function measureTraining(
  { device, job, model, data }: Setting,
  { case: name, learningRate }: { readonly case: string; readonly learningRate: number },
): Promise<void> {
  const images = firstImages(model, data, BATCH);
  const recipe = { ...CIFAR10, batchSize: BATCH, learningRate, shift: 0, seed: 0 };
  const losses: number[] = [];
  await trainFloat(device, model, images, { ...recipe, epochs: 1 }, {
    onStep: (_done, _total, loss) => losses.push(loss),
  });
  say({ expected: { "loss before training": losses } });
  const clock = new StepClock();
  await trainFloat(device, model, images, { ...recipe, epochs: stepsFor(job.samples) }, {
    onStep: (done) => clock.note(name, done),
  });
  say({ row: row({ case: name, metric: "time" }, "ms", clock.times(name)) });
}

/** All weights, 8-bit fake quantizers with learned scales, live batch norm, labels alone. */
async function measureQat({ device, job, model, data }: Setting, name: string): Promise<void> {
  const { images, labels } = firstImages(model, data, BATCH);
  const clock = new StepClock();
  await distill(model, { calibration: images, calibrationLabels: labels }, {
    ...CIFAR10,
    method: "qat",
    teacherWeight: 0,
    batchNorm: "live",
    samples: BATCH,
    heldOut: 0,
    augment: PLAIN,
    batchSize: BATCH,
    networkSteps: stepsFor(job.samples),
  }, { device, onProgress: clock.onProgress });
  say({ row: row({ case: name, metric: "time" }, "ms", clock.times("qat")) });
}

/** Block after block on the teacher's activations, 8 bit. */
async function measureLayerwise(
  { device, model, data }: Setting,
  { case: name, stages, steps, images: count }: NonNullable<ResNet20Job["layerwise"]>,
): Promise<void> {
  const { images } = firstImages(model, data, count);
  // The first and the last unit are the layers before and behind the residual blocks.
  const units = cutIntoBlocks(prepareNetwork(model, NO_BITS, false).teacher.graph);
  const blocks = units.slice(1, -1).map((unit) => unit.name);
  const recipe: Partial<Recipe> = {
    ...CIFAR10,
    samples: count,
    heldOut: 0,
    augment: PLAIN,
    inputMode: "teacher",
    batchSize: BATCH,
  };
  // Compiles the kernels.
  await distill(model, { calibration: images }, { ...recipe, steps: 1 }, { device });
  const clock = new StepClock();
  const ends = new Map<string, number>();
  await distill(model, { calibration: images }, { ...recipe, steps }, {
    device,
    onProgress: (progress: Progress) => {
      clock.onProgress(progress);
      if (progress.unit !== undefined) ends.set(progress.unit, performance.now());
    },
  });
  stages.forEach((stage, i) => {
    const times = blocks.slice(3 * i, 3 * i + 3).flatMap((block) => clock.times(block));
    say({ row: row({ case: stage, metric: "time" }, "ms", times) });
  });
  const seconds = (ends.get(blocks.at(-1)!)! - ends.get(units[0]!.name)!) / 1000;
  const note = "teacher's activations included";
  say({ row: row({ case: name, metric: "time" }, "s", [seconds], { note }) });
}

/** From images on the host to logits on the host. */
async function measureInference(
  setting: Setting,
  { float, int8 }: NonNullable<ResNet20Job["inference"]>,
): Promise<void> {
  const { device, job, model, data } = setting;
  await attempt(float, async () => {
    const network = prepareNetwork(model, NO_BITS, false);
    using values = teacherValues(device, network);
    const { logits, times } = await inferenceTimes(setting, network, values);
    say({ expected: { logits: [...logits] } });
    say({ row: row({ case: float, metric: "time" }, "ms", times) });
  });
  await attempt(int8, async () => {
    const { images } = firstImages(model, data, CALIBRATION_IMAGES);
    const { student } = await distill(model, { calibration: images }, {
      ...CIFAR10,
      method: "ptq",
      samples: CALIBRATION_IMAGES,
      heldOut: 0,
      augment: PLAIN,
    }, { device });
    Deno.writeFileSync(`${job.folder}/${STUDENT_FILE}`, exportOnnx(student));
    const network = prepareNetwork(student.graph, NO_BITS, false);
    const { initializers } = network.teacher.graph;
    using values = new NetworkValues(device, initializers, student.activations);
    const { logits, times } = await inferenceTimes(setting, network, values);
    say({ expected: { "int8 classes": [...topClasses(logits, BATCH)] } });
    const note = "integers as the float32 numbers they stand for";
    say({ row: row({ case: int8, metric: "time" }, "ms", times, { note }) });
  });
}

async function inferenceTimes(
  { device, job, model, data }: Setting,
  network: Network,
  values: NetworkValues,
): Promise<{ logits: Float32Array; times: number[] }> {
  const { images } = firstImages(model, data, BATCH);
  const pixels = normalize(images, Uint32Array.from({ length: BATCH }, (_, i) => i), CIFAR10);
  const part = partBetween(network.teacher, [network.input], [network.output]);
  using plan = new Plan(device);
  const x = plan.tensor([BATCH, images.height, images.width, images.channels], network.input);
  const input = fakeQuantizeInput(plan, x, values.quantizer(network.input));
  const results = recordForward(plan, part, values, new Map([[network.input, input]]));
  const infer = () => {
    device.upload(x, pixels);
    plan.replay();
    return device.read(results.get(network.output)!);
  };
  return { logits: await infer(), times: await wallTimes(job.samples, infer) };
}

/** The default recipe but for its bits, without a stage for the whole network, from a calibrated start. */
async function measureRecipe(
  { device, model, data }: Setting,
  { case: name, weightBits, activationBits, steps }: RecipeJob,
): Promise<void> {
  const calibration = readImages(data, model, "train").images;
  const test = readImages(data, model, "test", TEST_IMAGES);
  const recipe: Partial<Recipe> = { ...CIFAR10, weightBits, activationBits, networkSteps: 0 };
  // Compiles the kernels.
  await distill(model, { calibration }, { ...recipe, steps: 1 }, { device });
  const { report } = await distill(
    model,
    { calibration, evaluation: test.images, evaluationLabels: test.labels },
    { ...recipe, steps },
    { device },
  );
  const note = "training with its held-out checks, from a calibrated start";
  say({ row: row({ case: name, metric: "time" }, "s", [report.seconds.distill], { note }) });
  const top1 = 100 * (report.network.top1Student ?? NaN);
  say({ row: row({ case: name, metric: "top-1" }, "%", [top1], { better: "more" }) });
}

function firstImages(model: Graph, data: string, count: number): LabelledImages {
  return readImages(data, model, "train", count);
}
