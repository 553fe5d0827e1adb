// Training steps of single blocks, where our users' time goes: ResNet-20 distilled block by block at W4A4, batch 64, with
// batch norm folded and live. One plain run gives the time of a step; a second, profiled one, what the adapter does in it.
// What the two say together, the idle share, needs a machine that does nothing else.
import type { ImageSet } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import { Device } from "../../src/gpu/device.ts";
import { Profiler } from "../../src/gpu/profiler.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { gigaRates, median, type Row, row, type Subject } from "../harness.ts";
import { CIFAR10, readImages, readModel } from "../resnet20.ts";
import {
  checkImproved,
  type ResidualBlock,
  residualBlocks,
  StepClock,
  stepsFor,
} from "../training_run.ts";

const BATCH = 64;
/** The time of a step does not depend on how many there are. */
const IMAGES = 512;
/** Steps of a block in the comparison with other frameworks. */
const COMPARED_STEPS = 100;
/** Timings of a profiled block: what a kernel takes hardly varies. */
const MOST_PROFILED = 4;
/** Kernels of convolutions and products, with the sums of their parts. */
const PRODUCTS = /^(conv2d|depthwise|gemm)/;

/** Milliseconds of one step on the adapter. */
interface BusyStep {
  readonly all: number;
  /** Convolutions and products. */
  readonly products: number;
}

/** Steps of residual blocks. */
export const blockStep: Subject = {
  about: "Adam steps of ResNet-20's blocks, distilled block by block at W4A4, batch 64",
  needsData: true,
  onlyByName: false,
  run: async function* ({ device, samples, data }) {
    const model = readModel(data);
    const { images } = readImages(data, model, "train", IMAGES);
    const blocks = residualBlocks(model, BATCH);
    for (const batchNorm of ["folded", "live"] as const) {
      const recipe: Partial<Recipe> = {
        ...CIFAR10,
        weightBits: 4,
        activationBits: 4,
        batchNorm,
        batchSize: BATCH,
        samples: IMAGES,
        steps: stepsFor(samples),
        networkSteps: 0,
      };
      const clock = new StepClock();
      const { report } = await distill(model, { calibration: images }, recipe, {
        device,
        onProgress: clock.onProgress,
      });
      checkImproved(report);
      const steps = stepsFor(Math.min(samples, MOST_PROFILED));
      const busy = await profile(model, images, { ...recipe, steps });
      yield* rowsOf(`batch norm ${batchNorm}`, blocks, clock, busy);
    }
  },
};

function* rowsOf(
  policy: string,
  blocks: readonly ResidualBlock[],
  clock: StepClock,
  busy: ReadonlyMap<string, readonly BusyStep[]>,
): Generator<Row> {
  for (const [i, channels] of [16, 32, 64].entries()) {
    const own = blocks.filter((block) => block.channels === channels);
    const name = `stage ${i + 1} block, ${policy}`;
    const times = own.flatMap((block) => clock.times(block.name));
    const rates = own.flatMap(({ name, operations }) => gigaRates(operations, clock.times(name)));
    const steps = own.flatMap((block) => busy.get(block.name) ?? []);
    const note = `${own.length} blocks`;
    yield row({ case: name, metric: "step" }, "ms", times, { note });
    yield row({ case: name, metric: "rate" }, "GFLOP/s", rates, {
      note: "convolutions of forward and backward pass over the whole step",
    });
    yield row(
      { case: name, metric: "not products" },
      "%",
      steps.map(({ all, products }) => 100 * (1 - products / all)),
      { note: "of the adapter's time, outside convolutions and products" },
    );
    yield row(
      { case: name, metric: "idle" },
      "%",
      own.map(({ name }) => {
        const used = Math.min(...(busy.get(name) ?? []).map(({ all }) => all));
        return 100 * (1 - used / Math.min(...clock.times(name)));
      }),
      { note: "1 - adapter's time / wall time, the best of two runs" },
    );
  }
  const totalOf = (choose: (times: readonly number[]) => number) =>
    blocks.reduce((sum, { name }) => sum + choose(clock.times(name)) * COMPARED_STEPS / 1000, 0);
  const name = `${blocks.length} blocks x ${COMPARED_STEPS} steps, ${policy}`;
  yield {
    ...row({ case: name, metric: "time" }, "s", [totalOf(median)]),
    best: totalOf((times) => Math.min(...times)),
    note: "sum of the blocks' steps",
  };
}

/** The adapter's time in steps of each block; the steps before a block's first report do not count. */
async function profile(
  model: Graph,
  calibration: ImageSet,
  recipe: Partial<Recipe>,
): Promise<ReadonlyMap<string, readonly BusyStep[]>> {
  const profiler = new Profiler();
  using device = await Device.open({ profiler });
  const stages: { readonly name: string; readonly unit: string; steps: number }[] = [];
  let before = 0;
  await distill(model, { calibration }, recipe, {
    device,
    onProgress: ({ unit, done, loss }) => {
      const last = stages.at(-1);
      if (last?.name === profiler.stage && last.unit === unit) last.steps = done - before;
      before = done;
      profiler.stage = "";
      if (unit === undefined || loss === undefined) return;
      profiler.stage = `${unit} from ${done}`;
      stages.push({ name: profiler.stage, unit, steps: 0 });
    },
  });
  const busy = new Map<string, BusyStep[]>();
  for (const { name, unit, steps } of stages) {
    // What follows a block's last report is not training.
    if (steps === 0) continue;
    const own = profiler.times.filter(({ stage }) => stage === name);
    const sum = (times: typeof own) =>
      times.reduce((total, { nanoseconds }) => total + nanoseconds / 1e6 / steps, 0);
    const products = own.filter(({ label }) => PRODUCTS.test(label));
    const found = busy.get(unit) ?? [];
    found.push({ all: sum(own), products: sum(products) });
    busy.set(unit, found);
  }
  return busy;
}
