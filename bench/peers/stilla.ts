// stilla, as every other peer: a process of its own, timed by the wall clock.
import {
  conv2dBackwardInput,
  conv2dBackwardWeight,
  conv2dForward,
  type Conv2dSpec,
} from "../../kernels/conv2d.ts";
import { gemm } from "../../kernels/gemm.ts";
import { binaryForward } from "../../kernels/elementwise.ts";
import { Tape } from "../../src/autograd/tape.ts";
import { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { recordLstm } from "../../src/ops/lstm.ts";
import { checkElements } from "../harness.ts";
import { describeMachine } from "../result_file.ts";
import {
  BATCH,
  convolutionInputs,
  lstmInputs,
  NCHW_TO_NHWC,
  NHWC_TO_NCHW,
  transpose,
} from "./cases.ts";
import {
  attempt,
  type ConvolutionJob,
  type LstmJob,
  type MatmulJob,
  measure,
  type QueuedWork,
  readJob,
  say,
} from "./protocol.ts";
import {
  convolutionElements,
  LOSS_TOLERANCE,
  lstmElements,
  matmulElements,
  matrices,
  TOLERANCE,
} from "./reference.ts";
import { measureResNet20 } from "./stilla_resnet20.ts";
import { SmallCnnTraining } from "./stilla_small_cnn.ts";

const job = readJob();
using device = await Device.open();
const machine = describeMachine(device);
say({ peer: `stilla ${machine.stilla}` });
say({ machine });

for (const matmul of job.matmuls) await attempt(matmul.case, () => multiply(matmul));
for (const convolution of job.convolutions) {
  await attempt(convolution.forward, () => convolve(convolution));
}
const { lstm } = job;
if (lstm) await attempt(lstm.backward, () => recur(lstm));
const { smallCnn: cnn } = job;
if (cnn) {
  await attempt(cnn.case, async () => {
    using training = new SmallCnnTraining(device);
    checkElements("loss", await training.losses(), cnn.losses.entries(), LOSS_TOLERANCE);
    await measure(cnn.case, job.samples, queue(() => training.step()));
  });
}
if (job.resnet20) await measureResNet20(device, job, job.resnet20);

async function multiply({ case: name, size, operations }: MatmulJob): Promise<void> {
  const { a, b } = matrices(size);
  const tensors = {
    a: device.fromArray([size, size], a),
    b: device.fromArray([size, size], b),
    y: device.tensor([size, size]),
  };
  using plan = new Plan(device);
  const spec = { m: size, n: size, k: size, transposeA: false, transposeB: false };
  plan.run(gemm(spec, {}, device.target), tensors);
  plan.replay();
  checkElements("product", await device.read(tensors.y), matmulElements(size), TOLERANCE);
  await measure(name, job.samples, queue(() => plan.replay()), operations);
  for (const tensor of Object.values(tensors)) device.release(tensor);
}

async function convolve(convolution: ConvolutionJob): Promise<void> {
  const { channels, size, operations } = convolution;
  const spec = specOf(convolution);
  const inputs = convolutionInputs(convolution);
  const shape = [BATCH, size, size, channels], filter = [channels, 3, 3, channels];
  const upload = (data: Float32Array, [n = 1, h = 1, w = 1, c = 1]: readonly number[]) =>
    device.fromArray([n, h, w, c], transpose(data, [n, c, h, w], NCHW_TO_NHWC));
  const x = upload(inputs.x, shape), w = upload(inputs.w, filter), dy = upload(inputs.dy, shape);
  const y = device.tensor(shape), dx = device.tensor(shape), dw = device.tensor(filter);
  using forward = new Plan(device), both = new Plan(device);
  for (const plan of [forward, both]) {
    plan.run(conv2dForward(spec, {}, device.target), { x, w, y });
  }
  both.run(conv2dBackwardInput(spec, device.target), { dy, w, dx });
  both.run(conv2dBackwardWeight(spec, device.target), { x, dy, dw });
  both.replay();
  const expected = convolutionElements(convolution);
  for (const [name, tensor] of Object.entries({ y, dx, dw })) {
    const found = transpose(await device.read(tensor), tensor.shape, NHWC_TO_NCHW);
    checkElements(name, found, expected[name as keyof typeof expected], TOLERANCE);
  }
  await measure(convolution.forward, job.samples, queue(() => forward.replay()), operations);
  await measure(convolution.backward, job.samples, queue(() => both.replay()), 3 * operations);
  for (const tensor of [x, w, dy, y, dx, dw]) device.release(tensor);
}

async function recur(lstm: LstmJob): Promise<void> {
  const { inputs: features, hidden, steps, operations } = lstm;
  const { x, w, b, dy } = lstmInputs(lstm);
  const tensors = {
    x: device.fromArray([BATCH, steps, features], x),
    w: device.fromArray([4 * hidden, features + hidden], w),
    b: device.fromArray([4 * hidden], b),
    dy: device.fromArray([BATCH, steps, hidden], dy),
    dw: device.tensor([4 * hidden, features + hidden]),
    db: device.tensor([4 * hidden]),
  };
  const node = { name: "lstm", opType: "LSTM", inputs: ["x", "w", "b"], outputs: ["y"] };
  const record = (plan: Plan, tape?: Tape) =>
    recordLstm({ recorder: plan, ...(tape && { tape }) }, { ...node, attributes: {} }, tensors.x, {
      weight: { value: tensors.w, ...(tape && { gradient: tensors.dw }) },
      bias: { value: tensors.b, ...(tape && { gradient: tensors.db }) },
      quantizesStates: false,
    });
  using forward = new Plan(device), both = new Plan(device);
  const y = record(forward);
  const tape = new Tape(both, (shape) => binaryForward({ operator: "add", a: shape, b: shape }));
  tape.watch(tensors.x);
  tape.share(record(both, tape), tensors.dy);
  tape.backward();
  forward.replay();
  both.replay();
  const expected = lstmElements(lstm);
  const found = { y, dx: tape.gradient(tensors.x)!, dw: tensors.dw, db: tensors.db };
  for (const [name, tensor] of Object.entries(found)) {
    const elements = expected[name as keyof typeof expected];
    checkElements(name, await device.read(tensor), elements, TOLERANCE);
  }
  await measure(lstm.forward, job.samples, queue(() => forward.replay()), operations);
  await measure(lstm.backward, job.samples, queue(() => both.replay()), 3 * operations);
  for (const tensor of Object.values(tensors)) device.release(tensor);
}

function specOf({ channels, size }: ConvolutionJob): Conv2dSpec {
  return {
    batch: BATCH,
    inHeight: size,
    inWidth: size,
    inChannels: channels,
    outHeight: size,
    outWidth: size,
    outChannels: channels,
    kernelHeight: 3,
    kernelWidth: 3,
    strideHeight: 1,
    strideWidth: 1,
    padTop: 1,
    padLeft: 1,
    dilationHeight: 1,
    dilationWidth: 1,
    group: 1,
  };
}

function queue(run: () => void): QueuedWork {
  return { run, finish: () => device.synchronize() };
}
