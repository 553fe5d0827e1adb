// jax-js on WebGPU. Its arrays count references: a function takes ownership of what it is given, `.ref` gives a copy.
import {
  type Array as JaxArray,
  blockUntilReady,
  defaultDevice,
  init,
  jit,
  lax,
  nn,
  numpy as np,
  valueAndGrad,
  vjp,
} from "@jax-js/jax";
import { checkElements } from "../../harness.ts";
import { BATCH, convolutionInputs, smallCnn } from "../cases.ts";
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
import packages from "./deno.json" with { type: "json" };

/** Bytes of results that may wait. */
const MOST_BYTES = 2 ** 29;

const job = readJob();
const version = packages.imports["@jax-js/jax"].split("@").at(-1);
say({ peer: `jax-js ${version} WebGPU` });
const devices = await init("webgpu");
if (!devices.includes("webgpu")) throw new Error("jax-js finds no WebGPU adapter");
defaultDevice("webgpu");

for (const matmul of job.matmuls) await attempt(matmul.case, () => multiply(matmul));
for (const convolution of job.convolutions) {
  await attempt(convolution.forward, () => convolveForward(convolution));
  await attempt(convolution.backward, () => convolveBackward(convolution));
}
const { smallCnn: cnn } = job;
if (cnn) await attempt(cnn.case, () => trainSmallCnn(cnn));

async function multiply({ case: name, size, operations }: MatmulJob): Promise<void> {
  const { a, b } = matrices(size);
  const [left, right] = [array(a, [size, size]), array(b, [size, size])];
  const product = jit((a: JaxArray, b: JaxArray) => np.matmul(a, b));
  const run = () => product(left.ref, right.ref);
  checkElements("product", await run().data(), matmulElements(size), TOLERANCE);
  await measure(name, job.samples, queue(() => [run()], size ** 2), operations);
}

async function convolveForward(convolution: ConvolutionJob): Promise<void> {
  const { x, w } = convolutionArrays(convolution);
  const forward = jit(convolve(1));
  const run = () => forward(x.ref, w.ref);
  checkElements("y", await run().data(), convolutionElements(convolution).y, TOLERANCE);
  const work = queue(() => [run()], x.size);
  await measure(convolution.forward, job.samples, work, convolution.operations);
}

async function convolveBackward(convolution: ConvolutionJob): Promise<void> {
  const { x, w, dy } = convolutionArrays(convolution);
  const both = jit((x: JaxArray, w: JaxArray, dy: JaxArray) => {
    const [y, pull] = vjp(convolve(1), [x, w]);
    const [dx, dw] = pull(dy);
    pull.dispose();
    return [y, dx, dw];
  });
  const run = () => both(x.ref, w.ref, dy.ref) as [JaxArray, JaxArray, JaxArray];
  const [y, dx, dw] = run();
  const expected = convolutionElements(convolution);
  checkElements("y", await y.data(), expected.y, TOLERANCE);
  checkElements("dx", await dx.data(), expected.dx, TOLERANCE);
  checkElements("dw", await dw.data(), expected.dw, TOLERANCE);
  const operations = 3 * convolution.operations;
  const work = queue(run, x.size + w.size + dy.size);
  await measure(convolution.backward, job.samples, work, operations);
}

async function trainSmallCnn({ case: name, network, losses }: SmallCnnJob): Promise<void> {
  const { size, classes, layers, learningRate, checkedSteps } = network;
  const start = smallCnn();
  const features = layers[2].outChannels;
  const images = array(start.images, [BATCH, 3, size, size]);
  const labels = nn.oneHot(np.array([...start.labels], { dtype: np.int32 }), classes);
  const loss = (weights: JaxArray[], images: JaxArray, labels: JaxArray) => {
    let x = images;
    layers.forEach(({ stride }, i) => x = nn.relu(convolve(stride)(x, weights[i]!)));
    const logits = np.matmul(np.mean(x, [2, 3]), weights[3]!.transpose());
    return nn.logSoftmax(logits, -1).mul(labels).sum().mul(-1 / BATCH);
  };
  const step = jit((weights: JaxArray[], images: JaxArray, labels: JaxArray) => {
    const [value, gradients] = valueAndGrad(loss)(weights.map((w) => w.ref), images, labels);
    const next = weights.map((w, i) => w.sub((gradients as JaxArray[])[i]!.mul(learningRate)));
    return [value, next] as [JaxArray, JaxArray[]];
  });
  let weights = [
    ...start.filters.map((filter, i) => {
      const { inChannels, outChannels } = layers[i]!;
      return array(filter, [outChannels, inChannels, 3, 3]);
    }),
    array(start.linear, [classes, features]),
  ];
  let last: JaxArray | undefined;
  const run = () => {
    last?.dispose();
    [last, weights] = step(weights, images.ref, labels.ref) as [JaxArray, JaxArray[]];
  };
  const found: number[] = [];
  for (let i = 0; i < checkedSteps; i++) {
    run();
    found.push((await last!.ref.data())[0]!);
  }
  checkElements("loss", found, losses.entries(), LOSS_TOLERANCE);
  const finish = async () => {
    await blockUntilReady(weights);
  };
  await measure(name, job.samples, { run, finish });
}

function convolutionArrays(
  convolution: ConvolutionJob,
): { x: JaxArray; w: JaxArray; dy: JaxArray } {
  const { channels, size } = convolution;
  const { x, w, dy } = convolutionInputs(convolution);
  const shape = [BATCH, channels, size, size];
  return { x: array(x, shape), w: array(w, [channels, channels, 3, 3]), dy: array(dy, shape) };
}

/** A 3x3 convolution with one pixel of padding. */
function convolve(stride: number): (x: JaxArray, w: JaxArray) => JaxArray {
  return (x, w) => lax.convGeneralDilated(x, w, [stride, stride], [[1, 1], [1, 1]]);
}

function array(data: Float32Array<ArrayBuffer>, shape: number[]): JaxArray {
  return np.array(data).reshape(shape);
}

/**
 * Runs something whose results are waited for. They are kept until then: jax-js does not compute what nobody holds any
 * more.
 */
function queue(run: () => JaxArray[], elements: number): QueuedWork {
  const results: JaxArray[] = [];
  return {
    run: () => results.push(...run()),
    finish: async () => {
      await blockUntilReady(results);
      for (const result of results) result.dispose();
      results.length = 0;
    },
    mostRuns: Math.max(1, Math.floor(MOST_BYTES / (4 * elements))),
  };
}
