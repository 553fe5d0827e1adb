// The plan of a dry run for people.
import type { PlannedLayer, PlannedUnit, RunPlan } from "./dry_run.ts";
import { alignedTable, bitsName, printable } from "./report.ts";

/**
 * The plan as text.
 *
 * @param plan from `planRun`
 * @returns lines without control characters, with a newline at the end
 */
export function planText(plan: RunPlan): string {
  const { layers, units, samples, memory, seconds, measured } = plan;
  const weighted = layers.filter(({ weights }) => weights !== null);
  const macs = sum(weighted.map((layer) => layer.macs ?? 0));
  const weights = sum(weighted.map((layer) => layer.weights ?? 0));
  const float = weighted.filter(({ weightBits }) => weightBits === null).length;
  const { compact, residence } = memory.place;
  const where = residence === "gpu" ? "on the GPU" : "in host memory";
  const stored = compact ? "float16 and codes" : "float32";
  const parts = [
    `${plan.method} ${bitsName(plan)}, a dry run: nothing is made`,
    `network      ${weighted.length} layer${weighted.length === 1 ? "" : "s"}${
      float > 0 ? `, ${float} of them float` : ""
    }, ${count(macs)} multiply-accumulates an input, ${count(weights)} weights`,
    ...(plan.activationRanges === "dynamic"
      ? ["ranges       of activations at run time, of what each layer reads: none is calibrated"]
      : []),
    `samples      ${count(samples.train)} to train on${
      samples.copies > 1 && units.length > 0 ? `, ${samples.copies} versions of each` : ""
    }; ${count(samples.heldOut)} held out; ${count(samples.evaluate)} to evaluate`,
    "",
    layerTable(layers),
    "",
    units.length === 0 ? "nothing is trained" : unitTable(units),
    "",
    `memory       activations of all samples at most ${
      mebibytes(memory.activations)
    }, ${stored} ${where}${
      memory.step > 0 ? `; a training step about ${mebibytes(memory.step)}` : ""
    }`,
    `time         about ${duration(seconds.total)}: calibration ${duration(seconds.calibrate)}, ` +
    `training ${duration(seconds.distill)}, evaluation ${duration(seconds.evaluate)}`,
    `             estimated: ${measured.batch} inputs went forward in ${
      (measured.seconds * 1000).toPrecision(3)
    } ms on ${printable(measured.adapter)}; kernels that have to be compiled first take longer`,
  ];
  return `${parts.join("\n")}\n`;
}

function layerTable(layers: readonly PlannedLayer[]): string {
  const bits = (value: number | null) => value === null ? "float" : String(value);
  return alignedTable(
    ["layer", "operator", "unit", "MACs", "weights", "weight bits", "input bits"],
    layers.map((layer) => [
      layer.name,
      layer.opType,
      layer.unit ?? "-",
      layer.macs === null ? "-" : count(layer.macs),
      layer.weights === null ? "-" : count(layer.weights),
      layer.weights === null ? "-" : bits(layer.weightBits),
      bits(layer.activationBits),
    ]),
  );
}

function unitTable(units: readonly PlannedUnit[]): string {
  return alignedTable(
    ["training", "stage", "layers", "MACs", "steps", "likely", "batch", ""],
    units.map((unit) => [
      unit.name,
      unit.stage,
      count(unit.layers.length),
      count(unit.macs),
      count(unit.steps),
      count(unit.likelySteps),
      count(unit.batch),
      unit.trains === "" ? "nothing trains" : unit.trains,
    ]),
  );
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function count(value: number): string {
  return value.toLocaleString("en");
}

function mebibytes(bytes: number): string {
  return `${count(Math.ceil(bytes / 2 ** 20))} MiB`;
}

function duration(seconds: number): string {
  return seconds < 120 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}
