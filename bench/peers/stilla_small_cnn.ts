// The small CNN in stilla: the graph of the network goes through the same steps as a user's, and SGD steps its weights.
import { binaryForward } from "../../kernels/elementwise.ts";
import { rememberRowLoss } from "../../kernels/gather.ts";
import { sgd } from "../../kernels/optimizer.ts";
import { advanceSchedule, finishStep, STATE_SIZE } from "../../kernels/schedule.ts";
import { crossEntropy } from "../../kernels/softmax.ts";
import { Tape } from "../../src/autograd/tape.ts";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { prepareNetwork, shapesForBatch } from "../../src/distill/network.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import { pad, type Tensor } from "../../src/gpu/tensor.ts";
import type { Graph, Node } from "../../src/graph/graph.ts";
import { fuseLayers } from "../../src/graph/layers.ts";
import type { Trainable } from "../../src/ops/context.ts";
import { recordSteps } from "../../src/ops/ops.ts";
import { FlatLayout, FlatParameters } from "../../src/optim/flat_parameters.ts";
import { BATCH, NCHW_TO_NHWC, SMALL_CNN, smallCnn, transpose } from "./cases.ts";

/** Bits play no part here; preparing a network asks for them. */
const NO_BITS = { weightBits: 8, activationBits: 8, firstLastBits: 8 };
const ADAM_UNUSED = { beta1: 0.9, beta2: 0.99 };

/** A recorded training step. */
export class SmallCnnTraining implements Disposable {
  readonly #device: Device;
  readonly #plan: Plan;
  readonly #parameters: FlatParameters;
  readonly #tensors: readonly Tensor[];
  readonly #losses: Tensor;

  /** @param device where to train */
  constructor(device: Device) {
    this.#device = device;
    const { size, classes, learningRate, checkedSteps } = SMALL_CNN;
    const start = smallCnn();
    const { trained } = prepareNetwork(smallCnnGraph(), NO_BITS, false);
    const { graph } = trained;
    const layout = new FlatLayout();
    const places = Array.from(graph.initializers, ([name, { shape, data }]) => {
      const values = pad(shape, data as Float32Array);
      return { name, shape, values, start: layout.take(values.length, learningRate) };
    });
    const values = new Float32Array(layout.size);
    for (const place of places) values.set(place.values, place.start);
    this.#parameters = new FlatParameters(device, layout, values);
    const trainables = new Map(places.map(({ name, shape, start }): [string, Trainable] => [
      name,
      this.#parameters.trainable(start, shape, name),
    ]));
    const images = transpose(start.images, [BATCH, 3, size, size], NCHW_TO_NHWC);
    const rates = layout.learningRates();
    const x = device.fromArray([BATCH, size, size, 3], images);
    const labels = device.uint32(Uint32Array.from(start.labels));
    const learningRates = device.fromArray([rates.length], rates);
    const state = device.tensor([STATE_SIZE]);
    this.#losses = device.tensor([checkedSteps]);
    this.#tensors = [x, labels, learningRates, state, this.#losses];

    const plan = this.#plan = new Plan(device);
    plan.run(constantRate(device), { state });
    const tape = new Tape(plan, (shape) => binaryForward({ operator: "add", a: shape, b: shape }));
    const shapes = shapesForBatch(trained, BATCH);
    const tensors = new Map([["x", x]]);
    recordSteps({
      recorder: plan,
      graph,
      shapes,
      values: tensors,
      parameter: (name) => trainables.get(name)!,
      quantizer: () => undefined,
      tape,
    }, fuseLayers(graph, new Set(), shapes));
    const logits = tensors.get("logits")!;
    const loss = plan.tensor([BATCH, 1], "loss of the rows");
    tape.give(
      logits,
      (dlogits) =>
        plan.run(crossEntropy({ rows: BATCH, classes }), { logits, labels, loss, dlogits }),
    );
    plan.run(
      rememberRowLoss({ rows: BATCH, historySize: checkedSteps, terms: 1, term: 0 }),
      { loss, state, losses: this.#losses },
    );
    tape.backward();
    const { values: parameters, gradients } = this.#parameters;
    const optimizer = { size: layout.size, momentum: 0, nesterov: false };
    plan.run(sgd(optimizer, device.target), {
      parameters,
      gradients,
      learning_rates: learningRates,
      state,
    });
    plan.run(finishStep(device.target), { state });
  }

  /** Submits one step. */
  step(): void {
    this.#plan.replay();
  }

  /** Takes the first steps; their losses. */
  async losses(): Promise<Float32Array> {
    this.#plan.replay(SMALL_CNN.checkedSteps);
    return await this.#device.read(this.#losses);
  }

  /** Gives the memory back. */
  [Symbol.dispose](): void {
    this.#plan[Symbol.dispose]();
    this.#parameters[Symbol.dispose]();
    for (const tensor of this.#tensors) this.#device.release(tensor);
  }
}

/** The schedule kernel as a constant learning rate. */
function constantRate(device: Device): ReturnType<typeof advanceSchedule> {
  return advanceSchedule({
    steps: SMALL_CNN.checkedSteps,
    warmupSteps: 1,
    schedule: "constant",
    ...ADAM_UNUSED,
    batchNormLiveSteps: 0,
    roundingWarmup: 0,
    roundingBetaStart: 0,
    roundingBetaEnd: 0,
  }, device.target);
}

/** The network as an ONNX graph: x [N, 3, 32, 32], logits [N, 10]. */
function smallCnnGraph(): Graph {
  const { size, classes, layers } = SMALL_CNN;
  const { filters, linear } = smallCnn();
  const nodes: Node[] = [];
  const initializers = new Map<string, NdArray>();
  const add = (opType: string, inputs: string[], output: string, attributes = {}): string => {
    nodes.push({ name: output, opType, inputs, outputs: [output], attributes });
    return output;
  };
  let x = "x";
  layers.forEach(({ inChannels, outChannels, stride }, i) => {
    const shape = [outChannels, inChannels, 3, 3];
    initializers.set(`filter${i}`, ndArray("float32", shape, filters[i]!));
    const convolved = add("Conv", [x, `filter${i}`], `conv${i}`, {
      kernel_shape: [3, 3],
      strides: [stride, stride],
      pads: [1, 1, 1, 1],
    });
    x = add("Relu", [convolved], `relu${i}`);
  });
  const pooled = add("ReduceMean", [x], "pool", { axes: [2, 3], keepdims: 0 });
  initializers.set("linear", ndArray("float32", [classes, layers[2].outChannels], linear));
  add("Gemm", [pooled, "linear"], "logits", { transB: 1 });
  return {
    name: "small CNN",
    opset: 13,
    inputs: [{ name: "x", dtype: "float32", shape: ["N", 3, size, size] }],
    outputs: [{ name: "logits", dtype: "float32", shape: ["N", classes] }],
    nodes,
    initializers,
  };
}
