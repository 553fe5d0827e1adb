// Static post-training quantization: the calibrated scales, and nearest rounding or, layer by layer, rounding with error
// compensation (GPTQ). Nothing is trained. Every other method starts from the same scales.
import { partitionIntoLayers } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import type { Method } from "../session.ts";

/** Leaves the student as calibrated, up to the rounding. */
export const ptq: Method = async (session) => {
  if (session.recipe.weightRounding === "nearest") return;
  await distillUnits(session, "ptq", partitionIntoLayers(session.network.teacher.graph), 0);
};
