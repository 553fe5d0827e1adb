// Training steps of the whole network: ResNet-20 at batch 64 in fp32 and as a W4A4 student in quantization-aware
// training, with labels alone (as other frameworks do it) and with the teacher in the loss (as the recipe does it).
import { distill } from "../../src/distill/distill.ts";
import { prepareNetwork, shapesForBatch } from "../../src/distill/network.ts";
import { floatAccuracy, trainFloat } from "../../src/distill/pretrain.ts";
import { DEFAULT_RECIPE } from "../../src/distill/recipe.ts";
import { countMacs } from "../../src/graph/cost.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { gigaRates, type Row, row, type Subject } from "../harness.ts";
import { CIFAR10, readImages, readModel } from "../resnet20.ts";
import { StepClock, stepsFor } from "../training_run.ts";

const BATCH = 64;
const IMAGES = 512;
/** Gentle enough that a trained network stays as it is. */
const LEARNING_RATE = 1e-5;
/** Both trained networks must still know as many of the images they saw; the teacher knows all but a few. */
const LEAST_ACCURACY = 0.8;

/** Steps of the whole network. */
export const networkStep: Subject = {
  about: "fp32 and QAT steps of the whole ResNet-20, batch 64",
  needsData: true,
  onlyByName: false,
  run: async function* ({ device, samples, data }) {
    const model = readModel(data);
    const { images, labels } = readImages(data, model, "train", IMAGES);
    const steps = stepsFor(samples);
    const forward = forwardOperations(model);

    const clock = new StepClock();
    const trained = await trainFloat(device, model, { images, labels }, {
      ...CIFAR10,
      epochs: steps * BATCH / images.count,
      batchSize: BATCH,
      learningRate: LEARNING_RATE,
      shift: 0,
      seed: 0,
    }, { onStep: (done) => clock.note("fp32", done) });
    checkAccuracy("fp32", await floatAccuracy(device, trained, { images, labels }, CIFAR10));
    yield* rowsOf("fp32 training", clock.times("fp32"), 3 * forward);

    for (const teacherWeight of [0, DEFAULT_RECIPE.teacherWeight]) {
      const clock = new StepClock();
      const { report } = await distill(model, {
        calibration: images,
        calibrationLabels: labels,
        evaluation: images,
        evaluationLabels: labels,
      }, {
        ...CIFAR10,
        method: "qat",
        weightBits: 4,
        activationBits: 4,
        batchSize: BATCH,
        samples: images.count,
        steps: 0,
        networkSteps: steps,
        teacherWeight,
      }, { device, onProgress: clock.onProgress });
      const name = `QAT W4A4, ${teacherWeight === 0 ? "labels" : "labels and teacher"}`;
      checkAccuracy(name, report.network.top1Student ?? NaN);
      const passes = teacherWeight === 0 ? 3 : 4;
      yield* rowsOf(name, clock.times("qat"), passes * forward);
    }
  },
};

function* rowsOf(name: string, times: readonly number[], operations: number): Generator<Row> {
  yield row({ case: name, metric: "step" }, "ms", times);
  yield row({ case: name, metric: "rate" }, "GFLOP/s", gigaRates(operations, times), {
    note: "convolutions and products of all passes over the whole step",
  });
}

/** Multiplications and additions of a forward pass; a gradient of weights or inputs takes as many. */
function forwardOperations(model: Graph): number {
  const { teacher } = prepareNetwork(model, DEFAULT_RECIPE, false);
  const macs = countMacs(teacher.graph, shapesForBatch(teacher, BATCH));
  return 2 * macs.values().reduce((sum, count) => sum + count, 0);
}

function checkAccuracy(name: string, accuracy: number): void {
  if (accuracy >= LEAST_ACCURACY) return;
  throw new Error(`${name}: ${accuracy} of the training images are right after training`);
}
