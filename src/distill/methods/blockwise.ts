// Distillation block by block (the default): units are cut where exactly one tensor is live, so a residual block is one
// unit. Where it was measured to help, at 2-bit activations, the whole network is distilled behind it: blocks cannot see
// how their errors add up.
import { cutIntoBlocks } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import type { Method } from "../session.ts";
import { networkStage, type NetworkStageOptions } from "./network_stage.ts";

/** Steps of a block unless the recipe says otherwise. */
export const BLOCK_STEPS = 200;

/** Distils each block against the teacher's block, then the network against the teacher. */
export const blockwise: Method = async (session) => {
  const { recipe, network } = session;
  const blocks = cutIntoBlocks(network.teacher.graph);
  const stage = stageFor(recipe.activationBits);
  const steps = recipe.networkSteps ?? stage.steps;
  await distillUnits(session, "blockwise", blocks, recipe.steps ?? BLOCK_STEPS);
  if (steps > 0) await networkStage(session, blocks, { ...stage, steps });
};

/**
 * What was best on average: with four levels long and bold; more levels gain nothing from it.
 *
 * @param activationBits of the recipe
 * @returns how the whole network is trained behind its blocks
 */
export function stageFor(activationBits: number): NetworkStageOptions {
  if (activationBits === 2) return { steps: 400, factor: 1.5, blockWeight: 8 };
  return { steps: 0, factor: 0.25, blockWeight: 8 };
}
