// Distillation block by block (the default): units are cut where exactly one tensor is live, so a residual block is one
// unit; where activations have 2 bits the whole network is distilled behind it.
import { cutIntoBlocks } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import type { Method } from "../session.ts";
import { networkStage } from "./network_stage.ts";

/** Distils each block against the teacher's block, then the network against the teacher. */
export const blockwise: Method = async (session) => {
  const { recipe, network } = session;
  const blocks = cutIntoBlocks(network.teacher.graph);
  await distillUnits(session, "blockwise", blocks);
  const stage = recipe.activationBits === 2
    ? { steps: 400, factor: 1.5, blockWeight: 8 }
    : { steps: 150, factor: 1, blockWeight: 1 };
  const steps = recipe.networkSteps ?? stage.steps;
  if (steps > 0) await networkStage(session, blocks, { ...stage, steps });
};
