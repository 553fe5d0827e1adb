// All layers at once: teacher and student run side by side, and the squared errors of every layer's output, each over its
// own variance, are minimized together. One pass through both networks serves all layers.
import { layerEnds } from "../evaluate.ts";
import { trainNetwork } from "../network_training.ts";
import type { Method } from "../session.ts";
import { keepUnlessDiverged, networkRates } from "./network_stage.ts";

/** Steps unless the recipe says otherwise. */
export const JOINT_STEPS = 400;

/** Distils all layers together; what is worse than the PTQ start on held-out samples is not kept. */
export const joint: Method = async (session) => {
  const { batch, network, recipe, rolledBack, student } = session;
  const kept = await keepUnlessDiverged(session, 1, () =>
    trainNetwork(session, {
      stage: "joint",
      losses: { tensors: [...new Set(layerEnds(network).values())] },
      steps: recipe.steps ?? JOINT_STEPS,
      rates: networkRates(recipe, batch, 3),
    }));
  if (!kept) { for (const layer of student.layers.keys()) rolledBack.add(layer); }
};
