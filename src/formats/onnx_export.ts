// Graph or QuantizedGraph -> ONNX file. A quantized network is written as QDQ (QuantizeLinear / DequantizeLinear round
// float operators), which every ONNX runtime reads; names, shapes and layout are the original's.
import { create, toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema, type ValueInfoProto, ValueInfoProtoSchema } from "onnx-buf";
import type { NdArray } from "../core/nd_array.ts";
import type { Graph, ValueInfo } from "../graph/graph.ts";
import type { QuantizedGraph } from "../graph/quantized_graph.ts";
import { encodeAttribute } from "./onnx_attribute.ts";
import { toOnnxForms } from "./onnx_forms.ts";
import { insertQdq, qdqOpset } from "./onnx_qdq.ts";
import { encodeInt4Tensor, encodeTensor, ONNX_TYPES } from "./onnx_tensor.ts";
import { upgradeOpset } from "./opset_upgrade.ts";

/** Options of {@linkcode exportOnnx}. */
export interface ExportOnnxOptions {
  /** Written as producer_version. */
  readonly producerVersion?: string;
  /** Written as metadata_props, in order. */
  readonly metadata?: ReadonlyMap<string, string>;
}

/**
 * Writes a network as an ONNX file: a plain graph as it is, a quantized one as QDQ in opset 13 or the graph's, if later;
 * weights of at most 4 bits beside float activations, and scales of blocks, take opset 21. Layers whose input takes its
 * range at run time become ConvInteger and MatMulInteger behind DynamicQuantizeLinear, or ONNX Runtime's
 * DynamicQuantizeLSTM, whose ranges are those of a whole batch: such a network gives what stilla measured when it is run
 * with one input at a time.
 *
 * @param model float or quantized network
 * @param options producer version and metadata
 * @returns the file
 * @throws RangeError when a quantizer names a tensor the graph does not have or its numbers contradict each other
 * @throws UnsupportedError when a quantized graph of an older opset uses an operator that changed until then
 */
export function exportOnnx(
  model: Graph | QuantizedGraph,
  { producerVersion = "", metadata = new Map() }: ExportOnnxOptions = {},
): Uint8Array<ArrayBuffer> {
  const graph = "graph" in model
    ? insertQdq({ ...model, graph: upgradeOpset(model.graph, qdqOpset(model)) })
    : { ...floatForms(model), int4: new Set<string>() };
  const nodes = graph.nodes.map((node) => ({ ...node, domain: DOMAINS[node.opType] ?? "" }));
  const domains = new Set(nodes.map(({ domain }) => domain).filter((domain) => domain !== ""));
  const proto = create(ModelProtoSchema, {
    irVersion: BigInt(irVersionOf(graph.opset)),
    producerName: "stilla",
    producerVersion,
    opsetImport: [
      { domain: "", version: BigInt(graph.opset) },
      ...[...domains].map((domain) => ({ domain, version: 1n })),
    ],
    metadataProps: [...metadata].map(([key, value]) => ({ key, value })),
    graph: {
      name: graph.name || "graph",
      node: nodes.map((node) => ({
        name: node.name,
        opType: node.opType,
        domain: node.domain,
        input: [...node.inputs],
        output: [...node.outputs],
        attribute: Object.entries(node.attributes)
          .map(([name, value]) => encodeAttribute(name, value)),
      })),
      initializer: usedInitializers(graph).map(([name, array]) =>
        // insertQdq names int8 arrays only.
        graph.int4.has(name)
          ? encodeInt4Tensor(name, array as NdArray<"int8">)
          : encodeTensor(name, array)
      ),
      input: graph.inputs.map(encodeValueInfo),
      output: graph.outputs.map(encodeValueInfo),
    },
  });
  return toBinary(ModelProtoSchema, proto);
}

/** Domains of the operators that are not ONNX's own. */
const DOMAINS: Readonly<Record<string, string>> = { DynamicQuantizeLSTM: "com.microsoft" };

/** A float network in ONNX's forms. */
function floatForms(graph: Graph): Graph {
  const none = new Map();
  return toOnnxForms({ graph, weights: none, biases: none, activations: none }).graph;
}

/** Initializers that a node or the outputs still read. */
function usedInitializers(graph: Graph): [string, NdArray][] {
  const used = new Set([
    ...graph.nodes.flatMap((node) => node.inputs),
    ...graph.outputs.map((output) => output.name),
  ]);
  return [...graph.initializers].filter(([name]) => used.has(name));
}

function encodeValueInfo({ name, dtype, shape }: ValueInfo): ValueInfoProto {
  const dim = shape.map((size) => ({
    value: typeof size === "number"
      ? { case: "dimValue" as const, value: BigInt(size) }
      : { case: "dimParam" as const, value: size },
  }));
  const tensor = { elemType: ONNX_TYPES[dtype], ...(dim.length > 0 ? { shape: { dim } } : {}) };
  return create(ValueInfoProtoSchema, {
    name,
    type: { value: { case: "tensorType", value: tensor } },
  });
}

/** The IR version that came with an opset (onnx/docs/Versioning.md); 7 is the oldest written. */
function irVersionOf(opset: number): number {
  if (opset <= 14) return 7;
  if (opset <= 18) return 8;
  if (opset <= 20) return 9;
  if (opset <= 22) return 10;
  return Math.min(opset - 12, 13);
}
