// All layers at once: teacher and student run side by side, and the squared errors of every layer's output, each over its
// own variance, are minimized together. One pass through both networks serves all layers.
import { layerEnds } from "../evaluate.ts";
import { trainNetwork } from "../network_training.ts";
import type { Method } from "../session.ts";
import { networkRates } from "./network_stage.ts";

const STEPS = 400;

/** Distils all layers together. */
export const joint: Method = (session) =>
  trainNetwork(session, {
    stage: "joint",
    losses: { tensors: [...new Set(layerEnds(session.network).values())], tensorWeight: 1 },
    steps: session.recipe.steps ?? STEPS,
    rates: networkRates(session, 3),
    batchNormLive: 0.7,
  });
