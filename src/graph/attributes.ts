// Typed access to the attributes of a node. A file can hold an attribute of any kind under any name, so every read
// checks the kind.
import type { Attribute, Node } from "./graph.ts";

/**
 * Reads a number.
 *
 * @param node the node
 * @param name attribute name
 * @param fallback value when the attribute is absent
 * @returns the attribute
 * @throws TypeError when the attribute is of another kind
 */
export function numberAttribute(node: Node, name: string, fallback: number): number {
  const value = attribute(node, name) ?? fallback;
  if (typeof value !== "number") throw wrongKind(node, name, "a number");
  return value;
}

/**
 * Reads a string.
 *
 * @param node the node
 * @param name attribute name
 * @param fallback value when the attribute is absent
 * @returns the attribute
 * @throws TypeError when the attribute is of another kind
 */
export function stringAttribute(node: Node, name: string, fallback: string): string {
  const value = attribute(node, name) ?? fallback;
  if (typeof value !== "string") throw wrongKind(node, name, "a string");
  return value;
}

/**
 * Reads a list of numbers.
 *
 * @param node the node
 * @param name attribute name
 * @returns the attribute, or undefined when it is absent
 * @throws TypeError when the attribute is of another kind
 */
export function numbersAttribute(node: Node, name: string): readonly number[] | undefined {
  const value = attribute(node, name);
  if (value === undefined) return undefined;
  if (!Array.isArray(value) || value.some((item) => typeof item !== "number")) {
    throw wrongKind(node, name, "a list of numbers");
  }
  return value;
}

/**
 * Makes an axis of a shape non-negative.
 *
 * @param node the node, for the message
 * @param axis -rank .. rank - 1
 * @param rank number of axes
 * @returns 0 .. rank - 1
 * @throws RangeError when there is no such axis
 */
export function normalizeAxis(node: Node, axis: number, rank: number): number {
  if (!Number.isInteger(axis) || axis < -rank || axis >= rank) {
    throw new RangeError(
      `node "${node.name}" (${node.opType}): axis ${axis} is not one of the ${rank} axes`,
    );
  }
  return axis < 0 ? axis + rank : axis;
}

function attribute(node: Node, name: string): Attribute | undefined {
  return Object.hasOwn(node.attributes, name) ? node.attributes[name] : undefined;
}

function wrongKind(node: Node, name: string, expected: string): TypeError {
  return new TypeError(
    `node "${node.name}" (${node.opType}): attribute "${name}" is not ${expected}`,
  );
}
