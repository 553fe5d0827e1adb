// The whole-network stage: the student, already good block by block, is pulled towards the teacher's class
// probabilities and block outputs together. It repairs what blocks cannot see of each other, which matters where
// activations have very few levels.
import type { LearningRates } from "../../quant/training_parameters.ts";
import type { Block } from "../../graph/blocks.ts";
import type { Network } from "../network.ts";
import { heldOutDivergence, trainNetwork } from "../network_training.ts";
import type { Recipe } from "../recipe.ts";
import type { Session } from "../session.ts";

/** Temperature of the class probabilities. */
export const TEMPERATURE = 4;
/** The stage is undone when the held-out divergence grew by more than this: a guard against divergence only. */
const GUARD = 1.25;

/** How the whole network is trained. */
export interface NetworkStageOptions {
  readonly steps: number;
  /** Inputs of a step, unless the recipe says how many. */
  readonly batch: number;
  /** Factor of the learning rates. */
  readonly factor: number;
  /** Weight of the block outputs' error beside the divergence of the class probabilities. */
  readonly blockWeight: number;
}

/** Inputs of a step for which the base rates were measured. */
const BASE_BATCH = 64;

/**
 * Learning rates of whole-network training, relative to those measured as a base.
 *
 * @param recipe its own learning rate scales all of them, else the root of the batch does
 * @param batch inputs of a step
 * @param factor of the base
 * @returns weights, weight scales, activation scales, biases
 */
export function networkRates(
  { learningRate }: Pick<Recipe, "learningRate">,
  batch: number,
  factor: number,
): LearningRates {
  const base = 5e-3;
  const scale = learningRate === null
    ? factor * Math.sqrt(batch / BASE_BATCH)
    : learningRate / base;
  return {
    weights: base * scale,
    weightScales: 1e-3 * scale,
    activationScales: 2e-3 * scale,
    biases: 1e-3 * scale,
  };
}

/**
 * What the blocks hand on to one another.
 *
 * @param network of the blocks
 * @param blocks all of them
 * @returns names of their outputs, without the network's
 */
export function innerOutputs(network: Network, blocks: readonly Block[]): string[] {
  return blocks.map((block) => block.outputs[0]!).filter((name) => name !== network.output);
}

/**
 * Trains the whole student against the teacher, and undoes it if held-out samples say that it diverged.
 *
 * @param session the session
 * @param blocks the blocks whose outputs are matched
 * @param options steps and weights
 */
export async function networkStage(
  session: Session,
  blocks: readonly Block[],
  { steps, batch: own, factor, blockWeight }: NetworkStageOptions,
): Promise<void> {
  const { network, recipe } = session;
  const batch = Math.min(session.batch, recipe.batchSize ?? own);
  const kept = await keepUnlessDiverged(session, GUARD, () =>
    trainNetwork(session, {
      stage: "network",
      losses: {
        tensors: innerOutputs(network, blocks),
        tensorWeight: blockWeight,
        divergence: { temperature: TEMPERATURE, weight: 1 },
      },
      steps,
      batch,
      rates: networkRates(recipe, batch, factor),
    }));
  // Every layer was trained further, those of units that had been rolled back too.
  if (kept) session.rolledBack.clear();
}

/**
 * Trains, and puts the student back as it was when its class probabilities on held-out samples moved away from the
 * teacher's.
 *
 * @param session the session
 * @param guard how many times larger than before the divergence may be
 * @param training what to do
 * @returns whether the result was kept
 */
export async function keepUnlessDiverged(
  session: Session,
  guard: number,
  training: () => Promise<void>,
): Promise<boolean> {
  const { student } = session;
  const before = await heldOutDivergence(session, TEMPERATURE);
  const layers = [...student.layers.values()];
  const activations = [...student.activations.values()];
  await training();
  const after = await heldOutDivergence(session, TEMPERATURE);
  if (after <= guard * before) return true;
  for (const layer of layers) student.setLayer(layer);
  for (const state of activations) student.setActivation(state);
  return false;
}
