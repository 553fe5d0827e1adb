// The deployable weights of a quantized network as plain files: one .npy for each array and a manifest.json that says
// which tensor it belongs to. Ten lines of any language read it; nothing of ONNX is needed.
import type { NdArray } from "../core/nd_array.ts";
import { FormatError } from "../core/errors.ts";
import {
  type ActivationQParams,
  type QTensor,
  type QuantizedGraph,
  type ScaleBlocks,
  scaleIndices,
  scaleShape,
} from "../graph/quantized_graph.ts";
import { ndArray, sizeOf } from "../core/nd_array.ts";
import { safeFileName } from "./file_name.ts";
import { decodeNpy, encodeNpy } from "./npy.ts";
import { parseStrictJson } from "./strict_json.ts";
import { decodeUtf8, quoteName } from "./untrusted.ts";
import { readManifest, type TensorEntry } from "./weight_manifest.ts";

/** Name of the file that lists the others. */
export const MANIFEST_NAME = "manifest.json";

/** What a weight bundle holds. */
export interface WeightBundle {
  /** Name of the graph. */
  readonly network: string;
  readonly weights: ReadonlyMap<string, QTensor>;
  readonly biases: ReadonlyMap<string, QTensor>;
  /** Initializers that are not quantized and that nodes read, e.g. the weights of a layer left in float. */
  readonly constants: ReadonlyMap<string, NdArray>;
  readonly activations: ReadonlyMap<string, ActivationQParams>;
  /** Names of the layers that quantize their input with the range it has at run time; absent where none does. */
  readonly dynamicLayers?: ReadonlySet<string>;
}

/**
 * Writes the integers, scales and zero points of a network as files.
 *
 * @param model a frozen student
 * @returns the files by name: `manifest.json` and .npy files, names safe on every file system
 * @example
 * ```ts ignore
 * for (const [name, bytes] of encodeWeightBundle(model)) Deno.writeFileSync(`out/${name}`, bytes);
 * ```
 */
export function encodeWeightBundle(model: QuantizedGraph): Map<string, Uint8Array<ArrayBuffer>> {
  const files = new Map<string, Uint8Array<ArrayBuffer>>();
  const taken = new Set([MANIFEST_NAME]);
  const add = (tensor: string, part: string, array: NdArray): string => {
    const name = safeFileName(tensor, part === "" ? ".npy" : `.${part}.npy`, taken);
    files.set(name, encodeNpy(array));
    return name;
  };
  const describe = ([tensor, quantized]: [string, QTensor]) => {
    const { values, scale, zeroPoint, axis, blockSize, bits } = quantized;
    const shape = scaleFileShape(values.shape, quantized);
    return {
      tensor,
      shape: values.shape,
      dtype: values.dtype,
      bits,
      axis,
      ...(blockSize !== undefined && { blockSize }),
      files: {
        values: add(tensor, "values", values),
        scale: add(tensor, "scale", ndArray("float32", shape, scale)),
        zeroPoint: add(tensor, "zero_point", ndArray("int32", shape, zeroPoint)),
      },
    };
  };
  const read = new Set(model.graph.nodes.flatMap((node) => node.inputs));
  const constants = [...model.graph.initializers].filter(([name]) =>
    read.has(name) && !model.weights.has(name) && !model.biases.has(name)
  );
  const manifest = {
    format: "stilla-weights",
    version: 1,
    network: model.graph.name,
    formula: "value = scale * (code - zeroPoint)",
    weights: [...model.weights].map(describe),
    biases: [...model.biases].map(describe),
    constants: constants.map(([tensor, array]) => ({
      tensor,
      shape: array.shape,
      dtype: array.dtype,
      file: add(tensor, "", array),
    })),
    activations: [...model.activations].map(([tensor, qparams]) => ({
      tensor,
      dtype: qparams.quantMin >= 0 ? "uint8" : "int8",
      scale: qparams.scale,
      zeroPoint: qparams.zeroPoint,
      quantMin: qparams.quantMin,
      quantMax: qparams.quantMax,
      bits: qparams.bits,
      ...(qparams.thresholds && { thresholds: [...qparams.thresholds] }),
    })),
    ...(model.dynamicLayers && { dynamicLayers: [...model.dynamicLayers] }),
  };
  const text = `${JSON.stringify(manifest, undefined, 2)}\n`;
  return new Map([[MANIFEST_NAME, new TextEncoder().encode(text)], ...files]);
}

/**
 * Reads a weight bundle back and checks every array against the manifest.
 *
 * @param files contents by file name
 * @param path name of the folder, for messages
 * @returns the tensors
 * @throws FormatError when a file is missing or damaged or contradicts the manifest
 */
export function decodeWeightBundle(
  files: ReadonlyMap<string, Uint8Array>,
  path = "weights",
): WeightBundle {
  const manifestPath = `${path}/${MANIFEST_NAME}`;
  const manifestBytes = files.get(MANIFEST_NAME);
  if (manifestBytes === undefined) throw new FormatError(manifestPath, "", "the file is missing");
  const manifestError = (detail: string) => new FormatError(manifestPath, "", detail);
  const text = decodeUtf8(manifestBytes, manifestError);
  const manifest = readManifest(parseStrictJson(text, manifestPath), manifestPath);
  const load = (name: string): NdArray => {
    const bytes = files.get(name);
    if (bytes === undefined) throw manifestError(`file ${quoteName(name)} is missing`);
    return decodeNpy(bytes, `${path}/${name}`);
  };
  const readAll = (entries: readonly TensorEntry[]) =>
    new Map(entries.map((entry) => [entry.tensor, readQTensor(entry, load, path)]));
  return {
    network: manifest.network,
    weights: readAll(manifest.weights),
    biases: readAll(manifest.biases),
    constants: new Map(manifest.constants.map((entry) => {
      const array = load(entry.file);
      expectArray(array, entry.dtype, entry.shape, `${path}/${entry.file}`);
      return [entry.tensor, array];
    })),
    activations: new Map(manifest.activations.map(({ tensor, ...qparams }) => [tensor, qparams])),
    ...(manifest.dynamicLayers && { dynamicLayers: new Set(manifest.dynamicLayers) }),
  };
}

function readQTensor(entry: TensorEntry, load: (name: string) => NdArray, path: string): QTensor {
  const { files, axis, bits, shape, dtype, blockSize } = entry;
  const values = load(files.values);
  expectArray(values, dtype, shape, `${path}/${files.values}`);
  const scalesShape = scaleFileShape(shape, entry);
  const scale = load(files.scale);
  expectArray(scale, "float32", scalesShape, `${path}/${files.scale}`);
  const zeroPoint = load(files.zeroPoint);
  expectArray(zeroPoint, "int32", scalesShape, `${path}/${files.zeroPoint}`);
  // expectArray has checked the dtypes that the casts below name.
  const scales = scale.data as Float32Array<ArrayBuffer>;
  const bad = scales.findIndex((step) => !(step > 0 && Number.isFinite(step)));
  if (bad >= 0) {
    throw new FormatError(
      `${path}/${files.scale}`,
      `element ${bad}`,
      `scale is ${scales[bad]}, expected a finite number above 0`,
    );
  }
  const integers = values as NdArray<"int8"> | NdArray<"int32">;
  checkSpan(integers, entry, `${path}/${files.values}`);
  return {
    values: integers,
    scale: scales,
    zeroPoint: zeroPoint.data as Int32Array<ArrayBuffer>,
    axis,
    ...(blockSize !== undefined && { blockSize }),
    bits,
  };
}

/** One scale in all has a file of one number. */
function scaleFileShape(shape: readonly number[], blocks: ScaleBlocks): number[] {
  return blocks.axis < 0 ? [1] : scaleShape(shape, blocks);
}

/**
 * A channel's codes are 2^bits neighbouring integers that hold 0, e.g. -8..7, mirrored -7..8, or -3..12; or, in a tensor
 * of odd codes only, as many of those, -15..15: both ends of a range are levels (DoReFa).
 */
function checkSpan(
  { data, shape }: NdArray<"int8"> | NdArray<"int32">,
  { bits, ...blocks }: Pick<TensorEntry, "axis" | "blockSize" | "bits">,
  path: string,
): void {
  const indices = scaleIndices(shape, blocks);
  const channels = sizeOf(scaleShape(shape, blocks));
  const low = new Float64Array(channels), high = new Float64Array(channels);
  const most = data.every((code) => code % 2 !== 0) ? 2 ** (bits + 1) - 2 : 2 ** bits - 1;
  data.forEach((code, i) => {
    const channel = indices[i]!;
    low[channel] = Math.min(low[channel]!, code);
    high[channel] = Math.max(high[channel]!, code);
    if (high[channel]! - low[channel]! <= most) return;
    throw new FormatError(
      path,
      `element ${i}`,
      `code ${code} in a channel of ${low[channel]} to ${high[channel]}, expected at most ` +
        `${2 ** bits} neighbouring codes (${bits} bits)`,
    );
  });
}

function expectArray(
  array: NdArray,
  dtype: string,
  shape: readonly number[],
  path: string,
): void {
  if (array.dtype !== dtype || array.shape.join() !== shape.join()) {
    throw new FormatError(
      path,
      "",
      `found ${array.dtype} [${array.shape.join(", ")}], the manifest says ${dtype} ` +
        `[${shape.join(", ")}]`,
    );
  }
}
