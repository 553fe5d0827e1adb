// The real networks of the shared data, imported once, and comparison of two tensors.
import { ok } from "node:assert/strict";
import { Rng } from "../../src/core/rng.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { sharedData } from "../_shared_data.ts";
import type { Values } from "./_evaluate.ts";

/** Path and image [C, H, W] of each network. */
export const NETWORKS = {
  resnet20: { path: "cifar10/resnet20.onnx", image: [3, 32, 32] },
  resnet8: { path: "cifar10/resnet8_mlperftiny.onnx", image: [3, 32, 32] },
  squeezenet: { path: "imagenet/squeezenet1.1.onnx", image: [3, 224, 224] },
  lenet: { path: "mnist/lenet.onnx", image: [1, 28, 28] },
  dscnn: { path: "kws/dscnn_kws_mlperftiny.onnx", image: [1, 49, 10] },
} as const;

/** Reads one of the networks. */
export function network(name: keyof typeof NETWORKS): Graph {
  const path = sharedData(NETWORKS[name].path);
  return importOnnx(Deno.readFileSync(path), { path });
}

/** Normal numbers of a shape. */
export function randomValues(seed: number, shape: readonly number[]): Values {
  const rng = new Rng(seed);
  const size = shape.reduce((product, length) => product * length, 1);
  return { shape, data: Float64Array.from({ length: size }, () => rng.normal()) };
}

/** Fails unless all elements agree within `tolerance` times the largest magnitude. */
export function assertSame(actual: Values, expected: Values, tolerance: number): void {
  ok(actual.data.length === expected.data.length, `${actual.shape} and ${expected.shape}`);
  const largest = expected.data.reduce((max, v) => Math.max(max, Math.abs(v)), 0);
  let worst = 0;
  actual.data.forEach((v, i) => {
    const error = Math.abs(v - expected.data[i]!);
    worst = Number.isNaN(error) ? Infinity : Math.max(worst, error);
  });
  ok(largest > 0, "the expected values are all zero");
  ok(worst <= tolerance * largest, `largest error ${worst} of magnitude ${largest}`);
}
