// Static post-training quantization: the calibrated scales, and nearest rounding or, layer by layer, rounding with error
// compensation (GPTQ); then biases that put the mean outputs right, if asked for. Nothing is trained. Every other method
// starts from the same scales.
import { distillUnits } from "../block_loop.ts";
import { BIAS_CORRECTIONS } from "../correct_biases.ts";
import type { Method } from "../session.ts";
import { BLOCKWISE } from "../stage.ts";
import { unitsOf } from "../units.ts";

/** Leaves the student as calibrated, up to the rounding and the biases. */
export const ptq: Method = async (session) => {
  const { recipe, network } = session;
  if (recipe.weightRounding === "gptq") {
    const layers = unitsOf(network.teacher, recipe.unit ?? "layer", recipe.groups);
    await distillUnits(session, "ptq", layers, { ...BLOCKWISE, steps: 0 });
  }
  await BIAS_CORRECTIONS[recipe.biasCorrection](session);
};
