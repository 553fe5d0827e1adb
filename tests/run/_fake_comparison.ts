// A comparison without a GPU: a tiny network, and students whose drop follows from their recipe.
import type { ImageSet } from "../../src/data/image_set.ts";
import { DEFAULT_RECIPE, type Recipe } from "../../src/distill/recipe.ts";
import type { CompareOptions } from "../../src/run/compare.ts";
import type { ComparisonPlan } from "../../src/run/comparison_rows.ts";
import type { RunInputs } from "../../src/run/run_inputs.ts";
import { fakeDevice, fakeEngine, tinyNetwork } from "../cli/_fake_run.ts";

/** Two rows, two columns, two seeds: eight students. */
export const PLAN: ComparisonPlan = {
  base: DEFAULT_RECIPE,
  rows: [
    { name: "nearest", recipe: { method: "ptq" } },
    { name: "gptq", recipe: { method: "ptq", weightRounding: "gptq" } },
  ],
  bits: [{ weightBits: 8, activationBits: 8 }, { weightBits: 4, activationBits: 4 }],
  seeds: [0, 1],
};

/** Points that the student of a recipe loses. */
export function dropOf({ weightBits, weightRounding, seed }: Recipe): number {
  return (8 - weightBits) * (weightRounding === "gptq" ? 1 : 2) + seed;
}

/** What the students are made from; `pixel` is one of the calibration inputs'. */
export function fakeInputs({ pixel = 0, labels = true } = {}): RunInputs {
  const images = (value: number): ImageSet => ({
    count: 2,
    height: 4,
    width: 4,
    channels: 3,
    layout: "NCHW",
    dtype: "uint8",
    data: new Uint8Array(96).fill(value),
  });
  const data = {
    calibration: images(pixel),
    calibrationLabels: new Uint32Array(2),
    evaluation: images(9),
    ...(labels && { evaluationLabels: new Uint32Array(2) }),
  };
  return { model: tinyNetwork(), modelBytes: 2048, modelDigest: "m", data };
}

/** The engine's part of the options, and what it was asked for. */
export function fakeStudents(
  { before = () => {}, adapter = "none" }: {
    /** Runs before a student is made: may throw. */
    readonly before?: (recipe: Recipe) => void;
    readonly adapter?: string;
  } = {},
): Pick<CompareOptions, "open" | "distill"> & {
  readonly asked: Parameters<CompareOptions["distill"]>[];
  readonly opened: () => number;
} {
  const asked: Parameters<CompareOptions["distill"]>[] = [];
  const engine = fakeEngine();
  let opened = 0;
  return {
    asked,
    opened: () => opened,
    open: () => {
      opened++;
      return Promise.resolve(fakeDevice(adapter));
    },
    distill: async (model, data, recipe, options) => {
      asked.push([model, data, recipe, options]);
      before(recipe);
      options.signal?.throwIfAborted();
      const { student, report } = await engine.distill(model, data, recipe, options);
      const labelled = data.evaluationLabels !== undefined;
      const network = {
        ...report.network,
        evaluated: data.evaluation!.count,
        top1Teacher: labelled ? 0.9 : null,
        top1Student: labelled ? 0.9 - dropOf(recipe) / 100 : null,
        agreement: 1 - dropOf(recipe) / 100,
      };
      const seconds = { calibrate: 1, distill: recipe.seed, evaluate: 2, total: 3 };
      return { student, report: { ...report, network, seconds } };
    },
  };
}

/** A fresh folder, removed afterwards. */
export async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}
