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
    const { recipe, network, samples } = session;
    for (const stage of stagesFor(PRESETS[name].stages, recipe)) {
      const units = unitsOf(network.teacher, stage.unit, recipe.groups);
      await distillUnits(session, name, units, stage);
    }
    const stage = lastStage(name, recipe, samples.clean);
    const steps = recipe.networkSteps ?? stage.steps;
    const blocks = cutIntoBlocks(network.teacher.graph);
    if (steps > 0) await networkStage(session, blocks, { ...stage, steps });
  };
}

/** Inputs of a step; four levels gained 0.2 points from more and smaller steps over as many inputs. */
const BATCH = 64, BATCH_OF_TWO_BITS = 32;
/** Passes over the samples, and inputs at most: with many samples, a part of a pass more says little. */
const PASSES = 28, MOST_INPUTS = 128_000;
/** Samples from which more than four levels gain from it: with fewer, what the blocks left is learnt by heart. */
const MANY = 3000;

/**
 * What was best on average: with four levels long and bold; more levels gain from it when there are many samples, and
 * eight bits leave nothing to gain.
 *
 * @param name of the preset
 * @param recipe its bits, and the inputs of a step if it says so
 * @param clean samples to train on
 * @returns how the whole network is trained behind its units
 */
export function lastStage(
  name: PresetName,
  { activationBits, weightBits, batchSize }: Pick<
    Recipe,
    "activationBits" | "weightBits" | "batchSize"
  >,
  clean: number,
): NetworkStageOptions {
  const batch = batchSize ?? (activationBits === 2 ? BATCH_OF_TWO_BITS : BATCH);
  const passes = (count: number) => Math.ceil(Math.min(MOST_INPUTS, count * clean) / batch);
  if (name === "blockwise" && activationBits === 2) {
    return { batch, steps: passes(PASSES), factor: 1.5, blockWeight: 8 };
  }
  const few = Math.min(weightBits, activationBits ?? weightBits) < 8;
  if (name === "blockwise" && few && clean >= MANY) {
    return { batch, steps: passes(PASSES / 2), factor: 0.7, blockWeight: 1 };
  }
  return { batch, steps: 0, factor: 0.25, blockWeight: 8 };
}
