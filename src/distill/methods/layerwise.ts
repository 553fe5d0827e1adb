// Distillation layer by layer: every weighted layer is a unit of its own, with the nodes that follow it.
import { partitionIntoLayers } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import type { Method } from "../session.ts";

/** Distils each layer against the teacher's layer. */
export const layerwise: Method = (session) =>
  distillUnits(session, "layerwise", partitionIntoLayers(session.network.teacher.graph));
