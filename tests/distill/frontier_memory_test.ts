import assert from "node:assert/strict";
import { frontierBytes, placeFrontier } from "../../src/distill/frontier_memory.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import { cutIntoBlocks } from "../../src/graph/blocks.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

/** Three units: 16 x 16 x 8 after the first, 8 x 8 x 16 after the second, 16 logits that carry no quantizer. */
const NETWORK = prepareNetwork(
  makeGraph(["N", 3, 16, 16], [
    node("Conv", "x u", "a", { pads: [1, 1, 1, 1] }),
    node("Relu", "a", "b"),
    node("Conv", "b v", "c", { pads: [1, 1, 1, 1], strides: [2, 2] }),
    node("Relu", "c", "d"),
    node("Conv", "d w", "y"),
  ], { u: [8, 3, 3, 3], v: [16, 8, 3, 3], w: [16, 16, 8, 8] }),
  { weightBits: 4, activationBits: 4, firstLastBits: 8 },
  false,
);
const UNITS = cutIntoBlocks(NETWORK.teacher.graph);
const WHOLE = { unit: null, groups: [] };
const COUNTS = { rows: 1000, batch: 50 };
/** Bytes of a sample: the input as float32; teacher as float16 and student as codes at x, b and d. */
const INPUT = 16 * 16 * 4 * 4, X = 16 * 16 * 4 * 3, B = 16 * 16 * 8 * 3, D = 8 * 8 * 16 * 3;

Deno.test("frontierBytes() counts what is alive in the widest unit", () => {
  assert.deepEqual(UNITS.map((unit) => unit.outputs[0]), ["b", "d", "y"]);
  const widest = X + B; // before B + D
  assert(widest > B + D === X > D);
  const expected = Math.max(X + B, B + D);
  assert.deepEqual(frontierBytes(NETWORK, UNITS, COUNTS), {
    all: 1000 * (INPUT + expected),
    batch: 50 * expected,
  });
  // with ranges at run time the student's rows are float16 too: 4 bytes instead of 3
  assert.deepEqual(frontierBytes({ ...NETWORK, activationRanges: "dynamic" }, UNITS, COUNTS), {
    all: 1000 * (INPUT + expected * 4 / 3),
    batch: 50 * expected * 4 / 3,
  });
  // without units the network's inputs remain
  assert.deepEqual(frontierBytes(NETWORK, [], COUNTS), { all: 1000 * INPUT, batch: 50 * INPUT });
});

Deno.test("placeFrontier() goes to host memory when the budget is too small, and says so for a batch", () => {
  let family: "gpu" | "software" = "gpu";
  const choose = (memoryBudget: number | null, rows = 1000, batch = 50, maxBufferSize = 0) =>
    placeFrontier(
      { limits: { maxBufferSize } as GPUSupportedLimits, target: { family, subgroupSize: 8 } },
      NETWORK,
      { rows, batch },
      { ...WHOLE, method: "blockwise", weightRounding: "nearest", memoryBudget },
    );
  const need = Math.ceil(1000 * (INPUT + X + B) / 2 ** 20);
  const onGpu = { residence: "gpu", compact: true }, inHost = { residence: "host", compact: true };
  assert.deepEqual(choose(need), onGpu);
  assert.deepEqual(choose(need - 1), inHost);
  assert.deepEqual(choose(null), onGpu);
  assert.deepEqual(choose(null, 100_000), inHost);
  assert.deepEqual(choose(null, 100_000, 50, 2 ** 32), onGpu);
  // compensated rounding goes through the layers; PTQ alone keeps the inputs only
  const ptq = (weightRounding: "nearest" | "gptq") =>
    placeFrontier(
      { limits: { maxBufferSize: 0 } as GPUSupportedLimits, target: { family, subgroupSize: 8 } },
      NETWORK,
      { rows: 1000, batch: 50 },
      { ...WHOLE, method: "ptq", weightRounding, memoryBudget: need - 1 },
    );
  assert.deepEqual([ptq("nearest"), ptq("gptq")], [onGpu, inHost]);
  // a CPU takes float32, 8 bytes instead of 3, as long as that is below the budget and 512 MiB
  family = "software";
  const float32 = (rows: number) => Math.ceil(rows * (INPUT + (X + B) * 8 / 3) / 2 ** 20);
  assert.deepEqual(choose(float32(1000)), { residence: "gpu", compact: false });
  assert.deepEqual(choose(float32(1000) - 1), onGpu);
  assert(float32(20_000) > 512 && float32(20_000) < 1024);
  assert.deepEqual(choose(null, 20_000), onGpu);
  family = "gpu";
  assert.throws(() => choose(1, 1000, 500), {
    name: "RangeError",
    message:
      "memoryBudget: found 1, but the activations of a mini-batch of 500 need 5 MiB; a smaller batchSize needs less",
  });
});
