// Small ONNX files for tests, written with the protobuf library so that any rule can be broken.
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema, TensorProto_DataType } from "onnx-buf";

/** A model of the ONNX schema, all fields optional. */
export type ModelInit = MessageInitShape<typeof ModelProtoSchema>;

/** A graph of the ONNX schema. */
export type GraphInit = NonNullable<ModelInit["graph"]>;

/**
 * A file of y = Relu(x + w), x and y of shape [N, 2].
 *
 * @param graph fields that replace the graph's
 * @param model fields that replace the model's
 * @returns the file
 */
export function onnxFile(graph: GraphInit = {}, model: ModelInit = {}): Uint8Array<ArrayBuffer> {
  const proto = create(ModelProtoSchema, {
    irVersion: 7n,
    opsetImport: [{ domain: "", version: 13n }],
    graph: {
      name: "net",
      node: [
        { name: "add", opType: "Add", input: ["x", "w"], output: ["sum"] },
        { name: "relu", opType: "Relu", input: ["sum"], output: ["y"] },
      ],
      initializer: [floatTensor("w", [2n], [1, -2])],
      input: [floatValue("x", ["N", 2])],
      output: [floatValue("y", ["N", 2])],
      ...graph,
    } as GraphInit,
    ...model,
  } as ModelInit);
  return toBinary(ModelProtoSchema, proto);
}

/** A float initializer in `float_data`. */
export function floatTensor(
  name: string,
  dims: bigint[],
  floatData: number[],
): NonNullable<GraphInit["initializer"]>[number] {
  return { name, dims, dataType: TensorProto_DataType.FLOAT, floatData };
}

/** A float input or output. */
export function floatValue(
  name: string,
  shape: readonly (number | string)[],
): NonNullable<GraphInit["input"]>[number] {
  const dim = shape.map((size) => ({
    value: typeof size === "number"
      ? { case: "dimValue" as const, value: BigInt(size) }
      : { case: "dimParam" as const, value: size },
  }));
  return {
    name,
    type: {
      value: {
        case: "tensorType",
        value: { elemType: TensorProto_DataType.FLOAT, shape: { dim } },
      },
    },
  };
}
