// Whole distillations of ResNet-20 as a user runs them: 1,024 unlabelled images of CIFAR-10, the default recipe
// and quicker ones, one process a run with a warm shader cache. The student is evaluated behind that; its time does not
// count. The process is this module: `deno run -A distillation.ts FOLDER RECIPE` prints what it found as JSON.
import { distill } from "../../src/distill/distill.ts";
import { agreement, predict, topClasses } from "../../src/distill/evaluate.ts";
import { NetworkValues } from "../../src/distill/inference.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { DEFAULT_RECIPE, type Recipe } from "../../src/distill/recipe.ts";
import type { Report } from "../../src/distill/report.ts";
import { Device } from "../../src/gpu/device.ts";
import { row, runModule, type Subject } from "../harness.ts";
import { CIFAR10, readImages, readModel } from "../resnet20.ts";

/** A short training that reaches the accuracy of the methods with 2,000 steps a block. */
const QUICK: Partial<Recipe> = {
  steps: 100,
  networkSteps: 0,
  augment: { copies: 1, shift: 4, flip: true },
};

/** Recipes by name, with the accuracy in percent below which something is wrong. */
const STUDENTS: readonly { name: string; recipe: Partial<Recipe>; least: number }[] = [
  { name: "W4A4", recipe: { weightBits: 4, activationBits: 4 }, least: 90.5 },
  { name: "W3A3", recipe: { weightBits: 3, activationBits: 3 }, least: 88.5 },
  { name: "W4A4, 100 steps", recipe: { ...QUICK, weightBits: 4, activationBits: 4 }, least: 90 },
  { name: "W3A3, 100 steps", recipe: { ...QUICK, weightBits: 3, activationBits: 3 }, least: 88 },
  { name: "W2A2, 100 steps", recipe: { ...QUICK, weightBits: 2, activationBits: 2 }, least: 78 },
];
const IMAGES = 1024;
/** A run as short as this compiles every shader that takes long. */
const WARM_UP: Partial<Recipe> = { steps: 1, networkSteps: 1 };

/** What a process found. */
interface Outcome {
  readonly seconds: Report["seconds"];
  /** Percent of the test images. */
  readonly top1: number;
  /** Seconds of the evaluation. */
  readonly evaluation: number;
  /** Largest resident memory seen before the evaluation, in bytes. */
  readonly memory: number;
}

/** Seconds and accuracy of whole distillations. */
export const distillation: Subject = {
  about: `whole distillations of ResNet-20 on ${IMAGES} unlabelled images`,
  needsData: true,
  onlyByName: true,
  run: async function* ({ data, seeds }) {
    for (const { name, recipe, least } of STUDENTS) {
      const run = async (changes: Partial<Recipe>) => {
        const json = JSON.stringify({ ...CIFAR10, samples: IMAGES, ...recipe, ...changes });
        return await runModule<Outcome>(import.meta.url, [data, json]);
      };
      await run(WARM_UP);
      const outcomes: { readonly result: Outcome; readonly seconds: number }[] = [];
      for (const seed of seeds) outcomes.push(await run({ seed }));
      const top1 = outcomes.map(({ result }) => result.top1);
      if (!top1.every((value) => value >= least)) {
        throw new Error(`${name}: top-1 ${top1.join(", ")}, expected at least ${least}`);
      }
      const mean = top1.reduce((sum, value) => sum + value, 0) / top1.length;
      yield row({ case: name, metric: "top-1" }, "%", top1, {
        better: "more",
        note: `mean ${mean.toFixed(2)} over seeds ${seeds.join(", ")}`,
      });
      yield row(
        { case: name, metric: "whole process" },
        "s",
        outcomes.map(({ result, seconds }) => seconds - result.evaluation),
        { note: "without the evaluation" },
      );
      for (const phase of ["calibrate", "distill"] as const) {
        const seconds = outcomes.map(({ result }) => result.seconds[phase]);
        yield row({ case: name, metric: phase }, "s", seconds);
      }
      yield row(
        { case: name, metric: "memory" },
        "MiB",
        outcomes.map(({ result }) => result.memory / 2 ** 20),
        { note: "largest resident memory before the evaluation" },
      );
    }
  },
};

/** What the process does. */
async function measure(folder: string, recipe: Partial<Recipe>): Promise<Outcome> {
  const model = readModel(folder);
  const { images: calibration } = readImages(folder, model, "train");
  let memory = 0;
  using device = await Device.open();
  const { student, report } = await distill(model, { calibration }, recipe, {
    device,
    onProgress: () => memory = Math.max(memory, Deno.memoryUsage().rss),
  });
  const start = performance.now();
  const { images, labels } = readImages(folder, model, "test");
  const network = prepareNetwork(student.graph, DEFAULT_RECIPE, false);
  const { initializers } = network.teacher.graph;
  using values = new NetworkValues(device, initializers, student.activations);
  const logits = await predict(device, network, values, images, CIFAR10);
  const top1 = 100 * agreement(topClasses(logits, images.count), labels);
  const evaluation = (performance.now() - start) / 1000;
  return { seconds: report.seconds, top1, evaluation, memory };
}

if (import.meta.main) {
  const [folder, recipe] = Deno.args as [string, string]; // of runModule() above
  console.log(JSON.stringify(await measure(folder, JSON.parse(recipe))));
}
