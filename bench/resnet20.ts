// ResNet-20 and CIFAR-10, what most subjects work on: a folder with resnet20.onnx, train_x.npy, train_y.npy, test_x.npy
// and test_y.npy.
import type { ImageSet } from "../src/data/image_set.ts";
import { inputSizeOf, recogniseImages } from "../src/data/image_set.ts";
import type { LabelledImages } from "../src/distill/pretrain.ts";
import { decodeNpy } from "../src/formats/npy.ts";
import { importOnnx } from "../src/formats/onnx_import.ts";
import type { Graph } from "../src/graph/graph.ts";

/** Normalization that the network was trained with. */
export const CIFAR10 = {
  mean: [0.485, 0.456, 0.406],
  std: [0.229, 0.224, 0.225],
  scale: null,
} as const;

/** The file of the model in a folder. */
export function modelFile(folder: string): string {
  return `${folder}/resnet20.onnx`;
}

/** Reads the trained network. */
export function readModel(folder: string): Graph {
  return importOnnx(Deno.readFileSync(modelFile(folder)), { path: "resnet20.onnx" });
}

/**
 * Reads images and labels.
 *
 * @param folder of the data
 * @param model the network, for the size of its input
 * @param split training or test images
 * @param count how many of the first; default all
 * @returns the images as stored
 */
export function readImages(
  folder: string,
  model: Graph,
  split: "train" | "test",
  count = Infinity,
): LabelledImages {
  const read = (name: string) => decodeNpy(Deno.readFileSync(`${folder}/${name}`), name);
  const file = `${split}_x.npy`;
  const all = recogniseImages(read(file), inputSizeOf(model, file), file);
  const images = firstImages(all, count);
  const labels = Uint32Array.from(read(`${split}_y.npy`).data, Number).slice(0, images.count);
  return { images, labels };
}

function firstImages(set: ImageSet, wanted: number): ImageSet {
  const count = Math.min(wanted, set.count);
  return { ...set, count, data: set.data.slice(0, count * set.data.length / set.count) };
}
