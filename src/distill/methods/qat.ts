// Quantization-aware training, the baseline with labels: cross-entropy through straight-through fake quantizers with
// learned scales (LSQ) or fixed ones (STE), the whole network at once, from the same calibrated start. The teacher's
// class probabilities and block outputs share the loss (Hinton, Vinyals, Dean 2015; Romero et al. 2015): on inputs that
// the network has learnt by heart the labels alone say little, and the student forgets what they do not say.
import { cutIntoBlocks } from "../../graph/blocks.ts";
import { type NetworkLosses, trainNetwork } from "../network_training.ts";
import type { Method } from "../session.ts";
import { innerOutputs, networkRates, TEMPERATURE } from "./network_stage.ts";

/** Passes over the samples. */
const EPOCHS = 5;
const LEAST_STEPS = 200;
/** Learning rates relative to the base; at 8 bits there is little to repair and much to forget. */
const RATE = 0.5, RATE_AT_8_BITS = 0.1;
/** Weight of the block outputs' error beside the divergence of the class probabilities. */
const BLOCK_WEIGHT = 8;

/** Trains with labels. */
export const qat: Method = (session) => {
  const { batch, network, recipe, samples: { labels, clean } } = session;
  if (labels === undefined) {
    throw new TypeError('method "qat" needs the labels of the calibration inputs');
  }
  const { teacherWeight, weightBits } = recipe;
  const losses: NetworkLosses = {
    ...(teacherWeight > 0 && {
      tensors: innerOutputs(network, cutIntoBlocks(network.teacher.graph)),
      tensorWeight: BLOCK_WEIGHT * teacherWeight,
      divergence: { temperature: TEMPERATURE, weight: teacherWeight },
    }),
    ...(teacherWeight < 1 && { labels: { classes: labels, weight: 1 - teacherWeight } }),
  };
  return trainNetwork(session, {
    stage: "qat",
    losses,
    steps: recipe.steps ?? qatSteps(clean, batch),
    rates: networkRates(session, weightBits < 8 ? RATE : RATE_AT_8_BITS),
  });
};

/**
 * Steps unless the recipe says otherwise.
 *
 * @param clean samples
 * @param batch of a step
 * @returns five passes over the samples, 200 at least
 */
export function qatSteps(clean: number, batch: number): number {
  return Math.max(LEAST_STEPS, Math.ceil(EPOCHS * clean / batch));
}
