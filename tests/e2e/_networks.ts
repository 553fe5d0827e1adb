// The real networks of the shared data with real inputs of theirs, and what both engines make of them. How a stored
// value becomes a number of each network is what the data's README says of it.
import * as ort from "onnxruntime-node";
import { type ImageSet, inputSizeOf, recogniseImages } from "../../src/data/image_set.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import { decodeIdx } from "../../src/formats/idx.ts";
import { decodeNpy } from "../../src/formats/npy.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { sharedData } from "../_shared_data.ts";
import type { Level } from "../formats/_ort.ts";

/** (value * scale - mean) / std. */
export interface Preprocessing {
  readonly scale: number;
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

interface Entry extends Preprocessing {
  readonly model: string;
  readonly inputs: string;
  readonly labels: string;
}

const IMAGENET = {
  scale: 1 / 255,
  mean: [0.485, 0.456, 0.406],
  std: [0.229, 0.224, 0.225],
} as const;
const KWS_SCALE = 0.5847029089927673;

const CIFAR10 = { inputs: "cifar10/test_x.npy", labels: "cifar10/test_y.npy" } as const;

/** Every network; one entry a row. */
export const NETWORKS = {
  resnet20: { model: "cifar10/resnet20.onnx", ...CIFAR10, ...IMAGENET },
  resnet8: {
    model: "cifar10/resnet8_mlperftiny.onnx",
    ...CIFAR10,
    scale: 1,
    mean: [0],
    std: [1],
  },
  squeezenet: {
    model: "imagenet/squeezenet1.1.onnx",
    inputs: "imagenet/calib_x.npy",
    labels: "imagenet/calib_y.npy",
    ...IMAGENET,
  },
  lenet: {
    model: "mnist/lenet.onnx",
    inputs: "mnist/t10k-images-idx3-ubyte.gz",
    labels: "mnist/t10k-labels-idx1-ubyte.gz",
    scale: 1 / 256,
    mean: [0],
    std: [1],
  },
  dscnn: {
    model: "kws/dscnn_kws_mlperftiny.onnx",
    inputs: "kws/x_int8.npy",
    labels: "kws/y.npy",
    scale: KWS_SCALE,
    mean: [83 * KWS_SCALE],
    std: [1],
  },
} as const satisfies Record<string, Entry>;

/** One of {@linkcode NETWORKS}. */
export type NetworkName = keyof typeof NETWORKS;

/** A network with some of its inputs. */
export interface RealNetwork {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly graph: Graph;
  readonly images: ImageSet;
  readonly labels: Uint32Array<ArrayBuffer>;
  readonly preprocessing: Pick<Recipe, "scale" | "mean" | "std">;
}

/** Reads a network and its first inputs. */
export function realNetwork(name: NetworkName, count: number, first = 0): RealNetwork {
  const { model, inputs, labels, scale, mean, std } = NETWORKS[name];
  const bytes = Deno.readFileSync(sharedData(model));
  const graph = importOnnx(bytes, { path: model });
  const all = recogniseImages(readArray(inputs), inputSizeOf(graph, model), inputs);
  return {
    bytes,
    graph,
    images: part(all, first, count),
    labels: Uint32Array.from(readArray(labels).data, Number).slice(first, first + count),
    preprocessing: { scale, mean, std },
  };
}

/** `count` inputs of a set, from `first` on. */
export function part(set: ImageSet, first: number, count: number): ImageSet {
  const size = set.data.length / set.count;
  return { ...set, count, data: set.data.slice(first * size, (first + count) * size) };
}

/**
 * The inputs as numbers of the network, [N, C, H, W]: written down here once more, straight from the formula, so that
 * a mistake in the library's own normalization shows.
 */
export function channelsFirst(
  set: ImageSet,
  { scale, mean, std }: RealNetwork["preprocessing"],
  first = 0,
  count: number = set.count,
): { shape: readonly number[]; data: Float32Array<ArrayBuffer> } {
  const { channels, height, width, layout } = set;
  const size = channels * height * width;
  const data = new Float32Array(count * size);
  for (let n = 0; n < count; n++) {
    for (let c = 0; c < channels; c++) {
      const [m, s] = [mean[c % mean.length]!, std[c % std.length]!]; // one number stands for all
      for (let p = 0; p < height * width; p++) {
        const from = layout === "NCHW" ? c * height * width + p : p * channels + c;
        const value = set.data[(first + n) * size + from]!;
        data[n * size + c * height * width + p] = (value * scale! - m) / s; // every entry has a scale
      }
    }
  }
  return { shape: [count, channels, height, width], data };
}

/** Outputs of ONNX Runtime for all inputs, in batches, with one session. */
export async function runtimeLogits(
  model: Uint8Array,
  { images, preprocessing }: Pick<RealNetwork, "images" | "preprocessing">,
  { batch = 100, level = "disabled" }: { readonly batch?: number; readonly level?: Level } = {},
): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(model, {
    graphOptimizationLevel: level,
    intraOpNumThreads: 2,
    logSeverityLevel: 3,
  });
  try {
    const outputs: Float32Array[] = [];
    for (let first = 0; first < images.count; first += batch) {
      const count = Math.min(batch, images.count - first);
      const { data, shape } = channelsFirst(images, preprocessing, first, count);
      const [input, output] = [session.inputNames[0]!, session.outputNames[0]!];
      const results = await session.run({ [input]: new ort.Tensor("float32", data, shape) });
      outputs.push(results[output]!.data as Float32Array);
    }
    const logits = new Float32Array(outputs.reduce((sum, { length }) => sum + length, 0));
    outputs.reduce((at, values) => (logits.set(values, at), at + values.length), 0);
    return logits;
  } finally {
    await session.release();
  }
}

function readArray(path: string): ReturnType<typeof decodeNpy> {
  const bytes = Deno.readFileSync(sharedData(path));
  return path.endsWith(".npy") ? decodeNpy(bytes, path) : decodeIdx(bytes, path);
}
