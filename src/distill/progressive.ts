// Bits that fall in stages (progressive quantization, as APoT trains): each stage starts from the weights that the one
// before has learnt, on grids searched anew, and from its activations' ranges.
import type { ActivationState } from "../quant/student.ts";
import { calibrate, observerOf } from "./calibrate.ts";
import { searchGrid } from "./create_student.ts";
import { inputPowers } from "./input_powers.ts";
import { type Network, withBits } from "./network.ts";
import { batchNormPolicy, type Recipe } from "./recipe.ts";
import type { Session } from "./session.ts";
import type { PassOptions } from "./teacher_pass.ts";

/**
 * Puts the student on grids of more bits than the recipe's.
 *
 * @param session the session of the recipe; its student changes in place, to what calibration gives
 * @param bits of weights and activations where the recipe asks for fewer
 * @returns the session at these bits
 */
export async function startAtBits(session: Session, bits: number): Promise<Session> {
  const stage = atBits(session, bits);
  await setWeights(stage);
  for (const state of await calibrated(stage, stage.network)) {
    if (state.learned) session.student.setActivation(state);
  }
  return stage;
}

/**
 * Puts the student on grids of fewer bits. Weights are searched anew; the scale of an activation changes as calibration
 * changes it between the two bit widths, so that it keeps what it has learnt.
 *
 * @param session the session of the recipe; its student changes in place
 * @param bits of weights and activations where the recipe asks for fewer; default: those of the recipe
 * @returns the session at these bits
 */
export async function lowerBits(session: Session, bits = 0): Promise<Session> {
  const stage = atBits(session, bits);
  const { student } = session;
  await setWeights(stage);
  const before = new Map(session.network.activationBits);
  for (const tensor of before.keys()) before.set(tensor, student.activations.get(tensor)!.bits);
  const old = new Map(
    (await calibrated(stage, { ...session.network, activationBits: before }))
      .map((state) => [state.tensor, state]),
  );
  for (const state of await calibrated(stage, stage.network)) {
    const now = student.activations.get(state.tensor)!;
    if (!state.learned || state.bits === now.bits) continue;
    student.setActivation(rescaled(state, now.scale / old.get(state.tensor)!.scale));
  }
  return stage;
}

/**
 * A recipe with its own bits, or more. Batch norm stays what its own bits make it.
 *
 * @param recipe complete
 * @param bits of weights and activations where the recipe asks for fewer
 * @returns the recipe of a stage
 */
export function recipeAtBits(recipe: Recipe, bits: number): Recipe {
  return {
    ...recipe,
    weightBits: Math.max(bits, recipe.weightBits),
    activationBits: recipe.activationBits && Math.max(bits, recipe.activationBits),
    batchNorm: batchNormPolicy(recipe),
  };
}

function atBits(session: Session, bits: number): Session {
  const raised = recipeAtBits(session.recipe, bits);
  return { ...session, recipe: raised, network: withBits(session.network, raised) };
}

async function setWeights(session: Session): Promise<void> {
  const { device, network, teacher, samples, student, recipe } = session;
  const powers = recipe.weightObserver === "hessian"
    ? await inputPowers(device, network, teacher, samples.train, observed(session))
    : undefined;
  for (const [node, bits] of network.weightBits) {
    const layer = student.layers.get(node)!;
    const own = { ...recipe, ...network.settings.get(node) };
    if (layer.bits !== bits) {
      student.setLayer(searchGrid({ ...layer, oddCodes: false }, bits, own, powers));
    }
  }
}

async function calibrated(session: Session, network: Network): Promise<ActivationState[]> {
  const { device, teacher, samples, recipe } = session;
  const options = { ...observed(session), ...observerOf(recipe) };
  return (await calibrate(device, network, teacher, samples.train, options)).states;
}

/** The inputs that are looked at. */
function observed({ samples: { clean }, batch, recipe }: Session): PassOptions {
  return {
    batch: Math.min(batch, clean),
    samples: Math.min(clean, recipe.calibrationSamples),
  };
}

function rescaled(state: ActivationState, factor: number): ActivationState {
  return { ...state, scale: Math.fround(state.scale * factor) };
}
