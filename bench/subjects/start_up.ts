// How long a user waits before the first training step: processes that start with an empty and with a filled shader
// cache of the driver. What compiling costs is the difference between the first and the second run of the same
// distillation in one process. The process is this module: `deno run -A start_up.ts FOLDER` prints its times as JSON.
import { distill } from "../../src/distill/distill.ts";
import { Device } from "../../src/gpu/device.ts";
import { row, runModule, type Subject } from "../harness.ts";
import { CIFAR10, readImages, readModel } from "../resnet20.ts";

/** As few images as fill whole batches of 64, held-out ones included: other batches would have shaders of their own. */
const IMAGES = 512;
const STEPS = 1;
/** Each takes as long as a whole compilation. */
const MOST_SAMPLES = 3;

/** Milliseconds. */
interface Times {
  /** From the start of the process until all modules are loaded. */
  readonly loaded: number;
  /** Adapter and device. */
  readonly opened: number;
  /** From the start of the process until the first training step is done. */
  readonly firstStep: number;
  /** The first distillation. */
  readonly first: number;
  /** The same again, everything compiled. */
  readonly second: number;
}

/** Seconds until things run. */
export const startUp: Subject = {
  about: "from the start of a process to training ResNet-20 block by block at W4A4",
  needsData: true,
  onlyByName: false,
  run: async function* ({ samples, data }) {
    const cold: Times[] = [], warm: Times[] = [];
    while (cold.length < Math.min(samples, MOST_SAMPLES)) {
      const cache = await Deno.makeTempDir({ prefix: "stilla-bench-" });
      // Where Mesa's drivers and NVIDIA's keep compiled shaders.
      const env = { MESA_SHADER_CACHE_DIR: cache, __GL_SHADER_DISK_CACHE_PATH: cache };
      try {
        for (const times of [cold, warm]) {
          times.push((await runModule<Times>(import.meta.url, [data], env)).result);
        }
      } finally {
        await Deno.remove(cache, { recursive: true });
      }
    }
    const seconds = (times: readonly Times[], value: (one: Times) => number) =>
      times.map((one) => value(one) / 1000);
    yield row({ case: "modules loaded", metric: "time" }, "s", seconds(warm, (t) => t.loaded));
    yield row({ case: "adapter and device", metric: "time" }, "s", seconds(warm, (t) => t.opened));
    for (const [name, times] of [["empty", cold], ["filled", warm]] as const) {
      const label = `${name} shader cache`;
      yield row(
        { case: label, metric: "first step" },
        "s",
        seconds(times, (t) => t.firstStep),
        { note: "since the start of the process" },
      );
      yield row(
        { case: label, metric: "compiling" },
        "s",
        seconds(times, (t) => t.first - t.second),
        { note: "first run of all blocks less the second" },
      );
    }
  },
};

/** What the process does. */
async function measure(folder: string): Promise<Times> {
  const loaded = performance.now();
  using device = await Device.open();
  const opened = performance.now() - loaded;
  const model = readModel(folder);
  const calibration = readImages(folder, model, "train", IMAGES).images;
  let firstStep = 0;
  const run = async () => {
    const start = performance.now();
    const { report } = await distill(model, { calibration }, {
      ...CIFAR10,
      weightBits: 4,
      activationBits: 4,
      steps: STEPS,
      networkSteps: 0,
    }, {
      device,
      onProgress: ({ loss }) => {
        if (loss !== undefined && firstStep === 0) firstStep = performance.now();
      },
    });
    return { time: performance.now() - start, layers: JSON.stringify(report.layers) };
  };
  const first = await run(), second = await run();
  if (first.layers !== second.layers) throw new Error("two equal distillations differ");
  return { loaded, opened, firstStep, first: first.time, second: second.time };
}

if (import.meta.main) console.log(JSON.stringify(await measure(Deno.args[0]!)));
