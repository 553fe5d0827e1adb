// What a run leaves behind, as bytes: the student in both forms, the recipe that repeats the run, and the report.
import type { Recipe } from "../distill/recipe.ts";
import { type Report, reportJson, VERSION } from "../distill/report.ts";
import { exportOnnx } from "../formats/onnx_export.ts";
import { encodeWeightBundle } from "../formats/weight_bundle.ts";
import type { QuantizedGraph } from "../graph/quantized_graph.ts";
import type { RunFiles } from "./run_folder.ts";

/** Top-level names of a run folder. */
export const RUN_ENTRIES: readonly string[] = [
  "student.onnx",
  "weights",
  "recipe.json",
  "report.json",
];

/** A finished run. */
export interface FinishedRun {
  readonly recipe: Recipe;
  readonly report: Report;
  readonly student: QuantizedGraph;
  /** Size of the teacher's file. */
  readonly modelBytes: number;
}

/** A finished run as bytes. */
export interface EncodedRun {
  readonly files: RunFiles;
  /** The report with the sizes of the model files filled in. */
  readonly report: Report;
}

/**
 * Encodes a finished run.
 *
 * @param run recipe, report and student
 * @returns the files of its folder and the finished report
 */
export function runFiles(run: FinishedRun): EncodedRun {
  const onnx = exportOnnx(run.student, { producerVersion: VERSION });
  const sizeBytes = { float32: run.modelBytes, int8: onnx.length };
  const report: Report = { ...run.report, network: { ...run.report.network, sizeBytes } };
  const text = new TextEncoder();
  const files = new Map<string, Uint8Array>([["student.onnx", onnx]]);
  for (const [name, bytes] of encodeWeightBundle(run.student)) files.set(`weights/${name}`, bytes);
  files.set("recipe.json", text.encode(`${JSON.stringify(run.recipe, null, 2)}\n`));
  files.set("report.json", text.encode(reportJson(report)));
  return { files, report };
}
