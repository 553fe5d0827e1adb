// The statistics of batch norm, measured anew behind the trained integers: while weights move, running statistics lag
// behind, and with frozen ones they are the teacher's. Every batch passes through batch norms that use its own statistics;
// the new ones are those of all batches together.
import { batchTable } from "../data/sampler.ts";
import { type BatchNormState, Student, weightsOnGrid } from "../quant/student.ts";
import { NetworkValues, partBetween } from "./inference.ts";
import { fakeQuantizeInput } from "./input_quantizer.ts";
import { MiniBatches } from "./mini_batches.ts";
import type { Session } from "./session.ts";
import { train } from "./training.ts";

/** Batches measured at most. */
const BATCHES = 16;
const NO_RATES = { weights: 0, weightScales: 0, activationScales: 0, biases: 0 } as const;

/**
 * Replaces mean and variance of every batch norm of the student.
 *
 * @param session the session; its student is improved in place
 */
export async function reestimateBatchNorm(session: Session): Promise<void> {
  const { samples, student, recipe } = session;
  const batch = Math.min(session.batch, samples.clean);
  const count = Math.min(BATCHES, Math.floor(samples.clean / batch));
  const table = batchTable(samples.clean, batch, count, recipe.seed);
  const seen = new Map<string, BatchNormState[]>();
  for (let i = 0; i < count; i++) {
    const indices = table.slice(i * batch, (i + 1) * batch);
    for (const { node, batchNorm } of (await measured(session, indices)).layers.values()) {
      if (batchNorm) seen.set(node, [...seen.get(node) ?? [], batchNorm]);
    }
  }
  for (const [node, states] of seen) {
    const layer = student.layers.get(node)!;
    student.setLayer({ ...layer, batchNorm: { ...layer.batchNorm!, ...together(states) } });
  }
}

/** A copy of the student whose batch norms have the statistics of a batch. */
async function measured(session: Session, indices: Uint32Array<ArrayBuffer>): Promise<Student> {
  const { device, network, samples, student, teacher } = session;
  const layers = Array.from(
    student.layers.values(),
    (layer) => ({ ...layer, latent: weightsOnGrid(layer) }),
  );
  const copy = new Student(layers, student.activations.values());
  const batch = indices.length;
  using batches = new MiniBatches(device, indices, batch);
  const input = student.activations.get(network.input);
  using values = new NetworkValues(
    device,
    new Map(),
    new Map(input ? [[network.input, input]] : []),
  );
  await train({
    device,
    student: copy,
    part: partBetween(network.trained, [network.input], [network.output]),
    layers: [...student.layers.keys()],
    constants: teacher,
    steps: 1,
    batch,
    rates: NO_RATES,
    // Weights on the grid are what they round to.
    weightQuantizer: "ste",
    batchNormLiveSteps: 1,
    batchNormMomentum: 1,
    keep: new Set(),
    terms: 1,
    signal: session.signal,
    inputs: (plan, state) => {
      const x = samples.train.recordGather(plan, batches, state, network.input);
      return new Map([[
        network.input,
        fakeQuantizeInput(plan, x, values.quantizer(network.input)),
      ]]);
    },
  });
  return copy;
}

/** Mean and variance of equally large parts taken together. */
function together(parts: readonly BatchNormState[]): Pick<BatchNormState, "mean" | "variance"> {
  const average = (value: (part: BatchNormState) => number) =>
    parts.reduce((sum, part) => sum + value(part), 0) / parts.length;
  const mean = parts[0]!.mean.map((_, c) => average((part) => part.mean[c]!));
  const variance = mean.map((center, c) =>
    average((part) => part.variance[c]! + (part.mean[c]! - center) ** 2)
  );
  return { mean, variance };
}
