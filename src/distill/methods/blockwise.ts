// Distillation block by block (the default): units are cut where exactly one tensor is live, so a residual block is one
// unit. Below 8-bit activations the whole network is distilled behind it: blocks cannot see how their errors add up.
import { cutIntoBlocks } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import type { Method, Session } from "../session.ts";
import { networkStage, type NetworkStageOptions } from "./network_stage.ts";

/** Steps of a block when the whole network follows, and when nothing does or there are few levels. */
const SHORT = 60, LONG = 100;

/** Distils each block against the teacher's block, then the network against the teacher. */
export const blockwise: Method = async (session) => {
  const { recipe, network } = session;
  const blocks = cutIntoBlocks(network.teacher.graph);
  const stage = stageFor(session);
  const long = recipe.activationBits === 2 || stage.steps === 0;
  // The last block's output is the network's: the stage that follows matches it, and better.
  const units = long ? blocks : blocks.slice(0, Math.max(1, blocks.length - 1));
  await distillUnits(session, "blockwise", units, recipe.steps ?? (long ? LONG : SHORT));
  if (stage.steps > 0) await networkStage(session, blocks, stage);
};

/** What was best on average for the number of levels; at 8 bits the blocks leave nothing to repair. */
function stageFor({ recipe: { activationBits, networkSteps } }: Session): NetworkStageOptions {
  const stage = activationBits === 2
    ? { steps: 400, factor: 1.5, blockWeight: 8 }
    : { steps: activationBits < 8 ? 150 : 0, factor: 1, blockWeight: 1 };
  return { ...stage, steps: networkSteps ?? stage.steps };
}
