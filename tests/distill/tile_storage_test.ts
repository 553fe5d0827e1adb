// The recipe key tileStorage: which kernels of a run it reaches, what it leaves of the result, and who refuses it.
import assert from "node:assert/strict";
import type { Kernel } from "../../kernels/kernel.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import { GpuError } from "../../src/core/errors.ts";
import { distill } from "../../src/distill/distill.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { randomArray, testDevice } from "../_gpu.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const GRAPH = makeGraph(["N", 3, 8, 8], [
  node("Conv", "x w b", "c", { pads: [1, 1, 1, 1] }),
  node("Relu", "c", "d"),
  node("MaxPool", "d", "e", { kernel_shape: [2, 2], strides: [2, 2] }),
  node("Conv", "e v", "f", { pads: [1, 1, 1, 1] }),
  node("Relu", "f", "g"),
  node("ReduceMean", "g", "h", { axes: [2, 3], keepdims: 0 }),
  node("Gemm", "h t", "y", { transB: 1 }),
], { w: [6, 3, 3, 3], b: [6], v: [8, 6, 3, 3], t: [3, 8] });
const IMAGES = ndArray("float32", [32, 3, 8, 8], Float32Array.from(randomArray(1, 32 * 192)));

/** A device that looks at every kernel, or says something else of itself. */
function standIn(device: Device, changes: Readonly<Record<string, unknown>>): Device {
  return new Proxy(device, {
    get(target, name) {
      if (typeof name === "string" && Object.hasOwn(changes, name)) return changes[name];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

async function run(method: Recipe["method"], tileStorage: Recipe["tileStorage"]) {
  const own = await testDevice("gpu");
  const kernels = new Map<string, Kernel>();
  const device = standIn(own, {
    prepare: (kernel: Kernel, bindings: Record<string, Tensor>) => {
      kernels.set(kernel.code, kernel);
      return own.prepare(kernel, bindings);
    },
  });
  // From these scales there is enough to win that no training is undone.
  const bits = {
    weightBits: 4,
    activationBits: 4,
    firstLastBits: 4,
    activationExponent: 2.4,
  } as const;
  const recipe = { method, tileStorage, steps: 20, samples: 32, networkSteps: 0, ...bits };
  const { student, report } = await distill(GRAPH, { calibration: IMAGES }, recipe, { device });
  const kind = ({ label }: Kernel) => label.split(" ")[0]!;
  const [half, full] = [true, false].map((is) =>
    new Set([...kernels.values()].filter(({ code }) => code.includes("f16") === is).map(kind))
  );
  return { half: half!, full: full!, student, layers: report.layers };
}

for (const method of ["blockwise", "joint"] as const) {
  Deno.test(`distill() trains with float16 tiles and measures without, ${method}`, async () => {
    const half = await run(method, "float16"), full = await run(method, "float32");
    assert.deepEqual([...full.half], []);
    assert.deepEqual([...half.half].toSorted(), ["conv2d_forward", "gemm"]);
    assert.ok(half.full.has("conv2d_forward") && half.full.has("gemm"));
    assert.notDeepEqual(half.student.weights, full.student.weights);
    for (const [i, { name, sqnrDb }] of half.layers.entries()) {
      // Another path of 20 steps at 4 bits, whose codes flip, scatters by a dB or so; it must not lose the way.
      assert.ok(Math.abs(sqnrDb - full.layers[i]!.sqnrDb) < 3, `${name}: ${sqnrDb} dB`);
    }
  });
}

Deno.test("distill() refuses float16 tiles in one line where there are none", async () => {
  const cases: readonly (readonly [device: Device, reason: RegExp])[] = [
    [await testDevice("software"), /^Cannot store tiles as float16 on ".+": it is a CPU adapter$/],
    [
      standIn(await testDevice("gpu"), { hasFloat16Tiles: false }),
      /^Cannot store tiles as float16 on ".+": it has no shader-f16$/,
    ],
  ];
  for (const [device, message] of cases) {
    await assert.rejects(
      distill(GRAPH, { calibration: IMAGES }, { tileStorage: "float16" }, { device }),
      (error) => error instanceof GpuError && message.test(error.message),
    );
  }
});
