// The weights' start with error compensation (quant/gptq.ts): layer after layer of a unit, on the inputs that the
// student itself gives the layer, the layers before it already rounded.
import type { Conv2dSpec } from "../../kernels/conv2d.ts";
import { gram, patchSize } from "../../kernels/gram.ts";
import { padded } from "../../kernels/kernel.ts";
import { Rng } from "../core/rng.ts";
import { Plan } from "../gpu/plan.ts";
import type { Node } from "../graph/graph.ts";
import { conv2dSpecOf } from "../ops/layer.ts";
import { compensateLayer } from "../quant/gptq.ts";
import type { Frontier } from "./frontier.ts";
import { type Part, partBetween, recordLayerInput, studentValues } from "./inference.ts";
import { shapesForBatch } from "./network.ts";
import type { Session } from "./session.ts";

const PIXEL_STREAM = 0x6f71_3c5;

/** Inputs looked at; more only where a layer makes few pixels of each. */
const SAMPLES = 256;

/** Rows of X wanted for each weight of an output channel: the more, the less of H is chance. */
const ROWS_PER_WEIGHT = 16;
const LEAST_ROWS = 4096;

/** Layers with more weights an output channel keep nearest rounding: factoring H takes K^3 / 6 steps on the host. */
const MOST_WEIGHTS = 1 << 13;

/** Bytes of the patches of a batch. */
const PATCHES_BUDGET = 1 << 27;

/**
 * Compensates the rounding of a part's layers, one after another; the student's latent weights change in place. An LSTM
 * keeps nearest rounding.
 *
 * @param session the session
 * @param part a part of the teacher's graph
 * @param frontier its inputs, as the student sees them
 */
export async function compensateLayers(
  session: Session,
  part: Part,
  frontier: Frontier,
): Promise<void> {
  const { student, signal } = session;
  for (const node of part.nodes) {
    const layer = student.layers.get(node.name);
    if (layer === undefined || layer.recurrent) continue;
    if (layer.latent.data.length / layer.latent.shape[layer.axis]! > MOST_WEIGHTS) continue;
    signal?.throwIfAborted();
    student.setLayer(compensateLayer(layer, await hessians(session, part, node, frontier)));
  }
}

/** [groups, K, K]: X^T X of a layer's inputs, at pixels chosen at random. */
async function hessians(
  { device, network, student, batch: largest, recipe }: Session,
  { inputs }: Part,
  node: Node,
  frontier: Frontier,
): Promise<Float64Array> {
  const input = node.inputs[0]!;
  const front = partBetween(network.teacher, inputs, [input]);
  const sets = inputs.map((name) => [name, frontier.get(name)!] as const);
  const available = sets[0]![1].rows;
  const batch = Math.min(largest, available);
  const spec = convolutionOf(shapesForBatch(network.teacher, batch), node);
  const size = patchSize(spec);
  const pixels = spec.batch * spec.outHeight * spec.outWidth;
  const wanted = Math.max(LEAST_ROWS, ROWS_PER_WEIGHT * size);
  const batches = Math.min(
    Math.floor(available / batch),
    Math.max(Math.ceil(SAMPLES / batch), Math.ceil(wanted / pixels)),
  );
  const fit = Math.floor(PATCHES_BUDGET / (4 * spec.group * padded(size)));
  const rows = Math.max(1, Math.min(pixels, fit, Math.ceil(wanted / batches)));
  const chosen = new Rng(recipe.seed ^ PIXEL_STREAM).permutation(pixels).slice(0, rows).sort();

  using values = studentValues(device, network, student, front);
  using plan = new Plan(device);
  const tensors = new Map(
    sets.map(([name, set]) => [name, plan.tensor([batch, ...set.rowShape], name)]),
  );
  const x = recordLayerInput(plan, front, values, tensors, node);
  const h = plan.tensor([spec.group * size, size], `X^T X of ${node.name}`);
  const table = device.uint32(chosen, { label: "pixels" });
  plan.run(gram({ ...spec, rows }, device.target), { x, pixels: table, h });
  const sum = new Float64Array(spec.group * size ** 2);
  for (let b = 0; b < batches; b++) {
    for (const [name, set] of sets) set.copyOut(b * batch, batch, tensors.get(name)!);
    plan.replay();
    (await device.read(h)).forEach((value, i) => sum[i]! += value);
  }
  device.release(table);
  return sum;
}

/**
 * A layer as a convolution; a Gemm is one over single pixels, or over the steps of sequences.
 *
 * @param shapes channels-last shape by tensor name
 * @param node Conv or Gemm
 * @returns the convolution
 */
export function convolutionOf(
  shapes: ReadonlyMap<string, readonly number[]>,
  node: Node,
): Conv2dSpec {
  if (node.opType === "Conv") return conv2dSpecOf({ shapes }, node);
  const [batch = 1, ...rest] = shapes.get(node.inputs[0]!)!;
  const channels = rest.at(-1)!;
  const steps = rest.length === 2 ? rest[0]! : 1;
  const images = new Map([
    [node.inputs[0]!, [batch, steps, 1, channels]],
    [node.outputs[0]!, [batch, steps, 1, 1]],
  ]);
  return conv2dSpecOf({ shapes: images }, node);
}
