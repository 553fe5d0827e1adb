// Distillation layer by layer: every weighted layer is a unit of its own, with the nodes that follow it.
import { partitionIntoLayers } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import type { Method } from "../session.ts";

/** Steps of a layer unless the recipe says otherwise. */
export const LAYER_STEPS = 200;

/** Distils each layer against the teacher's layer. */
export const layerwise: Method = (session) => {
  const layers = partitionIntoLayers(session.network.teacher.graph);
  return distillUnits(session, "layerwise", layers, session.recipe.steps ?? LAYER_STEPS);
};
