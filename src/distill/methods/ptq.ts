// Static post-training quantization: the calibrated scales, and nearest rounding or, layer by layer, rounding with error
// compensation (GPTQ). Nothing is trained. Every other method starts from the same scales.
import { distillUnits } from "../block_loop.ts";
import type { Method } from "../session.ts";
import { BLOCKWISE } from "../stage.ts";
import { unitsOf } from "../units.ts";

/** Leaves the student as calibrated, up to the rounding. */
export const ptq: Method = async (session) => {
  const { recipe, network } = session;
  if (recipe.weightRounding === "nearest") return;
  const layers = unitsOf(network.teacher, recipe.unit ?? "layer", recipe.groups);
  await distillUnits(session, "ptq", layers, { ...BLOCKWISE, steps: 0 });
};
