// TensorFlow.js on WebGPU. Channels last; filters are [height, width, in, out]. Its gradient of a filter is one loop over
// all pixels of the mini-batch; Mesa's llvmpipe ends a shader's loops after 65,535 iterations, so that on it the gradient
// of a 32 x 32 convolution with batch 64 is wrong and not timed.
import * as tf from "@tensorflow/tfjs";
import "@tensorflow/tfjs-backend-webgpu";
import { checkElements } from "../../harness.ts";
import {
  BATCH,
  convolutionInputs,
  NCHW_TO_NHWC,
  NHWC_TO_NCHW,
  smallCnn,
  transpose,
} from "../cases.ts";
import {
  attempt,
  type ConvolutionJob,
  type MatmulJob,
  measure,
  type QueuedWork,
  readJob,
  say,
  type SmallCnnJob,
} from "../protocol.ts";
import {
  convolutionElements,
  LOSS_TOLERANCE,
  matmulElements,
  matrices,
  TOLERANCE,
} from "../reference.ts";

/** Axes of its filters in [out, in, height, width] ones, and the other way round. */
const OIHW_TO_HWIO = [2, 3, 1, 0], HWIO_TO_OIHW = [3, 2, 0, 1];

const job = readJob();
say({ peer: `TensorFlow.js ${tf.version_core} WebGPU` });
if (!await tf.setBackend("webgpu")) throw new Error("TensorFlow.js finds no WebGPU adapter");
await tf.ready();

for (const matmul of job.matmuls) await attempt(matmul.case, () => multiply(matmul));
for (const convolution of job.convolutions) {
  await attempt(convolution.forward, () => convolveForward(convolution));
  await attempt(convolution.backward, () => convolveBackward(convolution));
}
const { smallCnn: cnn } = job;
if (cnn) await attempt(cnn.case, () => trainSmallCnn(cnn));

async function multiply({ case: name, size, operations }: MatmulJob): Promise<void> {
  const { a, b } = matrices(size);
  const [left, right] = [tf.tensor2d(a, [size, size]), tf.tensor2d(b, [size, size])];
  const run = () => tf.matMul(left, right);
  checkElements("product", await run().data(), matmulElements(size), TOLERANCE);
  await measure(name, job.samples, queue(() => [run()]), operations);
}

async function convolveForward(convolution: ConvolutionJob): Promise<void> {
  const { x, w } = convolutionTensors(convolution);
  const run = () => tf.conv2d(x, w, 1, "same");
  checkElements("y", await pixels(run()), convolutionElements(convolution).y, TOLERANCE);
  const { operations } = convolution;
  await measure(convolution.forward, job.samples, queue(() => [run()]), operations);
}

async function convolveBackward(convolution: ConvolutionJob): Promise<void> {
  const { x, w, dy } = convolutionTensors(convolution);
  // grads() computes y, too, and drops it.
  const gradients = tf.grads((x: tf.Tensor, w: tf.Tensor) =>
    tf.conv2d(x as tf.Tensor4D, w as tf.Tensor4D, 1, "same")
  );
  const run = () => gradients([x, w], dy) as [tf.Tensor4D, tf.Tensor4D];
  const [dx, dw] = run();
  const expected = convolutionElements(convolution);
  checkElements("dx", await pixels(dx), expected.dx, TOLERANCE);
  const dwData = transpose(await floats(dw), dw.shape, HWIO_TO_OIHW);
  checkElements("dw", dwData, expected.dw, TOLERANCE);
  const operations = 3 * convolution.operations;
  await measure(convolution.backward, job.samples, queue(run), operations);
}

async function trainSmallCnn({ case: name, network, losses }: SmallCnnJob): Promise<void> {
  const { size, classes, layers, learningRate, checkedSteps } = network;
  const start = smallCnn();
  const shape: [number, number, number, number] = [BATCH, size, size, 3];
  const images = tf.tensor4d(
    transpose(start.images, [BATCH, 3, size, size], NCHW_TO_NHWC),
    shape,
  );
  const labels = tf.oneHot(tf.tensor1d([...start.labels], "int32"), classes);
  const filters = start.filters.map((filter, i) => {
    const { inChannels, outChannels } = layers[i]!;
    return tf.variable(hwio(filter, outChannels, inChannels));
  });
  const linear = tf.variable(tf.tensor2d(start.linear, [classes, layers[2].outChannels]));
  const optimizer = tf.train.sgd(learningRate);
  const loss = () => {
    let x = images;
    layers.forEach(({ stride }, i) => x = tf.relu(tf.conv2d(x, filters[i]!, stride, 1)));
    const logits = tf.matMul(tf.mean<tf.Tensor2D>(x, [1, 2]), linear, false, true);
    return tf.losses.softmaxCrossEntropy(labels, logits) as tf.Scalar;
  };
  // minimize() gives the loss when it is asked to (`true`).
  const step = queue(() => [optimizer.minimize(loss, true)!]);
  const found: number[] = [];
  for (let i = 0; i < checkedSteps; i++) {
    const value = optimizer.minimize(loss, true)!;
    found.push((await value.data())[0]!);
  }
  checkElements("loss", found, losses.entries(), LOSS_TOLERANCE);
  await measure(name, job.samples, step);
}

function convolutionTensors(
  convolution: ConvolutionJob,
): { x: tf.Tensor4D; w: tf.Tensor4D; dy: tf.Tensor4D } {
  const { channels, size } = convolution;
  const { x, w, dy } = convolutionInputs(convolution);
  const activation = (data: Float32Array) =>
    tf.tensor4d(
      transpose(data, [BATCH, channels, size, size], NCHW_TO_NHWC),
      [BATCH, size, size, channels],
    );
  return { x: activation(x), w: hwio(w, channels, channels), dy: activation(dy) };
}

/** A filter given as [out, in, 3, 3]. */
function hwio(data: Float32Array, outChannels: number, inChannels: number): tf.Tensor4D {
  const reordered = transpose(data, [outChannels, inChannels, 3, 3], OIHW_TO_HWIO);
  return tf.tensor4d(reordered, [3, 3, inChannels, outChannels]);
}

/** The elements of an activation, channels first. */
async function pixels(tensor: tf.Tensor4D): Promise<Float32Array> {
  return transpose(await floats(tensor), tensor.shape, NHWC_TO_NCHW);
}

async function floats(tensor: tf.Tensor): Promise<Float32Array> {
  return await tensor.data<"float32">();
}

/** Runs something whose results are waited for, by reading one number, then dropped. */
function queue(run: () => tf.Tensor[]): QueuedWork {
  let last: tf.Tensor[] = [];
  return {
    run: () => {
      tf.dispose(last);
      last = run();
    },
    finish: async () => {
      const result = last.at(-1);
      if (result === undefined) return;
      const first = tf.tidy(() => result.flatten().slice(0, 1));
      await first.data();
      first.dispose();
    },
  };
}
