// How much the elements or samples of a tensor matter to the network's output, as weights of a unit's squared errors.
//   fisher   g^2 of each element, g the gradient of KL(teacher || student) of the class probabilities with respect to the
//            student's tensor (BRECQ, Li et al. 2021, equation 10; the authors' code adds 1 to |g|, which leaves little of
//            the difference to plain squares)
//   hessian  of each sample: the expectation of the squared gradients of random projections of the teacher's output, summed
//            over the positions, of the channel where it is largest (EPTQ, Gordon et al. 2023)
import { binaryForward } from "../../kernels/elementwise.ts";
import { addSampleImportance } from "../../kernels/importance.ts";
import { errorSums } from "../../kernels/mse.ts";
import { distillationLoss } from "../../kernels/softmax.ts";
import { Rng } from "../core/rng.ts";
import { Tape } from "../autograd/tape.ts";
import { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../gpu/tensor.ts";
import { rowsAndChannels } from "../ops/context.ts";
import { type Frontier, RowSet } from "./frontier.ts";
import { type Part, recordForward } from "./inference.ts";
import { readErrorSums } from "./measure.ts";
import type { Session } from "./session.ts";

const PROBE_STREAM = 0x3c6e_f3;
/** Random projections a sample. */
const PROBES = 4;

/** Importance of a tensor's elements or samples, with its mean. */
export interface Importance {
  /** [.., C] of each element, or [1] of each sample. */
  readonly rows: RowSet;
  readonly mean: number;
}

/**
 * The Fisher importance of every element of a tensor.
 *
 * @param session the session
 * @param rest what lies between the tensor and the network's output; the tensor is its first input
 * @param student the inputs of `rest` as the student has them
 * @param teacher as the teacher has them
 * @returns weights in the shape of the tensor
 */
export async function fisherImportance(
  session: Session,
  rest: Part,
  student: Frontier,
  teacher: Frontier,
): Promise<Importance> {
  const { device, network, batch } = session;
  const tensor = rest.inputs[0]!;
  const set = student.get(tensor)!;
  const rows = new RowSet(device, set.rows, set.rowShape, `importance of ${tensor}`);
  using plan = new Plan(device);
  const tape = newTape(plan);
  const own = inputsOf(plan, rest, student, batch);
  const targets = inputsOf(plan, rest, teacher, batch);
  const x = own.get(tensor)!;
  tape.watch(x);
  const wanted = recordForward(plan, rest, session.teacher, targets).get(network.output)!;
  const logits = recordForward(plan, rest, session.teacher, own, new Set(), tape)
    .get(network.output)!;
  const { rows: count, channels: classes } = rowsAndChannels(logits.shape);
  const loss = plan.tensor([count, 1], "divergence");
  const kernel = distillationLoss({ rows: count, classes, temperature: 1 });
  tape.give(logits, (dlogits) => plan.run(kernel, { teacher: wanted, logits, loss, dlogits }));
  tape.backward();
  const y = plan.tensor(x.shape, "squared gradient");
  const g = tape.gradient(x)!;
  plan.run(binaryForward({ operator: "mul", a: x.shape, b: x.shape }), { a: g, b: g, y });
  for (let first = 0; first < set.rows; first += batch) {
    const size = Math.min(batch, set.rows - first);
    for (const [name, input] of own) student.get(name)!.copyOut(first, size, input);
    for (const [name, input] of targets) teacher.get(name)!.copyOut(first, size, input);
    plan.replay();
    await rows.copyIn(y, first, size);
  }
  return { rows, mean: await meanOf(session, rows) };
}

/**
 * The Hessian importance of every sample, for several tensors at once.
 *
 * @param session the session
 * @param part of the teacher, up to the network's output
 * @param from its inputs
 * @param tensors made by the part, or its inputs
 * @returns weights by tensor
 */
export async function hessianImportance(
  session: Session,
  part: Part,
  from: Frontier,
  tensors: readonly string[],
): Promise<Map<string, Importance>> {
  const { device, network, batch, recipe } = session;
  const count = from.get(part.inputs[0]!)!.rows;
  const result = new Map(
    tensors.map((name) => [name, new RowSet(device, count, [1], `importance of ${name}`)]),
  );
  using plan = new Plan(device);
  const tape = newTape(plan);
  const inputs = inputsOf(plan, part, from, batch);
  for (const x of inputs.values()) tape.watch(x);
  const values = recordForward(plan, part, session.teacher, inputs, new Set(tensors), tape);
  const sums = new Map(tensors.map((name) => {
    const y = values.get(name)!;
    const { rows, channels } = rowsAndChannels(y.shape);
    const kernel = addSampleImportance({ samples: batch, positions: rows / batch, channels });
    const importance = device.tensor([batch, 1], { label: `importance of ${name}` });
    tape.observe(y, (g) => plan.run(kernel, { g, importance }));
    return [name, importance] as const;
  }));
  const output = values.get(network.output)!;
  const probe = device.tensor(output.shape, { label: "random projection" });
  tape.share(output, probe);
  tape.backward();
  const rng = new Rng(recipe.seed ^ PROBE_STREAM);
  const size = output.shape.reduce((product, n) => product * n, 1);
  for (let first = 0; first < count; first += batch) {
    const rows = Math.min(batch, count - first);
    for (const [name, input] of inputs) from.get(name)!.copyOut(first, rows, input);
    for (const importance of sums.values()) device.upload(importance, new Float32Array(batch));
    for (let turn = 0; turn < PROBES; turn++) {
      device.upload(probe, Float32Array.from({ length: size }, () => rng.uniform() < 0.5 ? -1 : 1));
      plan.replay();
    }
    for (const [name, importance] of sums) await result.get(name)!.copyIn(importance, first, rows);
  }
  for (const tensor of [probe, ...sums.values()]) device.release(tensor);
  const measured = new Map<string, Importance>();
  for (const [name, rows] of result) {
    measured.set(name, { rows, mean: await meanOf(session, rows) });
  }
  return measured;
}

function newTape(plan: Plan): Tape {
  return new Tape(plan, (shape) => binaryForward({ operator: "add", a: shape, b: shape }));
}

/** Tensors for a batch of a part's inputs. */
function inputsOf(
  plan: Plan,
  { inputs }: Part,
  from: Frontier,
  batch: number,
): Map<string, Tensor> {
  return new Map(
    inputs.map((name) => [name, plan.tensor([batch, ...from.get(name)!.rowShape], name)]),
  );
}

/** Mean of all elements; no gradient is negative once squared. */
async function meanOf({ device, batch }: Session, rows: RowSet): Promise<number> {
  const sums = device.tensor([16], { label: "sums of importance" });
  for (let first = 0; first < rows.rows; first += batch) {
    const size = Math.min(batch, rows.rows - first);
    using plan = new Plan(device);
    const y = plan.tensor([size, ...rows.rowShape], "importance");
    rows.copyOut(first, size, y);
    plan.run(errorSums(rowsAndChannels(y.shape), device.target), { y, teacher: y, sums });
    plan.replay();
  }
  const { targetMean } = await readErrorSums(device, sums);
  device.release(sums);
  return targetMean;
}
