// How far tensors are from what they should be, summed on the GPU.
import { errorSums } from "../../kernels/mse.ts";
import type { Device } from "../gpu/device.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { rowsAndChannels } from "../ops/context.ts";
import { type ErrorMetrics, errorMetrics } from "../quant/metrics.ts";
import type { RowSet } from "./frontier.ts";

/** Distances of an output from its target, and the target's own mean and variance. */
export interface Measured extends ErrorMetrics {
  readonly targetMean: number;
  readonly targetVariance: number;
}

/** Reads the sums of {@linkcode errorSums}. */
export async function readErrorSums(device: Device, sums: Tensor): Promise<Measured> {
  const raw = await device.read(sums);
  // Totals and the sums that have not joined them yet.
  const total = Array.from({ length: 8 }, (_, i) => raw[i]! + raw[i + 8]!);
  const [squaredError = 0, squaredTarget = 0, dot = 0, target = 0, squaredOutput = 0, , count = 0] =
    total;
  const targetVariance = Math.max(squaredTarget / count - (target / count) ** 2, 0);
  return {
    ...errorMetrics({ count, squaredError, squaredTarget, dot, squaredOutput }),
    targetMean: target / count,
    targetVariance,
  };
}

/**
 * Compares two row sets.
 *
 * @param device where they lie
 * @param output what is judged
 * @param target what it should be
 * @param batch rows at a time
 * @returns distances over all rows
 */
export async function compareRows(
  device: Device,
  output: RowSet,
  target: RowSet,
  batch: number,
): Promise<Measured> {
  const sums = device.tensor([16], { label: "error sums" });
  for (let first = 0; first < output.rows; first += batch) {
    const count = Math.min(batch, output.rows - first);
    using plan = new Plan(device);
    const y = plan.tensor([count, ...output.rowShape], "output");
    const teacher = target === output ? y : plan.tensor(y.shape, "target");
    output.copyOut(first, count, y);
    if (teacher !== y) target.copyOut(first, count, teacher);
    plan.run(errorSums(rowsAndChannels(y.shape), device.target), { y, teacher, sums });
    plan.replay();
  }
  const measured = await readErrorSums(device, sums);
  device.release(sums);
  return measured;
}
