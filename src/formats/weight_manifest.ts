// manifest.json of a weight bundle -> checked records. Unknown keys are allowed, so that later versions can add some.
import { FormatError } from "../core/errors.ts";
import { type DType, TYPED_ARRAYS } from "../core/nd_array.ts";
import { type ActivationQParams, areThresholds } from "../graph/quantized_graph.ts";
import type { JsonObject, JsonValue } from "./strict_json.ts";
import { quoteName } from "./untrusted.ts";

/** An integer tensor of the manifest. */
export interface TensorEntry {
  readonly tensor: string;
  readonly shape: readonly number[];
  readonly dtype: "int8" | "int32";
  readonly bits: number;
  readonly axis: number;
  /** Absent where all of an index of the axis shares a scale. */
  readonly blockSize?: number;
  readonly files: { readonly values: string; readonly scale: string; readonly zeroPoint: string };
}

/** A float or index tensor of the manifest. */
export interface ConstantEntry {
  readonly tensor: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly file: string;
}

/** A checked manifest. */
export interface WeightManifest {
  readonly network: string;
  readonly weights: readonly TensorEntry[];
  readonly biases: readonly TensorEntry[];
  readonly constants: readonly ConstantEntry[];
  readonly activations: readonly ({ readonly tensor: string } & ActivationQParams)[];
  /** Layers that quantize their input with the range it has at run time; absent where none does. */
  readonly dynamicLayers?: readonly string[];
}

/**
 * Checks a parsed manifest.
 *
 * @param json the parsed file
 * @param path its name, for messages
 * @returns its records
 * @throws FormatError naming the entry that is missing, of the wrong kind or out of range
 */
export function readManifest(json: JsonValue, path: string): WeightManifest {
  const root = new Fields(json, path, "manifest");
  if (root.text("format") !== "stilla-weights" || root.integer("version", 1, 1) !== 1) {
    throw new FormatError(path, "format", 'expected "stilla-weights" version 1');
  }
  return {
    network: root.text("network"),
    weights: root.entries("weights").map((entry) => readTensor(entry, "int8")),
    biases: root.entries("biases").map((entry) => readTensor(entry, "int32")),
    constants: root.entries("constants").map((entry) => ({
      tensor: entry.text("tensor"),
      shape: entry.sizes("shape"),
      dtype: readDType(entry),
      file: entry.fileName("file"),
    })),
    activations: root.entries("activations").map(readActivation),
    ...(root.has("dynamicLayers") && { dynamicLayers: root.texts("dynamicLayers") }),
  };
}

function readTensor(entry: Fields, dtype: "int8" | "int32"): TensorEntry {
  if (entry.text("dtype") !== dtype) throw entry.error("dtype", `expected ${dtype}`);
  const shape = entry.sizes("shape");
  const files = entry.object("files");
  return {
    tensor: entry.text("tensor"),
    shape,
    dtype,
    bits: dtype === "int8" ? entry.integer("bits", 2, 8) : entry.integer("bits", 32, 32),
    axis: entry.integer("axis", -1, shape.length - 1),
    ...(entry.has("blockSize") && {
      blockSize: entry.integer("blockSize", 1, Number.MAX_SAFE_INTEGER),
    }),
    files: {
      values: files.fileName("values"),
      scale: files.fileName("scale"),
      zeroPoint: files.fileName("zeroPoint"),
    },
  };
}

function readActivation(entry: Fields): { readonly tensor: string } & ActivationQParams {
  const scale = entry.number("scale");
  if (!(scale > 0)) throw entry.error("scale", `found ${scale}, expected a number above 0`);
  const quantMin = entry.integer("quantMin", -128, 254);
  const quantMax = entry.integer("quantMax", quantMin + 1, quantMin < 0 ? 127 : 255);
  const thresholds = entry.has("thresholds")
    ? readThresholds(entry, quantMax - quantMin)
    : undefined;
  return {
    tensor: entry.text("tensor"),
    scale,
    zeroPoint: entry.integer("zeroPoint", -128, 255),
    quantMin,
    quantMax,
    bits: entry.integer("bits", 2, 8),
    ...(thresholds && { thresholds }),
  };
}

function readThresholds(entry: Fields, count: number): Float32Array<ArrayBuffer> {
  const thresholds = Float32Array.from(entry.numbers("thresholds"));
  if (areThresholds(thresholds, count)) return thresholds;
  throw entry.error(
    "thresholds",
    `found ${thresholds.join(", ")}, expected ${count} numbers that rise`,
  );
}

function readDType(entry: Fields): DType {
  const dtype = entry.text("dtype");
  if (!Object.hasOwn(TYPED_ARRAYS, dtype)) {
    throw entry.error("dtype", `expected one of ${Object.keys(TYPED_ARRAYS).join(", ")}`);
  }
  // Object.hasOwn has checked it against the table of all dtypes.
  return dtype as DType;
}

/** The fields of one JSON object, read with their kinds checked. */
class Fields {
  readonly #object: JsonObject;
  readonly #path: string;
  readonly #place: string;

  constructor(json: JsonValue | undefined, path: string, place: string) {
    this.#path = path;
    this.#place = place;
    if (!(json instanceof Map)) throw new FormatError(path, place, "expected an object");
    this.#object = json;
  }

  error(key: string, detail: string): FormatError {
    return new FormatError(this.#path, `${this.#place}.${key}`, detail);
  }

  has(key: string): boolean {
    return this.#object.has(key);
  }

  text(key: string): string {
    const value = this.#object.get(key);
    if (typeof value !== "string") throw this.error(key, "expected text");
    return value;
  }

  /** A plain name: whoever reads the bundle may join it to a folder. */
  fileName(key: string): string {
    const name = this.text(key);
    if (!/^[A-Za-z0-9_-][A-Za-z0-9_.-]*\.npy$/.test(name)) {
      throw this.error(key, `${quoteName(name)} is not a plain .npy file name`);
    }
    return name;
  }

  number(key: string): number {
    const value = this.#object.get(key);
    if (typeof value !== "number") throw this.error(key, "expected a number");
    return value;
  }

  integer(key: string, lowest: number, highest: number): number {
    const value = this.number(key);
    if (!Number.isInteger(value) || value < lowest || value > highest) {
      throw this.error(key, `found ${value}, expected an integer from ${lowest} to ${highest}`);
    }
    return value;
  }

  sizes(key: string): number[] {
    const value = this.#object.get(key);
    const isSize = (size: JsonValue): size is number =>
      typeof size === "number" && Number.isSafeInteger(size) && size >= 0;
    if (!Array.isArray(value) || !value.every(isSize)) {
      throw this.error(key, "expected a list of integers, 0 or more");
    }
    return value;
  }

  numbers(key: string): number[] {
    const value = this.#object.get(key);
    const isNumber = (item: JsonValue): item is number => typeof item === "number";
    if (!Array.isArray(value) || !value.every(isNumber)) {
      throw this.error(key, "expected a list of numbers");
    }
    return value;
  }

  texts(key: string): string[] {
    const value = this.#object.get(key);
    const isText = (item: JsonValue): item is string => typeof item === "string";
    if (!Array.isArray(value) || !value.every(isText)) {
      throw this.error(key, "expected a list of texts");
    }
    return value;
  }

  object(key: string): Fields {
    return new Fields(this.#object.get(key), this.#path, `${this.#place}.${key}`);
  }

  /** A list of objects whose `tensor` fields differ. */
  entries(key: string): Fields[] {
    const value = this.#object.get(key);
    if (!Array.isArray(value)) throw this.error(key, "expected a list");
    const entries = value.map((item: JsonValue, i) => new Fields(item, this.#path, `${key}[${i}]`));
    const seen = new Set<string>();
    for (const entry of entries) {
      const tensor = entry.text("tensor");
      if (seen.has(tensor)) throw entry.error("tensor", `${quoteName(tensor)} is there twice`);
      seen.add(tensor);
    }
    return entries;
  }
}
