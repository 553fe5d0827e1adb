// ONNX file -> Graph (onnx.ai/onnx/repo-docs/IR.html). Loading is validating: versions, names, order, shapes and values
// are checked here once, so that the passes and operators after it can trust the graph. Every node is kept except
// Constant, which becomes an initializer.
import { fromBinary } from "@bufbuild/protobuf";
import { type ModelProto, ModelProtoSchema, type NodeProto, type ValueInfoProto } from "onnx-buf";
import { FormatError, UnsupportedError } from "../core/errors.ts";
import { type NdArray, ndArray } from "../core/nd_array.ts";
import type { Attribute, Graph, Node, ValueInfo } from "../graph/graph.ts";
import { decodedDType } from "./elements.ts";
import { decodeAttribute } from "./onnx_attribute.ts";
import { decodeTensor, readElementType } from "./onnx_tensor.ts";
import { scanOnnx } from "./protobuf_scan.ts";
import { quoteName } from "./untrusted.ts";

const MIN_OPSET = 7;
const MAX_OPSET = 25;
const MIN_IR_VERSION = 3;
const MAX_IR_VERSION = 13;

/** TensorProto.DataType values in the `to` attribute of Cast. */
const FLOAT = 1;
const FLOAT16 = 10;

/** Options of {@linkcode importOnnx}. */
export interface ImportOnnxOptions {
  /** Name of the file, for messages. */
  readonly path?: string;
}

/**
 * Reads an ONNX model. float16 tensors become float32, and with them the inputs, outputs and casts.
 *
 * @param bytes the whole file
 * @param options its name
 * @returns the network as the file has it: channels first, original names
 * @throws FormatError when the file is damaged or not a valid model
 * @throws UnsupportedError when it uses custom operators or nested graphs
 * @example
 * ```ts ignore
 * const graph = importOnnx(Deno.readFileSync("net.onnx"), { path: "net.onnx" });
 * ```
 */
export function importOnnx(
  bytes: Uint8Array,
  { path = "model.onnx" }: ImportOnnxOptions = {},
): Graph {
  scanOnnx(bytes, path);
  const model = parseModel(bytes, path);
  const opset = readOpset(model, path);
  const proto = model.graph;
  if (proto === undefined) throw new FormatError(path, "graph", "the model holds no graph");
  if (proto.sparseInitializer.length > 0) {
    throw new FormatError(path, "sparse_initializer", "sparse tensors are not supported");
  }

  const initializers = new Map<string, NdArray>();
  for (const [index, tensor] of proto.initializer.entries()) {
    const place = `initializer ${tensor.name === "" ? index : quoteName(tensor.name)}`;
    const error = (detail: string) => new FormatError(path, place, detail);
    if (tensor.name === "") throw error("has no name");
    if (initializers.has(tensor.name)) throw error("is there twice");
    initializers.set(tensor.name, decodeTensor(tensor, error));
  }
  // Before IR version 4 every initializer was listed as an input too.
  const inputs = proto.input.filter((input) => !initializers.has(input.name))
    .map((input) => readValueInfo(input, "input", path));
  const nodes = foldConstants(readNodes(proto.node, path), initializers, path);
  checkOrder(inputs, nodes, initializers, path);
  const made = new Set([
    ...inputs.map((input) => input.name),
    ...initializers.keys(),
    ...nodes.flatMap((node) => node.outputs),
  ]);
  const outputs = proto.output.map((output) => readValueInfo(output, "output", path));
  if (outputs.length === 0) throw new FormatError(path, "graph", "the graph has no output");
  checkUnique(outputs.map((output) => output.name), "output", path);
  for (const { name } of outputs) {
    if (!made.has(name)) {
      throw new FormatError(path, `output ${quoteName(name)}`, "no node makes this tensor");
    }
  }
  return { name: proto.name || "graph", opset, inputs, outputs, nodes, initializers };
}

function parseModel(bytes: Uint8Array, path: string): ModelProto {
  try {
    return fromBinary(ModelProtoSchema, bytes, { readUnknownFields: false });
  } catch (cause) {
    // The scan has found every error of structure; left are fields whose type is not the schema's.
    const reason = cause instanceof Error ? cause.message.split("\n")[0] : "unknown reason";
    throw new FormatError(path, "protobuf", `not an ONNX model (${reason})`);
  }
}

function readOpset(model: ModelProto, path: string): number {
  const irVersion = Number(model.irVersion);
  if (!(irVersion >= MIN_IR_VERSION && irVersion <= MAX_IR_VERSION)) {
    throw new FormatError(
      path,
      "ir_version",
      `is ${model.irVersion}, expected ${MIN_IR_VERSION} to ${MAX_IR_VERSION}`,
    );
  }
  if (model.functions.some((definition) => isDefaultDomain(definition.domain))) {
    throw new FormatError(path, "functions", "the model redefines an ONNX operator");
  }
  const versions = model.opsetImport.filter(({ domain }) => isDefaultDomain(domain))
    .map(({ version }) => Number(version));
  const [opset] = versions;
  if (opset === undefined || versions.length > 1) {
    throw new FormatError(
      path,
      "opset_import",
      `names the default domain ${versions.length} times, expected once`,
    );
  }
  if (!(opset >= MIN_OPSET && opset <= MAX_OPSET)) {
    throw new FormatError(
      path,
      "opset_import",
      `opset ${opset}, expected ${MIN_OPSET} to ${MAX_OPSET}`,
    );
  }
  return opset;
}

function isDefaultDomain(domain: string): boolean {
  return domain === "" || domain === "ai.onnx";
}

function readValueInfo(proto: ValueInfoProto, kind: "input" | "output", path: string): ValueInfo {
  const { name } = proto;
  const error = (detail: string) => new FormatError(path, `${kind} ${quoteName(name)}`, detail);
  if (name === "") throw error("has no name");
  const type = proto.type?.value;
  if (type?.case !== "tensorType") {
    throw error(`is a ${type?.case ?? "value without a type"}, expected a tensor`);
  }
  const dtype = decodedDType(readElementType(type.value.elemType, error));
  if (type.value.shape === undefined && kind === "input") throw error("has no shape");
  // An output may leave its shape out; [] is written back as no shape.
  const shape = (type.value.shape?.dim ?? []).map(({ value }, axis) => {
    if (value.case === "dimParam" && value.value !== "") return value.value;
    const size = value.case === "dimValue" ? Number(value.value) : 0;
    if (size > 0 && !Number.isSafeInteger(size)) {
      throw error(`size ${value.value} of axis ${axis} is too large`);
    }
    // Exporters write unknown sizes as nothing, 0 or -1.
    return size > 0 ? size : `${name}_axis${axis}`;
  });
  return { name, dtype, shape };
}

function readNodes(protos: readonly NodeProto[], path: string): Node[] {
  checkUnique(protos.map((proto) => proto.name).filter((name) => name !== ""), "node", path);
  const names = new Set(protos.map((proto) => proto.name));
  return protos.map((proto, index) => {
    let name = proto.name || `${proto.opType}_${index}`;
    while (proto.name === "" && names.has(name)) name += "_";
    names.add(name);
    return readNode(proto, name, path);
  });
}

function readNode(proto: NodeProto, name: string, path: string): Node {
  const place = `node ${quoteName(name)}`;
  const plainName = quoteName(name).slice(1, -1);
  const opType = quoteName(proto.opType).slice(1, -1);
  const unsupported = (detail: string) =>
    new UnsupportedError(opType, plainName, `${detail} (in ${path})`);
  if (proto.opType === "") throw new FormatError(path, place, "has no operator");
  if (!isDefaultDomain(proto.domain)) {
    throw unsupported(`custom domain ${quoteName(proto.domain)}, expected ONNX's own operators`);
  }
  const attributes = new Map<string, Attribute>();
  for (const attribute of proto.attribute) {
    const attributePlace = `${place}, attribute ${quoteName(attribute.name)}`;
    const damaged = (detail: string) => new FormatError(path, attributePlace, detail);
    if (attributes.has(attribute.name)) throw damaged("is there twice");
    const value = decodeAttribute(attribute, {
      damaged,
      unsupported: (detail) => unsupported(`attribute ${quoteName(attribute.name)} ${detail}`),
    });
    // float16 tensors are float32 here, so a cast to float16 has to be one to float32.
    const isHalfCast = proto.opType === "Cast" && attribute.name === "to" && value === FLOAT16;
    attributes.set(attribute.name, isHalfCast ? FLOAT : value);
  }
  return {
    name,
    opType: proto.opType,
    inputs: [...proto.input],
    outputs: [...proto.output],
    // Object.fromEntries defines own properties, so that a name such as "__proto__" stays a name.
    attributes: Object.fromEntries(attributes),
  };
}

/** Moves the values of Constant nodes into `initializers` and returns the other nodes. */
function foldConstants(
  nodes: readonly Node[],
  initializers: Map<string, NdArray>,
  path: string,
): Node[] {
  return nodes.filter((node) => {
    if (node.opType !== "Constant") return true;
    const [output, ...rest] = node.outputs;
    const place = `node ${quoteName(node.name)}`;
    if (output === undefined || output === "" || rest.length > 0 || node.inputs.length > 0) {
      throw new FormatError(path, place, "Constant must have one output and no input");
    }
    if (initializers.has(output)) {
      throw new FormatError(path, place, `tensor ${quoteName(output)} is there twice`);
    }
    initializers.set(output, constantValue(node, path));
    return false;
  });
}

function constantValue(node: Node, path: string): NdArray {
  const [[name, value] = ["none", undefined], ...rest] = Object.entries(node.attributes);
  if (rest.length === 0 && typeof value === "object" && "dtype" in value) return value;
  const numbers = typeof value === "number" ? [value] : value as readonly number[];
  const shape = typeof value === "number" ? [] : [numbers?.length];
  if (rest.length === 0 && (name === "value_float" || name === "value_floats")) {
    return ndArray("float32", shape, Float32Array.from(numbers));
  }
  if (rest.length === 0 && (name === "value_int" || name === "value_ints")) {
    return ndArray("int64", shape, BigInt64Array.from(numbers, BigInt));
  }
  throw new UnsupportedError(
    "Constant",
    quoteName(node.name).slice(1, -1),
    `attributes ${Object.keys(node.attributes).join(", ") || "none"}, expected one of value, ` +
      `value_float, value_floats, value_int, value_ints (in ${path})`,
  );
}

function checkOrder(
  inputs: readonly ValueInfo[],
  nodes: readonly Node[],
  initializers: ReadonlyMap<string, NdArray>,
  path: string,
): void {
  checkUnique(inputs.map((input) => input.name), "input", path);
  const makers = new Map<string, string>();
  for (const node of nodes) {
    for (const output of node.outputs) if (output !== "") makers.set(output, node.name);
  }
  const known = new Set([...inputs.map((input) => input.name), ...initializers.keys()]);
  for (const node of nodes) {
    const opType = quoteName(node.opType).slice(1, -1);
    const error = (detail: string) =>
      new FormatError(path, `node ${quoteName(node.name)} (${opType})`, detail);
    for (const input of node.inputs) {
      if (input === "" || known.has(input)) continue;
      const maker = makers.get(input);
      throw error(
        maker === undefined
          ? `input ${quoteName(input)} is made by no node, input or initializer`
          : `input ${quoteName(input)} is made later, by node ${quoteName(maker)}`,
      );
    }
    if (node.outputs.every((output) => output === "")) throw error("has no output");
    for (const output of node.outputs) {
      if (output === "") continue;
      if (known.has(output)) throw error(`output ${quoteName(output)} is made twice`);
      known.add(output);
    }
  }
}

function checkUnique(names: readonly string[], kind: string, path: string): void {
  const seen = new Set<string>();
  for (const name of names) {
    if (seen.has(name)) throw new FormatError(path, `${kind} ${quoteName(name)}`, "is there twice");
    seen.add(name);
  }
}
