// Small graphs for the tests of src/graph: nodes written in one line each, weights drawn from a seed.
import { type NdArray, ndArray, sizeOf } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import type { Attribute, Graph, Node } from "../../src/graph/graph.ts";

/** A node; its name is its operator and its output, unless given. */
export function node(
  opType: string,
  inputs: string,
  output: string,
  attributes: Record<string, Attribute> = {},
  name = `${opType}_${output}`,
): Node {
  const split = (names: string) => names.split(" ").map((part) => part === "-" ? "" : part);
  return { name, opType, inputs: split(inputs), outputs: split(output), attributes };
}

/** A float32 array with normal numbers. */
export function normal(seed: number, shape: readonly number[]): NdArray {
  const rng = new Rng(seed);
  return ndArray(
    "float32",
    shape,
    Float32Array.from({ length: sizeOf(shape) }, () => rng.normal()),
  );
}

/** An int64 vector. */
export function int64(...values: number[]): NdArray {
  return ndArray("int64", [values.length], BigInt64Array.from(values, BigInt));
}

/** A graph from `x` to `y`; an initializer given as a shape is filled with normal numbers. */
export function makeGraph(
  shape: readonly (number | string)[],
  nodes: readonly Node[],
  initializers: Record<string, NdArray | readonly number[]> = {},
  { outputs = ["y"], opset = 13 }: { outputs?: readonly string[]; opset?: number } = {},
): Graph {
  const arrays = Object.entries(initializers).map(([name, value], i): [string, NdArray] => [
    name,
    "dtype" in value ? value : name.endsWith("var") ? positive(i + 1, value) : normal(i + 1, value),
  ]);
  return {
    name: "test",
    opset,
    inputs: [{ name: "x", dtype: "float32", shape }],
    outputs: outputs.map((name) => ({ name, dtype: "float32", shape: ["N"] })),
    nodes,
    initializers: new Map(arrays),
  };
}

/** Weight, and gamma, beta, mean and var of a batch normalization. */
export function convBatchNorm(
  name: string,
  weight: readonly number[],
): Record<string, readonly number[]> {
  const channels = [weight[0]!];
  return {
    [`${name}.weight`]: weight,
    [`${name}.gamma`]: channels,
    [`${name}.beta`]: channels,
    [`${name}.mean`]: channels,
    [`${name}.var`]: channels,
  };
}

/** Names of the inputs of a batch normalization whose parameters {@linkcode convBatchNorm} made. */
export function batchNormInputs(x: string, name: string): string {
  return `${x} ${name}.gamma ${name}.beta ${name}.mean ${name}.var`;
}

function positive(seed: number, shape: readonly number[]): NdArray {
  const array = normal(seed, shape);
  return ndArray(
    "float32",
    shape,
    Float32Array.from(array.data as Float32Array, (v) => v * v + 0.1),
  );
}
