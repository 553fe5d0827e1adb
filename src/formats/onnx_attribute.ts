// AttributeProto <-> Attribute. A Graph does not tell 1 from 1.0, ONNX does; which attributes are floats is a fact of
// the operator set (onnx/docs/Operators.md), so the names are listed here.
import { create } from "@bufbuild/protobuf";
import {
  type AttributeProto,
  AttributeProto_AttributeType as AttributeType,
  AttributeProtoSchema,
} from "onnx-buf";
import type { Attribute } from "../graph/graph.ts";
import { decodeTensor, encodeTensor } from "./onnx_tensor.ts";
import { decodeUtf8 } from "./untrusted.ts";

/** Errors of one attribute: damaged bytes, or a legal kind that stilla does not handle. */
export interface AttributeErrors {
  readonly damaged: (detail: string) => Error;
  readonly unsupported: (detail: string) => Error;
}

/**
 * Decodes an attribute. Integers beyond 2^53 are cut to 2^53 - 1 (Slice writes "to the end" as 2^63 - 1).
 *
 * @param proto as in the file
 * @param errors make the errors of the place
 * @returns the value
 * @throws what `errors` make
 */
export function decodeAttribute(proto: AttributeProto, errors: AttributeErrors): Attribute {
  const { damaged, unsupported } = errors;
  if (proto.refAttrName !== "") throw unsupported("refers to a function's attribute");
  switch (proto.type) {
    case AttributeType.FLOAT:
      return checkFloat(proto.f, damaged);
    case AttributeType.INT:
      return toNumber(proto.i);
    case AttributeType.STRING:
      return decodeUtf8(proto.s, damaged);
    case AttributeType.TENSOR:
      if (proto.t === undefined) throw damaged("has the type TENSOR, but no tensor");
      return decodeTensor(proto.t, damaged);
    case AttributeType.FLOATS:
      return proto.floats.map((value) => checkFloat(value, damaged));
    case AttributeType.INTS:
      return proto.ints.map(toNumber);
    case AttributeType.STRINGS:
      return proto.strings.map((text) => decodeUtf8(text, damaged));
    default:
      throw unsupported(
        `has the type ${AttributeType[proto.type] ?? proto.type}, ` +
          "expected a number, a text, a list of them or a tensor",
      );
  }
}

/**
 * Encodes an attribute.
 *
 * @param name its name, which decides between integer and float
 * @param value its value
 * @returns the message
 */
export function encodeAttribute(name: string, value: Attribute): AttributeProto {
  if (typeof value === "string") {
    return create(AttributeProtoSchema, {
      name,
      type: AttributeType.STRING,
      s: new TextEncoder().encode(value),
    });
  }
  if (typeof value === "number") {
    return isFloat(name, [value])
      ? create(AttributeProtoSchema, { name, type: AttributeType.FLOAT, f: value })
      : create(AttributeProtoSchema, { name, type: AttributeType.INT, i: BigInt(value) });
  }
  if ("dtype" in value) {
    return create(AttributeProtoSchema, {
      name,
      type: AttributeType.TENSOR,
      t: encodeTensor("", value),
    });
  }
  if (isTexts(value)) {
    const strings = value.map((text) => new TextEncoder().encode(text));
    return create(AttributeProtoSchema, { name, type: AttributeType.STRINGS, strings });
  }
  return isFloat(name, value)
    ? create(AttributeProtoSchema, { name, type: AttributeType.FLOATS, floats: [...value] })
    : create(AttributeProtoSchema, { name, type: AttributeType.INTS, ints: value.map(BigInt) });
}

function isTexts(value: readonly number[] | readonly string[]): value is readonly string[] {
  return typeof value[0] === "string";
}

function isFloat(name: string, values: readonly number[]): boolean {
  return FLOAT_ATTRIBUTES.has(name) || values.some((value) => !Number.isInteger(value));
}

function checkFloat(value: number, damaged: (detail: string) => Error): number {
  if (Number.isNaN(value)) throw damaged("is NaN");
  return value;
}

function toNumber(value: bigint): number {
  const limit = BigInt(Number.MAX_SAFE_INTEGER);
  return Number(value > limit ? limit : value < -limit ? -limit : value);
}

/** Attributes that ONNX declares as float or list of floats, in any operator of the default domain. */
const FLOAT_ATTRIBUTES: ReadonlySet<string> = new Set([
  "activation_alpha",
  "activation_beta",
  "alpha",
  "beta",
  "bias",
  "clip",
  "cubic_coeff_a",
  "epsilon",
  "extrapolation_value",
  "gamma",
  "high",
  "lambd",
  "low",
  "max",
  "mean",
  "min",
  "momentum",
  "ratio",
  "scale",
  "scales",
  "seed",
  "softcap",
  "spatial_scale",
  "threshold",
  "value",
  "value_float",
  "value_floats",
]);
