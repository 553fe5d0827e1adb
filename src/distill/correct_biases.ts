// Bias correction (DFQ, Nagel et al. 2019, section 4.2): rounded weights shift the mean of a layer's outputs; the bias
// takes the shift back. Empirical: mean outputs of teacher and student on the calibration inputs, layer after layer, the
// layers before already quantized and corrected. Analytic: expected inputs from batch norm alone.
import { reductionForward } from "../../kernels/reduction.ts";
import { paddedSize } from "../../kernels/kernel.ts";
import { sizeOf } from "../core/nd_array.ts";
import type { NdArray } from "../core/nd_array.ts";
import { Plan } from "../gpu/plan.ts";
import { type Tensor, unpad } from "../gpu/tensor.ts";
import { partitionIntoLayers } from "../graph/blocks.ts";
import type { Node } from "../graph/graph.ts";
import { expectedInputs } from "../quant/expected_inputs.ts";
import { meanOutputs, tapMeans } from "../quant/mean_outputs.ts";
import { convolutionOf } from "./compensate.ts";
import type { Frontier } from "./frontier.ts";
import { advance, type Part, partBetween, recordLayerInput, studentValues } from "./inference.ts";
import { observeInputs } from "./observe_inputs.ts";
import type { Student } from "../quant/student.ts";
import type { Recipe } from "./recipe.ts";
import { quantizeInputs, type Session } from "./session.ts";

/** Every way to correct biases. */
export const BIAS_CORRECTIONS = {
  none: () => Promise.resolve(),
  empirical,
  analytic,
} as const satisfies Record<Recipe["biasCorrection"], (session: Session) => Promise<void>>;

/** Shifts each bias by the difference of the mean outputs of teacher and student on the calibration inputs. */
async function empirical(session: Session): Promise<void> {
  const { device, network, samples, student, report, signal } = session;
  const { shapes } = network.teacher;
  const batch = Math.min(session.batch, samples.clean);
  const images = new Map<string, Float64Array>();
  const options = { batch, samples: samples.clean, compiling: session.compiling };
  await observeInputs(
    device,
    network,
    session.teacher,
    samples.train,
    {
      ...options,
      record: recordMean,
    },
    (tensor, found) => addImage(images, tensor, unpad(shapes.get(tensor)!.slice(1), found.slice())),
  );
  const batches = Math.floor(samples.clean / batch);
  const units = partitionIntoLayers(network.teacher.graph);
  let frontier: Frontier = new Map([
    [network.input, await quantizeInputs(session, samples.train, batch * batches)],
  ]);
  for (const [i, unit] of units.entries()) {
    signal?.throwIfAborted();
    report({ stage: "correct biases", unit: unit.name, done: i, total: units.length });
    const part = partBetween(network.teacher, unit.inputs, unit.outputs);
    for (const node of part.nodes.filter(({ name }) => isCorrected(student, name))) {
      const taught = images.get(node.inputs[0]!)!.map((sum) => sum / batches);
      shiftBias(session, node, taught, await meanInput(session, part, node, frontier));
    }
    const needed = new Set(units.slice(i + 1).flatMap((later) => later.inputs));
    frontier = await follow(session, part, frontier, needed);
  }
}

/** Shifts each bias by what the rounding of the weights does to the mean output, where the mean input can be told. */
function analytic({ network, student }: Session): Promise<void> {
  const expected = expectedInputs(network.folded, network.statistics);
  for (const node of network.teacher.graph.nodes) {
    const means = expected.get(node.name);
    if (means === undefined || !isCorrected(student, node.name)) continue;
    const shape = network.teacher.shapes.get(node.inputs[0]!)!.slice(1);
    const image = Float64Array.from({ length: sizeOf(shape) }, (_, i) => means[i % means.length]!);
    shiftBias({ network, student }, node, image, image);
  }
  return Promise.resolve();
}

/** Whether a layer's mean output follows from its mean input. */
function isCorrected(student: Student, node: string): boolean {
  const layer = student.layers.get(node);
  return layer !== undefined && !layer.recurrent;
}

/** Adds to a layer's bias the teacher's mean output on the one mean input less the student's on the other. */
function shiftBias(
  { network: { teacher }, student }: Pick<Session, "network" | "student">,
  node: Node,
  taught: Float64Array,
  learnt: Float64Array,
): void {
  const layer = student.layers.get(node.name)!;
  const spec = convolutionOf(teacher.shapes, node);
  const mean = (values: NdArray<"float32">, image: Float64Array) =>
    meanOutputs(spec, { values, axis: layer.axis }, tapMeans(spec, image));
  // Constants of a channels-last graph are float32.
  const target = mean(teacher.graph.initializers.get(layer.weight) as NdArray<"float32">, taught);
  const found = mean(student.freezeLayer(node.name).weightValues, learnt);
  // prepareNetwork gave every layer a bias.
  const bias = layer.bias!.map((b, o) => b + target[o]! - found[o]!);
  student.setLayer({ ...layer, bias });
}

/** [H, W, C]: mean over the rows of what the student gives a layer. */
async function meanInput(
  { device, network, student, batch: largest }: Session,
  { inputs }: Part,
  node: Node,
  frontier: Frontier,
): Promise<Float64Array> {
  const input = node.inputs[0]!;
  const front = partBetween(network.teacher, inputs, [input]);
  const sets = inputs.map((name) => [name, frontier.get(name)!] as const);
  const { rows } = sets[0]![1];
  const batch = Math.min(largest, rows);
  using values = studentValues(device, network, student, front);
  using plan = new Plan(device);
  const tensors = new Map(
    sets.map(([name, set]) => [name, plan.tensor([batch, ...set.rowShape], name)]),
  );
  const y = recordMean(plan, recordLayerInput(plan, front, values, tensors, node));
  const sums = new Map<string, Float64Array>();
  for (let row = 0; row < rows; row += batch) {
    for (const [name, set] of sets) set.copyOut(row, batch, tensors.get(name)!);
    plan.replay();
    const found = await device.read(y);
    addImage(sums, input, unpad(network.teacher.shapes.get(input)!.slice(1), found));
  }
  return sums.get(input)!.map((sum) => sum * batch / rows);
}

/** Mean over the batch, every pixel and channel by itself, in the padded layout. */
function recordMean(plan: Plan, x: Tensor): Tensor {
  const batch = x.shape[0]!, size = paddedSize(x.shape) / batch;
  const y = plan.tensor([size], `mean of ${x.label}`);
  const mean = { operator: "mean", shape: [batch, size], axes: "leading" } as const;
  plan.run(reductionForward(mean, plan.device.target), { x: { ...x, shape: mean.shape }, y });
  return y;
}

function addImage(images: Map<string, Float64Array>, name: string, image: Float32Array): void {
  const sum = images.get(name);
  if (sum) image.forEach((value, i) => sum[i]! += value);
  else images.set(name, Float64Array.from(image));
}

/** The frontier behind a part of the student, without what nobody needs any more. */
async function follow(
  session: Session,
  part: Part,
  frontier: Frontier,
  needed: ReadonlySet<string>,
): Promise<Frontier> {
  const { device, network, student, batch, frontier: { residence, compact } } = session;
  const isNeeded = part.outputs.some((name) => needed.has(name));
  using values = studentValues(device, network, student, part);
  const storage = (name: string) => compact ? values.rowStorage(name) : "float32";
  const outputs: Frontier = isNeeded
    ? await advance(device, part, values, frontier, { batch, storage, residence })
    : new Map();
  const next: Frontier = new Map();
  for (const [name, set] of [...frontier, ...outputs]) {
    if (needed.has(name)) next.set(name, set);
    else set[Symbol.dispose]();
  }
  return next;
}
