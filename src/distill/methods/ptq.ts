// Static post-training quantization: the calibrated scales, and nearest rounding or, layer by layer, rounding with error
// compensation (GPTQ); then biases that put the mean outputs right, if asked for. Nothing is trained. Every other method
// starts from the same scales.
import { partitionIntoLayers } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import { BIAS_CORRECTIONS } from "../correct_biases.ts";
import type { Method } from "../session.ts";

/** Leaves the student as calibrated, up to the rounding and the biases. */
export const ptq: Method = async (session) => {
  const { network, recipe } = session;
  if (recipe.weightRounding === "gptq") {
    await distillUnits(session, "ptq", partitionIntoLayers(network.teacher.graph), 0);
  }
  await BIAS_CORRECTIONS[recipe.biasCorrection](session);
};
