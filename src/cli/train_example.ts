// Entry of `deno task train-example`: trains the built-in example's teacher from scratch and writes it as ONNX.
import { parseRecipe } from "../distill/recipe.ts";
import { floatAccuracy, trainFloat } from "../distill/pretrain.ts";
import { VERSION } from "../distill/report.ts";
import { exportOnnx } from "../formats/onnx_export.ts";
import { Device } from "../gpu/device.ts";
import { readInputs, readJson, readLabels } from "../run/input_files.ts";
import { mnistExample } from "../run/mnist_example.ts";
import { mnistNetwork } from "../run/mnist_network.ts";
import { duration } from "./progress.ts";

const SEED = 1;
const EPOCHS = 10;
const CLASSES = 10;
const INPUT_SIZE = { channels: 1, height: 28, width: 28 };
/** Steps between two lines. */
const STEPS_PER_LINE = 100;

if (import.meta.main) await trainExample();

/** Trains, measures on the test images and writes the file. */
async function trainExample(): Promise<void> {
  const files = mnistExample();
  const { mean, std, scale } = parseRecipe(await readJson(files.recipe));
  const read = async (images: string, labels: string) => {
    const set = await readInputs(images, INPUT_SIZE);
    return {
      images: set,
      labels: await readLabels(labels, { count: set.count, classes: CLASSES }),
    };
  };
  const train = await read(files.calibration, files.calibrationLabels);
  const test = await read(files.evaluate, files.labels);
  using device = await Device.open();
  console.error(`training on ${device.adapterName}`);
  const recipe = { mean, std, scale, epochs: EPOCHS, batchSize: 128, learningRate: 4e-3, shift: 2 };
  const start = performance.now();
  const network = await trainFloat(device, mnistNetwork(SEED), train, { ...recipe, seed: SEED }, {
    onStep: (done, total, loss) => {
      if (done % STEPS_PER_LINE !== 0 && done !== total) return;
      const elapsed = performance.now() - start;
      const left = duration(elapsed * (total - done) / done);
      console.error(`step ${done}/${total}  loss ${loss.toFixed(4)}  ${left} left`);
    },
  });
  const accuracy = await floatAccuracy(device, network, test, recipe);
  const bytes = exportOnnx(network, { producerVersion: VERSION });
  await Deno.writeFile(files.model, bytes);
  const percent = (accuracy * 100).toFixed(2);
  console.log(`top-1 ${percent} % of ${test.images.count} test images after ${EPOCHS} epochs`);
  console.log(`wrote ${files.model}, ${(bytes.length / 1024).toFixed(1)} KiB`);
}
