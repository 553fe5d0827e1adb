// ONNX Runtime as the reference: runs a model at one of its graph optimization levels.
import * as ort from "onnxruntime-node";

/** Every level; "disabled" executes the file literally, the others fuse QDQ into integer kernels. */
export const LEVELS = ["disabled", "basic", "extended", "all"] as const;

/** One of {@linkcode LEVELS}. */
export type Level = typeof LEVELS[number];

/**
 * @param model the ONNX file
 * @param inputs shape and values by input name
 * @param level graph optimization level
 * @returns values by output name
 */
export async function runOrt(
  model: Uint8Array,
  inputs: Readonly<Record<string, { shape: readonly number[]; data: Float32Array }>>,
  level: Level = "disabled",
): Promise<Record<string, Float32Array>> {
  const session = await ort.InferenceSession.create(model, {
    graphOptimizationLevel: level,
    intraOpNumThreads: 1,
    logSeverityLevel: 3,
  });
  try {
    const feeds = Object.fromEntries(
      Object.entries(inputs).map(([name, { shape, data }]) => [
        name,
        new ort.Tensor("float32", data, shape),
      ]),
    );
    const results = await session.run(feeds);
    return Object.fromEntries(
      Object.entries(results).map(([name, tensor]) => [name, tensor.data as Float32Array]),
    );
  } finally {
    await session.release();
  }
}
