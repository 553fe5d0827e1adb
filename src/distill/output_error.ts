// Which of several calibrations of the activations takes the network's output the least far from the teacher's, the
// weights left as they are.
import type { Device } from "../gpu/device.ts";
import { KernelSurvey } from "../gpu/kernel_survey.ts";
import { Plan } from "../gpu/plan.ts";
import type { ActivationState } from "../quant/student.ts";
import { RowSet } from "./frontier.ts";
import { advance, NetworkValues, partBetween, recordForward } from "./inference.ts";
import { compareRows } from "./measure.ts";
import type { Network } from "./network.ts";
import type { PassOptions } from "./teacher_pass.ts";

/** Part of the first candidate's error that another must fall below: on a few inputs, smaller differences say nothing. */
const CLEARLY = 0.9;

/**
 * Chooses between quantizers of all activations by the mean squared error of the network's output.
 *
 * @param device where to run
 * @param network the network
 * @param teacher its values
 * @param images the network's inputs
 * @param candidates quantizers by candidate
 * @param options which inputs
 * @returns place among the candidates: the first, unless another is better by a tenth, then the best
 */
export async function leastOutputError(
  device: Device,
  network: Network,
  teacher: NetworkValues,
  images: RowSet,
  candidates: readonly ActivationState[][],
  { batch, samples, compiling }: PassOptions,
): Promise<number> {
  const part = partBetween(network.teacher, [network.input], [network.output]);
  const rows = Math.min(samples, images.rows), size = Math.min(batch, rows);
  using inputs = new RowSet(device, rows, images.rowShape, "calibration inputs");
  using plan = new Plan(device);
  const x = plan.tensor([size, ...images.rowShape], network.input);
  for (let first = 0; first < rows; first += size) {
    const count = Math.min(size, rows - first);
    images.copyOut(first, count, x);
    await inputs.copyIn(x, first, count);
  }
  const output = async (values: NetworkValues): Promise<RowSet> => {
    compiling?.signal?.throwIfAborted();
    const from = new Map([[network.input, inputs]]);
    return (await advance(device, part, values, from, { batch: size })).get(network.output)!;
  };
  using target = await output(teacher);
  let best = 0, least = Infinity;
  for (const [i, states] of candidates.entries()) {
    const quantizers = new Map(states.map((state) => [state.tensor, state]));
    using values = new NetworkValues(device, network.teacher.graph.initializers, quantizers);
    if (compiling !== undefined) {
      using survey = new KernelSurvey(device);
      const input = survey.tensor(x.shape, network.input);
      recordForward(survey, part, values, new Map([[network.input, input]]));
      await device.compileAhead(survey.kernels, compiling);
    }
    using quantized = await output(values);
    const { mse } = await compareRows(device, quantized, target, size);
    if (i === 0) least = CLEARLY * mse;
    else if (mse < least) [best, least] = [i, mse];
  }
  return best;
}
