// The methods that train unit by unit: the stages of a preset, one after another. Behind stilla's own blocks, where it
// was measured to help, the whole network is distilled: blocks cannot see how their errors add up.
import { cutIntoBlocks } from "../../graph/blocks.ts";
import { distillUnits } from "../block_loop.ts";
import { type PresetName, PRESETS } from "../presets.ts";
import type { Recipe } from "../recipe.ts";
import type { Method } from "../session.ts";
import { stagesFor } from "../stage.ts";
import { unitsOf } from "../units.ts";
import { networkStage, type NetworkStageOptions } from "./network_stage.ts";

/**
 * Makes a method of a preset.
 *
 * @param name of the preset
 * @returns distils each unit against the teacher's, stage by stage, then the network if that pays
 */
export function reconstruct(name: PresetName): Method {
  return async (session) => {
    const { recipe, network } = session;
    for (const stage of stagesFor(PRESETS[name].stages, recipe)) {
      const units = unitsOf(network.teacher, stage.unit, recipe.groups);
      await distillUnits(session, name, units, stage);
    }
    const stage = lastStage(name, recipe);
    const steps = recipe.networkSteps ?? stage.steps;
    const blocks = cutIntoBlocks(network.teacher.graph);
    if (steps > 0) await networkStage(session, blocks, { ...stage, steps });
  };
}

/**
 * What was best on average: with four levels long and bold; more levels gain nothing from it.
 *
 * @param name of the preset
 * @param recipe its bits
 * @returns how the whole network is trained behind its units
 */
export function lastStage(name: PresetName, { activationBits }: Recipe): NetworkStageOptions {
  if (name === "blockwise" && activationBits === 2) {
    return { steps: 400, factor: 1.5, blockWeight: 8 };
  }
  return { steps: 0, factor: 0.25, blockWeight: 8 };
}
