// Training of an fp32 network from scratch: cross-entropy, Adam with a cosine schedule (Loshchilov, Hutter 2017), batch
// norm on the statistics of the batch, images shifted anew in every step. It makes the teacher of the built-in example.
import { gatherWords } from "../../kernels/gather.ts";
import { crossEntropy } from "../../kernels/softmax.ts";
import { type ImageSet, normalize } from "../data/image_set.ts";
import { batchTable } from "../data/sampler.ts";
import type { Device } from "../gpu/device.ts";
import type { Graph } from "../graph/graph.ts";
import { simplify } from "../graph/simplify.ts";
import { rowsAndChannels } from "../ops/context.ts";
import { recordAugmentation, transformTable } from "./augmentation.ts";
import { agreement, predict, topClasses } from "./evaluate.ts";
import { FloatParameters } from "./float_parameters.ts";
import { RowSet } from "./frontier.ts";
import { NetworkValues, partBetween, teacherValues } from "./inference.ts";
import { MiniBatches } from "./mini_batches.ts";
import { prepareNetwork } from "./network.ts";
import { recordRowLoss } from "./network_training.ts";
import type { Recipe } from "./recipe.ts";
import { OPTIMIZATION } from "./optimization.ts";
import { trainParameters } from "./training.ts";

/** Labelled inputs. */
export interface LabelledImages {
  readonly images: ImageSet;
  /** One class number an image. */
  readonly labels: Uint32Array<ArrayBuffer>;
}

/** How a network is trained and measured. */
export interface FloatTrainingRecipe extends Pick<Recipe, "mean" | "std" | "scale"> {
  /** Passes over the images; may be a fraction. */
  readonly epochs: number;
  readonly batchSize: number;
  readonly learningRate: number;
  /** Largest shift of an image, in pixels. */
  readonly shift: number;
  /** Of the order and the shifts. */
  readonly seed: number;
}

/** Who watches a training. */
export interface FloatTrainingOptions {
  /** Called now and then with the steps done, of `total`, and the newest loss. */
  readonly onStep?: (done: number, total: number, loss: number) => void;
  readonly signal?: AbortSignal;
}

/** Part of a batch's statistics in the running ones. */
const BATCH_NORM_MOMENTUM = 0.05;
/** Images that are uploaded at a time. */
const UPLOAD_ROWS = 4096;
/** Bits play no part here; preparing a network asks for them. */
const NO_BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };

/**
 * Trains every weight, bias, gamma and beta of a network, from the values it has.
 *
 * @param device where to train
 * @param model the network; batch norms must follow a Conv or Gemm
 * @param data images and labels
 * @param recipe how
 * @param options progress and abort signal
 * @returns the network, simplified, with trained weights and running statistics
 * @throws UnsupportedError when the network cannot be executed
 * @throws DivergedError when the loss is not finite
 */
export async function trainFloat(
  device: Device,
  model: Graph,
  { images, labels }: LabelledImages,
  recipe: FloatTrainingRecipe,
  { onStep = () => {}, signal }: FloatTrainingOptions = {},
): Promise<Graph> {
  const { trained, input, output } = prepareNetwork(model, NO_BITS, true);
  const batch = Math.min(recipe.batchSize, images.count);
  const steps = Math.ceil(recipe.epochs * images.count / batch);
  const rowShape = trained.shapes.get(input)!.slice(1);
  using rows = uploadImages(device, images, rowShape, recipe);
  using constants = new NetworkValues(device, trained.graph.initializers, new Map());
  const table = batchTable(images.count, batch, steps, recipe.seed);
  const transformWords = transformTable(
    { shift: recipe.shift, flip: false },
    table.length,
    recipe.seed,
  );
  using batches = new MiniBatches(device, table, batch);
  const words = device.uint32(table.map((index) => labels[index]!), { label: "labels" });
  const transforms = device.uint32(transformWords, { label: "transforms" });
  const black = device.fromArray([images.channels], blackPixel(images, recipe), { label: "black" });
  let parameters: FloatParameters | undefined;
  await trainParameters({
    device,
    part: partBetween(trained, [input], [output]),
    constants,
    steps,
    batch,
    batchNormLiveSteps: steps,
    keep: new Set(),
    terms: 1,
    onStep: (done, loss) => onStep(done, steps, loss),
    signal,
    compiling: { signal },
    inputs: (plan, state) => {
      const gathered = rows.recordGather(plan, batches, state, input);
      const tables = { transforms, black, state };
      return new Map([[input, recordAugmentation(plan, gathered, tables, steps)]]);
    },
    recordLosses: (context) => {
      const { plan, state } = context;
      const logits = context.values.get(output)!;
      const { rows: count, channels: classes } = rowsAndChannels(logits.shape);
      const labelBatch = plan.tensor([batch], "labels of the batch");
      plan.run(gatherWords({ batch, steps }), { words, state, y: labelBatch });
      recordRowLoss(
        context,
        logits,
        count,
        { terms: 1, term: 0 },
        (loss, dlogits) =>
          plan.run(crossEntropy({ rows: count, classes }), {
            logits,
            labels: labelBatch,
            loss,
            dlogits,
          }),
      );
    },
  }, {
    make: (state) =>
      parameters = new FloatParameters(device, trained, state, {
        learningRate: recipe.learningRate,
        batchNormMomentum: BATCH_NORM_MOMENTUM,
        beta1: OPTIMIZATION.beta1,
        beta2: OPTIMIZATION.beta2,
      }),
    quantized: new Set(),
  });
  for (const tensor of [words, transforms, black]) device.release(tensor);
  const graph = simplify(model);
  return {
    ...graph,
    initializers: new Map([...graph.initializers, ...parameters?.stored ?? []]),
  };
}

/**
 * Top-1 accuracy of an fp32 network.
 *
 * @param device where to run
 * @param model the network
 * @param data images and labels
 * @param normalization of the images
 * @returns fraction of right answers
 */
export async function floatAccuracy(
  device: Device,
  model: Graph,
  { images, labels }: LabelledImages,
  normalization: Pick<Recipe, "mean" | "std" | "scale">,
): Promise<number> {
  const network = prepareNetwork(model, NO_BITS, false);
  using values = teacherValues(device, network);
  const logits = await predict(device, network, values, images, normalization);
  return agreement(topClasses(logits, images.count), labels);
}

function uploadImages(
  device: Device,
  images: ImageSet,
  rowShape: readonly number[],
  recipe: FloatTrainingRecipe,
): RowSet {
  const rows = new RowSet(device, images.count, rowShape, "training images");
  for (let first = 0; first < images.count; first += UPLOAD_ROWS) {
    const size = Math.min(UPLOAD_ROWS, images.count - first);
    const indices = Uint32Array.from({ length: size }, (_, i) => first + i);
    rows.upload(first, normalize(images, indices, recipe));
  }
  return rows;
}

/** [C]: a black pixel after normalization. */
function blackPixel(images: ImageSet, recipe: FloatTrainingRecipe): Float32Array<ArrayBuffer> {
  const size = images.data.length / images.count;
  const black: ImageSet = { ...images, count: 1, data: new Uint8Array(size), dtype: "uint8" };
  return normalize(black, [0], recipe).slice(0, images.channels);
}
