// Every method of the table on a small network: that it leaves alone what it does not train, and that with few but
// larger steps its student is nearer to the teacher than the PTQ one that it starts from.
import assert from "node:assert/strict";
import type { ImageSet } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import type { Recipe } from "../../src/distill/recipe.ts";
import type { Report } from "../../src/distill/report.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { randomArray, testDevice } from "../_gpu.ts";
import { makeGraph, node } from "../graph/_graphs.ts";

const SAME = { pads: [1, 1, 1, 1] };
const MODEL = makeGraph(["N", 3, 6, 6], [
  node("Conv", "x u bu", "a", SAME),
  node("Relu", "a", "b"),
  node("Conv", "b v bv", "c", SAME),
  node("Add", "b c", "d"),
  node("Relu", "d", "e"),
  node("GlobalAveragePool", "e", "f"),
  node("Flatten", "f", "g"),
  node("Gemm", "g w bw", "y", { transB: 1 }),
], { u: [8, 3, 3, 3], bu: [8], v: [8, 8, 3, 3], bv: [8], w: [5, 8], bw: [5] });
const WEIGHTS = ["u", "v", "w"];

/** Images of a level each, and noise. */
const IMAGES: ImageSet = {
  count: 96,
  height: 6,
  width: 6,
  channels: 3,
  layout: "NCHW",
  dtype: "float32",
  data: Float32Array.from(
    randomArray(8, 96 * 108, { scale: 0.5 }),
    (value, i) => randomArray(9, 96)[Math.floor(i / 108)]! + value,
  ),
};

const RECIPE: Partial<Recipe> = {
  samples: 96,
  heldOut: 0.25,
  steps: 40,
  weightBits: 3,
  activationBits: 4,
  firstLastBits: 4,
  augment: { copies: 1, shift: 0, flip: false },
};

interface Result {
  readonly student: QuantizedGraph;
  readonly report: Report;
  /** Error of the logits on held-out inputs. */
  readonly error: number;
}

async function run(changes: Partial<Recipe>): Promise<Result> {
  const device = await testDevice();
  const before = device.liveBytes;
  const { student, report } = await distill(MODEL, { calibration: IMAGES }, {
    ...RECIPE,
    ...changes,
  }, {
    device,
  });
  assert.equal(device.liveBytes, before, "memory is given back");
  return { student, report, error: report.layers.at(-1)!.mseAfter };
}

const starts = new Map<string, Promise<Result>>();

/** The PTQ student with a grid, made once. */
function start(weightGrid: Recipe["weightGrid"] = "flip"): Promise<Result> {
  const known = starts.get(weightGrid) ??
    run({ method: "ptq", weightGrid, activationExponent: 2.4 });
  starts.set(weightGrid, known);
  return known;
}

const BETTER: readonly (readonly [Partial<Recipe>, grid?: Recipe["weightGrid"]])[] = [
  [{ method: "layerwise" }],
  [{ method: "blockwise", networkSteps: 0 }],
  [{ method: "parallel" }],
  [{ method: "adaround", learningRate: 0.05 }, "symmetric"],
  [{ method: "adaquant", learningRate: 1e-4 }, "offset"],
  [{ method: "brecq", learningRate: 0.05 }, "offset"],
  [{ method: "qdrop", learningRate: 0.05 }, "offset"],
  [{ method: "ppq", learningRate: 2e-3 }, "symmetric"],
  [{ method: "amct" }, "symmetric"],
  [{ method: "eptq", steps: 200 }, "symmetric"],
];

for (const [changes, grid] of BETTER) {
  Deno.test(`distill() ${changes.method}: nearer to the teacher than its PTQ start`, async () => {
    const ptq = await start(grid), { error, report } = await run(changes);
    // They start from the same student.
    const before = (of: Report) => of.layers.map(({ mseBefore }) => mseBefore);
    assert.deepEqual(before(report), before(ptq.report));
    assert.ok(error < ptq.error, `${error} and ${ptq.error}`);
  });
}

for (const method of ["adaround", "brecq"] as const) {
  Deno.test(`distill() ${method} learns the rounding alone: scales and biases stay`, async () => {
    const ptq = await start(method === "brecq" ? "offset" : "symmetric");
    const { student } = await run({ method, learningRate: 0.05 });
    let moved = 0;
    for (const name of WEIGHTS) {
      const was = ptq.student.weights.get(name)!, is = student.weights.get(name)!;
      assert.deepEqual(is.scale, was.scale, name);
      const size = is.values.data.length / is.scale.length;
      is.values.data.forEach((code, i) => {
        const latent = MODEL.initializers.get(name)!.data[i] as number;
        const v = latent / is.scale[Math.floor(i / size)]!;
        const neighbours = [Math.floor(v), Math.ceil(v), was.values.data[i]]; // or clipped, as it was
        assert.ok(neighbours.includes(code), `${name}: code ${code} of ${v}`);
        if (code !== was.values.data[i]) moved++;
      });
    }
    assert.ok(moved > 0, "some are rounded the other way");
    const same = [...student.activations].filter(([name, { scale }]) =>
      ptq.student.activations.get(name)!.scale === scale
    ).map(([name]) => name);
    // BRECQ's second pass learns what is inside; nobody learns the input's.
    assert.deepEqual(same, method === "brecq" ? ["x"] : [...student.activations.keys()]);
    if (method === "adaround") assert.deepEqual(student.biases, ptq.student.biases);
    const latentBias = (made: QuantizedGraph) =>
      [...made.biases].map(([name, { values, scale }]) => [name, values.data, scale]);
    // A frozen bias is in units of input and weight scale: of the first layer neither moves.
    assert.deepEqual(latentBias(student)[0], latentBias(ptq.student)[0]);
  });
}

Deno.test("distill() amct keeps zero points on the grid, of 0 behind a ReLU", async () => {
  const { student } = await run({ method: "amct" });
  const ptq = await start("symmetric");
  let moved = 0;
  for (const [name, { scale, zeroPoint, quantMin, quantMax }] of student.activations) {
    assert.ok(Number.isInteger(zeroPoint) && zeroPoint >= quantMin && zeroPoint <= quantMax, name);
    const was = ptq.student.activations.get(name)!;
    if (was.zeroPoint === was.quantMin) assert.equal(zeroPoint, was.zeroPoint, name);
    if (scale !== was.scale) moved++;
  }
  assert.ok(moved >= 2, `${moved} moved`);
});

Deno.test("distill() ppq puts a unit back that got worse, as it was", async () => {
  const ptq = await start("symmetric");
  const { student, report } = await run({ method: "ppq", learningRate: 3 });
  assert.ok(report.layers.every(({ rolledBack }) => rolledBack));
  assert.deepEqual(student.weights, ptq.student.weights);
  assert.deepEqual(student.biases, ptq.student.biases);
  assert.deepEqual(student.activations, ptq.student.activations);
});

Deno.test("distill() leaves the student as calibrated in 0 steps", async () => {
  for (const method of ["layerwise", "eptq", "joint"] as const) {
    const ptq = await start(method === "eptq" ? "symmetric" : "flip");
    const { student } = await run({ method, steps: 0, networkSteps: 0 });
    assert.deepEqual(student.weights, ptq.student.weights, method);
    assert.deepEqual(student.activations, ptq.student.activations, method);
  }
});

for (const loss of ["fisher", "hessian"] as const) {
  Deno.test(`distill() blockwise trains on errors weighted by the ${loss} importance`, async () => {
    const plain = await run({ method: "blockwise", networkSteps: 0 });
    const weighted = await run({ method: "blockwise", networkSteps: 0, loss });
    assert.ok(weighted.error < (await start()).error);
    assert.notDeepEqual(weighted.student.weights, plain.student.weights);
    assert.ok(weighted.report.layers.some(({ rolledBack }) => !rolledBack));
  });
}

Deno.test("distill() on the student's, the teacher's and the float network's inputs gives three students", async () => {
  const errors = new Set<number>();
  for (const inputMode of ["student", "teacher", "float"] as const) {
    errors.add((await run({ method: "layerwise", steps: 10, inputMode })).error);
  }
  // A float network's inputs are the teacher's where nothing inside is quantized either.
  const weightsOnly = { method: "layerwise", steps: 10, activationTraining: "float" } as const;
  const { student: one } = await run({ ...weightsOnly, inputMode: "teacher" });
  const { student: other } = await run({ ...weightsOnly, inputMode: "float" });
  assert.deepEqual(other.weights, one.weights);
  assert.equal(errors.size, 3, `${[...errors]}`);
});

Deno.test("distill() with other units, groups and inputs gives other students, none worse", async () => {
  const ptq = await start();
  const errors = new Set<number>();
  for (
    const changes of [
      { unit: "network" },
      { unit: "layer", groups: ["Conv_a..Conv_c"] },
      { inputMode: "nearest" },
      { activationTraining: "gradual" },
      { weightQuantizer: "minMax" },
      { activationQuantizer: "range" },
    ] as const
  ) {
    const { error } = await run({ method: "layerwise", ...changes });
    assert.ok(error < ptq.error, `${JSON.stringify(changes)}: ${error} and ${ptq.error}`);
    errors.add(error);
  }
  assert.ok(errors.size >= 5, `${[...errors]}`);
});
