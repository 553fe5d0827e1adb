// Makes the job that all peers do, and the files that peers in other languages need of it: the network's arrays, and
// images as stilla normalizes them, so that nobody sees other numbers.
import { ndArray } from "../../src/core/nd_array.ts";
import { chooseSamples, splitHeldOut } from "../../src/data/sampler.ts";
import { normalize } from "../../src/data/image_set.ts";
import { augmentedCopies } from "../../src/distill/augmentation.ts";
import { copiesFor } from "../../src/distill/presets.ts";
import { batchNormPolicy, DEFAULT_RECIPE } from "../../src/distill/recipe.ts";
import { BLOCKWISE, learningRates, UNIT_BATCH } from "../../src/distill/stage.ts";
import { batchNormLiveSteps } from "../../src/distill/training.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import { CIFAR10, readImages, readModel } from "../resnet20.ts";
import {
  BATCH,
  convolutionOperations,
  CONVOLUTIONS,
  LSTM,
  lstmOperations,
  MATMUL_SIZES,
  matmulOperations,
  SMALL_CNN,
  smallCnn,
  TEST_IMAGES,
} from "./cases.ts";
import type { Job, RecipeJob, ResNet20Job } from "./protocol.ts";
import { smallCnnLosses } from "./reference.ts";

/** What can be asked for, with whether it works on the user's data. */
export const TOPICS = {
  "matmul": false,
  "convolution": false,
  "lstm": false,
  "small-cnn": false,
  "training": true,
  "qat": true,
  "layerwise": true,
  "inference": true,
  "recipe": true,
} as const satisfies Record<string, boolean>;

/** One of {@linkcode TOPICS}. */
export type Topic = keyof typeof TOPICS;

/** What the job is made for. */
export interface JobOptions {
  readonly topics: readonly Topic[];
  /** Folder of ResNet-20 and CIFAR-10. */
  readonly data: string | undefined;
  readonly samples: number;
  readonly threads: number;
  /** Where the peers' files go. */
  readonly folder: string;
}

/**
 * Makes the job and its files.
 *
 * @param options what to measure
 * @returns the job; topics that need data are left out when there is none
 */
export function makeJob({ topics, data, samples, threads, folder }: JobOptions): Job {
  const has = (topic: Topic) => topics.includes(topic);
  const onData = topics.some((topic) => TOPICS[topic]);
  if (onData && data !== undefined) writeFiles(folder, data);
  return {
    samples,
    threads,
    folder,
    matmuls: has("matmul")
      ? MATMUL_SIZES.map((size) => ({
        case: `matmul ${size}`,
        size,
        operations: matmulOperations(size),
      }))
      : [],
    convolutions: has("convolution")
      ? CONVOLUTIONS.map((convolution) => {
        const { channels, size } = convolution;
        const name = `conv 3x3 ${channels}ch ${size}x${size}`;
        return {
          ...convolution,
          forward: `${name}, forward`,
          backward: `${name}, forward + backward`,
          operations: convolutionOperations(convolution),
        };
      })
      : [],
    ...(has("lstm") && {
      lstm: {
        ...LSTM,
        forward: `LSTM ${LSTM.hidden}, ${LSTM.steps} steps, forward`,
        backward: `LSTM ${LSTM.hidden}, ${LSTM.steps} steps, forward + backward`,
        operations: lstmOperations(LSTM),
      },
    }),
    ...(has("small-cnn") && {
      smallCnn: {
        case: "small CNN, training step",
        network: SMALL_CNN,
        losses: smallCnnLosses(smallCnn()),
      },
    }),
    ...(onData && data !== undefined && { resnet20: resnet20Job(data, has) }),
    expected: {},
  };
}

function resnet20Job(data: string, has: (topic: Topic) => boolean): ResNet20Job {
  const name = "ResNet-20";
  return {
    data,
    ...(has("training") && {
      training: { case: `${name}, training step fp32`, learningRate: 1e-3 },
    }),
    ...(has("qat") && { qat: { case: `${name}, training step QAT`, learningRate: 1e-3 } }),
    ...(has("layerwise") && {
      layerwise: {
        case: `${name}, layer-wise, 9 blocks x 100 steps`,
        stages: [1, 2, 3].map((stage) => `${name}, layer-wise step, stage ${stage}`),
        steps: 100,
        images: 8 * BATCH,
      },
    }),
    ...(has("inference") && {
      inference: { float: `${name}, inference fp32`, int8: `${name}, inference int8` },
    }),
    recipes: has("recipe")
      ? [
        recipeJob(`${name}, default recipe W4A4`, 4),
        recipeJob(`${name}, default recipe W2A2, blocks only`, 2),
      ]
      : [],
  };
}

function recipeJob(name: string, bits: number): RecipeJob {
  const recipe = { ...DEFAULT_RECIPE, weightBits: bits, activationBits: bits };
  const steps = 100;
  return {
    case: name,
    weightBits: bits,
    activationBits: bits,
    steps,
    batch: UNIT_BATCH,
    batchNorm: batchNormPolicy(recipe),
    liveSteps: batchNormLiveSteps(recipe, steps),
    rates: learningRates(BLOCKWISE, recipe, UNIT_BATCH),
  };
}

/**
 * Writes the network's arrays as weights/<name>.npy and images, channels last: batch (the first 64 training images),
 * train and held_out (what the default recipe trains on, augmented copies included), test, and their labels.
 */
function writeFiles(folder: string, data: string): void {
  const model = readModel(data);
  Deno.mkdirSync(`${folder}/weights`);
  for (const [name, array] of model.initializers) {
    Deno.writeFileSync(`${folder}/weights/${name.replaceAll("/", "_")}.npy`, encodeNpy(array));
  }
  const { images, labels } = readImages(data, model, "train");
  const test = readImages(data, model, "test", TEST_IMAGES);
  const { samples, heldOut, seed } = DEFAULT_RECIPE;
  const copiesOfImages = copiesFor(DEFAULT_RECIPE, [
    1,
    images.height,
    images.width,
    images.channels,
  ]);
  const augment = { ...DEFAULT_RECIPE.augment, copies: copiesOfImages };
  const split = splitHeldOut(chooseSamples(images.count, samples, seed), heldOut);
  const clean = normalize(images, split.train, CIFAR10);
  const blackImages = { ...images, count: 1, data: new Uint8Array(images.data.length) };
  const black = normalize(blackImages, [0], CIFAR10).slice(0, images.channels);
  const copies = augmentedCopies(clean, images, black, augment, seed);
  const write = (name: string, rows: Float32Array<ArrayBuffer>) => {
    const { height, width, channels } = images;
    const shape = [rows.length / (height * width * channels), height, width, channels];
    Deno.writeFileSync(`${folder}/${name}.npy`, encodeNpy(ndArray("float32", shape, rows)));
  };
  const first = (count: number) => Uint32Array.from({ length: count }, (_, i) => i);
  write("batch", normalize(images, first(BATCH), CIFAR10));
  write("train", concatenate([clean, ...copies]));
  write("held_out", normalize(images, split.heldOut, CIFAR10));
  write("test", normalize(test.images, first(test.images.count), CIFAR10));
  for (
    const [name, values] of [["batch", labels.slice(0, BATCH)], ["test", test.labels]] as const
  ) {
    const array = ndArray("int32", [values.length], Int32Array.from(values));
    Deno.writeFileSync(`${folder}/${name}_labels.npy`, encodeNpy(array));
  }
}

function concatenate(parts: readonly Float32Array[]): Float32Array<ArrayBuffer> {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
