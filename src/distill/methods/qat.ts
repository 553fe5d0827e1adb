// Quantization-aware training, the baseline with labels: cross-entropy through straight-through fake quantizers with
// learned scales (LSQ) or fixed ones (STE), the whole network at once, from the same calibrated start.
import { trainNetwork } from "../network_training.ts";
import type { Method } from "../session.ts";
import { networkRates } from "./network_stage.ts";

/** Passes over the samples. */
const EPOCHS = 10;
const LEAST_STEPS = 200;
/** Learning rates relative to the base; at 8 bits there is little to repair and much to forget. */
const RATE = 0.5, RATE_AT_8_BITS = 0.1;

/** Trains with labels. */
export const qat: Method = (session) => {
  const { labels, clean } = session.samples;
  if (labels === undefined) {
    throw new TypeError('method "qat" needs the labels of the calibration inputs');
  }
  const epochs = Math.ceil(EPOCHS * clean / session.batch);
  return trainNetwork(session, {
    stage: "qat",
    losses: { tensors: [], tensorWeight: 0, labels },
    steps: session.recipe.steps ?? Math.max(LEAST_STEPS, epochs),
    rates: networkRates(session, session.recipe.weightBits < 8 ? RATE : RATE_AT_8_BITS),
    batchNormLive: 0.7,
  });
};
