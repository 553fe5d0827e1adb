// Distillation block by block (the default): units are cut where exactly one tensor is live, so a residual block is one
// unit; where activations have 2 bits the whole network is distilled behind it.
import { cutIntoBlocks } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import type { Method } from "../session.ts";

/** Distils each block against the teacher's block. */
export const blockwise: Method = async (session) => {
  await distillUnits(session, "blockwise", cutIntoBlocks(session.network.teacher.graph));
};
