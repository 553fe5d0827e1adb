// Quantization-aware training, the method with labels: cross-entropy through fake quantizers, the whole network at once.
// The teacher's class probabilities and block outputs share the loss (Hinton, Vinyals, Dean 2015; Romero et al. 2015):
// on inputs that the network has learnt by heart the labels alone say little, and the student forgets what they do not
// say. The recipe may have the blocks distilled first, and the bits may fall in stages (APoT, Li, Dong, Wang 2020), each
// from what the one before has learnt.
import { cutIntoBlocks } from "../../graph/blocks.ts";
import type { LearningRates } from "../../quant/training_parameters.ts";
import { distillUnits } from "../block_loop.ts";
import { type NetworkLosses, trainNetwork } from "../network_training.ts";
import { lowerBits, startAtBits } from "../progressive.ts";
import type { Recipe } from "../recipe.ts";
import type { Method, Session } from "../session.ts";
import { BLOCKWISE, type Stage, stagesFor } from "../stage.ts";
import { unitsOf } from "../units.ts";
import { innerOutputs, networkRates, TEMPERATURE } from "./network_stage.ts";

/** Steps of the network that few samples get too. */
const LEAST_STEPS = 200;
/** Learning rate of SGD. */
const SGD_RATE = 0.01;

/** How the whole network is trained. */
interface Course {
  /** Passes over the samples. */
  readonly epochs: number;
  /** Learning rates relative to the base. */
  readonly rate: number;
  /** Weight of the block outputs' error beside the divergence of the class probabilities. */
  readonly blockWeight: number;
}

/** What was best on average: four levels need long and bold steps; at 8 bits there is little to repair and much to forget. */
function courseFor({ weightBits, activationBits }: Recipe): Course {
  const bits = Math.min(weightBits, activationBits ?? weightBits);
  if (bits < 3) return { epochs: 28, rate: 1.5, blockWeight: 8 };
  return bits < 8
    ? { epochs: 14, rate: 0.7, blockWeight: 1 }
    : { epochs: 5, rate: 0.1, blockWeight: 8 };
}

/** How long training takes with each of the bits that it goes through. */
export interface QatPlan {
  /** How the blocks are distilled, if with any steps. */
  readonly blocks: Stage;
  /** Steps of the whole network. */
  readonly networkSteps: number;
}

/**
 * What a recipe means; its steps are shared out among the bits.
 *
 * @param recipe complete, at the bits of the stage
 * @param clean samples
 * @param batch of a step of the network
 * @returns how the stage trains
 */
export function qatPlan(recipe: Recipe, clean: number, batch: number): QatPlan {
  const rounds = recipe.progressive.length + 1;
  const share = (steps: number) => Math.ceil(steps / rounds);
  const [blocks] = stagesFor([BLOCKWISE], recipe) as [Stage];
  const own = Math.max(LEAST_STEPS, Math.ceil(courseFor(recipe).epochs * clean / batch));
  return {
    blocks: { ...blocks, steps: share(blocks.steps) },
    networkSteps: share(recipe.networkSteps ?? own),
  };
}

/** Trains with labels. */
export const qat: Method = async (session) => {
  const { progressive } = session.recipe;
  const [first, ...others] = progressive;
  if (first === undefined) return trainAtBits(session);
  await trainAtBits(await startAtBits(session, first));
  for (const bits of others) await trainAtBits(await lowerBits(session, bits));
  await trainAtBits(await lowerBits(session));
};

/** The blocks, then the network. */
async function trainAtBits(session: Session): Promise<void> {
  const { batch, network, recipe, samples: { labels, clean } } = session;
  if (labels === undefined) {
    throw new TypeError('method "qat" needs the labels of the calibration inputs');
  }
  const { blocks, networkSteps } = qatPlan(recipe, clean, batch);
  if (blocks.steps > 0) {
    const units = unitsOf(network.teacher, blocks.unit, recipe.groups);
    // The recipe's learning rate is meant for the network, perhaps for another optimizer.
    const own = { ...session, recipe: { ...recipe, learningRate: null } };
    await distillUnits(own, "blockwise", units, blocks);
  }
  if (networkSteps === 0) return;
  const { teacherWeight, optimizer } = recipe;
  const losses: NetworkLosses = {
    ...(teacherWeight > 0 && {
      tensors: innerOutputs(network, cutIntoBlocks(network.teacher.graph)),
      tensorWeight: courseFor(recipe).blockWeight * teacherWeight,
      divergence: { temperature: TEMPERATURE, weight: teacherWeight },
    }),
    ...(teacherWeight < 1 && { labels: { classes: labels, weight: 1 - teacherWeight } }),
  };
  const optimization = { ...blocks.optimization, ...(optimizer && { optimizer }) };
  await trainNetwork(session, {
    stage: "qat",
    losses,
    steps: networkSteps,
    rates: ratesOf(session),
    training: { ...blocks, batch, optimization },
  });
  // Every layer was trained further, those of units that had been rolled back too.
  session.rolledBack.clear();
}

function ratesOf(session: Session): LearningRates {
  const { batch, recipe } = session;
  const { learningRate, optimizer } = recipe;
  if (optimizer !== "sgd") return networkRates(recipe, batch, courseFor(recipe).rate);
  const rate = learningRate ?? SGD_RATE;
  return {
    weights: rate,
    weightScales: rate,
    activationScales: rate,
    biases: rate,
    absolute: true,
  };
}
