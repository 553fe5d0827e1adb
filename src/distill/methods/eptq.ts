// EPTQ (Gordon et al. 2023, as in Sony's Model Compression Toolkit): the rounding of all layers is learned at once, from
// the errors of all their outputs, while the activations are quantized ever more. Adam at 3e-2 for the rounding; the
// authors step the biases with SGD and momentum 0.9, here Adam does at the same rate; they compare the outputs of layers in
// front of the activation function, and let the regulariser act in its warm-up too, where its exponent of 20 leaves it
// nothing but what is almost rounded.
import { layerEnds } from "../evaluate.ts";
import { hessianImportance } from "../importance.ts";
import { partBetween } from "../inference.ts";
import { trainNetwork } from "../network_training.ts";
import type { Method } from "../session.ts";
import { learningRates, type Stage, stagesFor } from "../stage.ts";
import { EPTQ } from "../presets.ts";

/** Learns the rounding of the whole network. */
export const eptq: Method = async (session) => {
  const { network, recipe } = session;
  const [stage] = stagesFor([EPTQ], recipe) as [Stage];
  const tensors = [...new Set(layerEnds(network).values())];
  const importance = stage.loss.kind === "hessian"
    ? await hessianImportance(
      session,
      partBetween(network.teacher, [network.input], [network.output]),
      new Map([[network.input, session.samples.train]]),
      tensors,
    )
    : undefined;
  await trainNetwork(session, {
    stage: "eptq",
    losses: { tensors, ...(importance && { importance }) },
    steps: stage.steps,
    rates: learningRates(stage, recipe, stage.batch),
    training: stage,
  });
  for (const { rows } of importance?.values() ?? []) rows[Symbol.dispose]();
};
