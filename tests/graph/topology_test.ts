// Order, producers and consumers, also on a chain far longer than the call stack is deep.
import { deepEqual, equal, throws } from "node:assert/strict";
import { consumers, producers, sortNodes } from "../../src/graph/topology.ts";
import { makeGraph, node } from "./_graphs.ts";

const A = node("Relu", "x", "a");
const B = node("Relu", "a", "b");
const C = node("Add", "a b", "c");
const D = node("Add", "c c", "d");

Deno.test("sortNodes() keeps an order that is valid and repairs one that is not", () => {
  const side = node("Relu", "x", "s");
  deepEqual(sortNodes([A, side, B, C], ["x"]), [A, side, B, C]);
  deepEqual(sortNodes([D, C, side, B, A], ["x"]), [side, A, B, C, D]);
});

Deno.test("sortNodes() names the node of a cycle, a missing tensor and a tensor made twice", () => {
  throws(
    () => sortNodes([A, node("Add", "a q", "p"), node("Relu", "p", "q")], ["x"]),
    /Add_p.*cycle/,
  );
  throws(() => sortNodes([B], ["x"]), /no node makes its input "a"/);
  throws(() => sortNodes([A, A], ["x"]), /tensor "a" is already made/);
  throws(() => sortNodes([node("Relu", "a", "x")], ["x", "a"]), /tensor "x" is already made/);
});

Deno.test("sortNodes() sorts a chain of 60000 nodes given backwards", () => {
  const chain = Array.from({ length: 60000 }, (_, i) => node("Relu", `t${i}`, `t${i + 1}`));
  equal(sortNodes(chain.toReversed(), ["t0"]).at(-1)!.name, "Relu_t60000");
});

Deno.test("consumers() lists a node once for each time it reads", () => {
  const graph = makeGraph(["N"], [A, B, C, D]);
  deepEqual(consumers(graph).get("c"), [D, D]);
  deepEqual(consumers(graph).get("a"), [B, C]);
  equal(consumers(graph).has("d"), false);
  equal(producers(graph).get("c"), C);
  equal(producers(graph).has("x"), false);
});
