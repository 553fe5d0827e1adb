// Reads the files a user names; what they hold is found out from their first bytes, not from their names.
import { FormatError } from "../core/errors.ts";
import type { NdArray } from "../core/nd_array.ts";
import { type ImageSet, type InputSize, recogniseImages } from "../data/image_set.ts";
import { type LabelFit, labelsOf } from "../data/labels.ts";
import { findNonFinite } from "../formats/elements.ts";
import { decodeIdx } from "../formats/idx.ts";
import { decodeNpy } from "../formats/npy.ts";
import { decodeNpz } from "../formats/npz.ts";
import { importOnnx } from "../formats/onnx_import.ts";
import { type JsonValue, parseStrictJson } from "../formats/strict_json.ts";
import { decodeUtf8 } from "../formats/untrusted.ts";
import type { Graph } from "../graph/graph.ts";
import { contentDigest } from "./content_digest.ts";
import { readImageFolder } from "./image_folder.ts";
import { readRegularFile } from "./regular_file.ts";

/** A model file as read. */
export interface ModelFile {
  readonly graph: Graph;
  readonly sizeBytes: number;
  /** {@linkcode contentDigest} of the file. */
  readonly digest: string;
}

/**
 * Reads an ONNX model.
 *
 * @param path the file
 * @returns the network and the file's size
 * @throws FormatError when the file cannot be read, is not ONNX, or holds NaN or infinite weights
 * @throws UnsupportedError when it uses an operator stilla does not know
 */
export async function readModel(path: string): Promise<ModelFile> {
  const bytes = await readRegularFile(path);
  const graph = importOnnx(bytes, { path });
  for (const [name, { data }] of graph.initializers) {
    const at = findNonFinite(data);
    if (at < 0) continue;
    throw new FormatError(
      path,
      `initializer "${name}"`,
      `found ${data[at]} at element ${at}, expected finite weights`,
    );
  }
  return { graph, sizeBytes: bytes.length, digest: contentDigest([bytes]) };
}

/**
 * Reads inputs of a network.
 *
 * @param path .npy, .npz (`file.npz#name` picks one of several arrays), IDX (also .gz), or a folder of PNG/JPEG images
 * @param expected size of one input
 * @returns the inputs with their layout recognised
 * @throws FormatError when nothing readable is there or it does not fit the network
 */
export async function readInputs(path: string, expected: InputSize): Promise<ImageSet> {
  const array = await isFolder(path)
    ? await readImageFolder(path, expected.channels)
    : await readArray(path, ["x", "images", "data"]);
  return recogniseImages(array, expected, path);
}

/**
 * Reads class numbers.
 *
 * @param path .npy, .npz or IDX (also .gz)
 * @param fit number of inputs, of the steps that are classified, and of classes where known
 * @returns one class number an input, or a step
 * @throws FormatError when nothing readable is there or it does not fit the inputs
 */
export async function readLabels(
  path: string,
  fit: LabelFit,
): Promise<Uint32Array<ArrayBuffer>> {
  return labelsOf(await readArray(path, ["y", "labels"]), fit, path);
}

/**
 * Reads a JSON file; a key that stands twice is an error.
 *
 * @param path the file
 * @returns the value, as JSON.parse would give it
 * @throws FormatError when the file cannot be read or is not JSON
 */
export async function readJson(path: string): Promise<unknown> {
  const bytes = await readRegularFile(path);
  const text = decodeUtf8(bytes, (detail) => new FormatError(path, "", detail));
  return plain(parseStrictJson(text, path));
}

/** One array of a file that may hold several. */
async function readArray(path: string, usualNames: readonly string[]): Promise<NdArray> {
  const [, file = path, member] = /^(.+\.npz)#(.+)$/i.exec(path) ?? [];
  const bytes = await readRegularFile(file);
  if (startsWith(bytes, [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59])) return decodeNpy(bytes, path);
  if (startsWith(bytes, [0x50, 0x4b])) {
    return pickArray(decodeNpz(bytes, file), member, usualNames, path);
  }
  if (startsWith(bytes, [0x1f, 0x8b]) || startsWith(bytes, [0, 0])) return decodeIdx(bytes, path);
  throw new FormatError(
    path,
    "byte 0",
    bytes.length === 0 ? "the file is empty" : "is no .npy, .npz or IDX file",
  );
}

function pickArray(
  arrays: ReadonlyMap<string, NdArray>,
  member: string | undefined,
  usualNames: readonly string[],
  path: string,
): NdArray {
  const names = [...arrays.keys()];
  const name = member ??
    (names.length === 1 ? names[0] : usualNames.find((usual) => arrays.has(usual)));
  const array = name === undefined ? undefined : arrays.get(name);
  if (array !== undefined) return array;
  const listed = names.length === 0 ? "none" : names.slice(0, 8).join(", ");
  const wanted = member === undefined ? "one array, or say FILE.npz#NAME" : `"${member}"`;
  throw new FormatError(path, "", `found the arrays ${listed}; expected ${wanted}`);
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isDirectory;
  } catch {
    return false; // reading it as a file says what is wrong
  }
}

function startsWith(bytes: Uint8Array, magic: readonly number[]): boolean {
  return bytes.length >= magic.length && magic.every((byte, i) => bytes[i] === byte);
}

/** Strict JSON's Maps as plain objects. `Object.fromEntries` keeps a key such as __proto__ a mere key. */
function plain(value: JsonValue): unknown {
  if (value instanceof Map) {
    return Object.fromEntries([...value].map(([key, inner]) => [key, plain(inner)]));
  }
  return Array.isArray(value) ? value.map((inner: JsonValue) => plain(inner)) : value;
}
