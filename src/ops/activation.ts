// Which activation an ONNX node is, with the operators' own defaults (ONNX operator reference, opset 22).
import type { Activation } from "../../kernels/activation.ts";
import { UnsupportedError } from "../core/errors.ts";
import { numberAttribute, stringAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";

/** Operators that are one activation function. */
export const ACTIVATIONS = {
  Relu: () => ({ kind: "relu" }),
  Clip: (node) => ({
    kind: "clip",
    min: numberAttribute(node, "min", -Infinity),
    max: numberAttribute(node, "max", Infinity),
  }),
  LeakyRelu: (node) => ({ kind: "leakyRelu", alpha: numberAttribute(node, "alpha", 0.01) }),
  Sigmoid: () => ({ kind: "sigmoid" }),
  HardSigmoid: (node) => ({
    kind: "hardSigmoid",
    alpha: numberAttribute(node, "alpha", 0.2),
    beta: numberAttribute(node, "beta", 0.5),
  }),
  HardSwish: () => ({ kind: "hardSwish" }),
  Tanh: () => ({ kind: "tanh" }),
  Gelu: (node) => {
    const approximate = stringAttribute(node, "approximate", "none");
    if (approximate !== "none") {
      throw new UnsupportedError(node.opType, node.name, `approximate is "${approximate}"`);
    }
    return { kind: "gelu" };
  },
} as const satisfies Record<string, (node: Node) => Activation>;

/** The activation function of a node. */
export function activationOf(node: Node): Activation {
  const make = ACTIVATIONS[node.opType as keyof typeof ACTIVATIONS];
  if (make === undefined) {
    throw new UnsupportedError(node.opType, node.name, "it is not an activation function");
  }
  return make(node);
}
