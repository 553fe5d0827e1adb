// Forward passes of ResNet-20 at batch 64: the fp32 network, and the deployed W8A8 student, simulated in float32 and on
// its integers. The logits are compared with those of ONNX Runtime on the same model files.
import { normalize } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import {
  NetworkValues,
  partBetween,
  recordForward,
  teacherValues,
} from "../../src/distill/inference.ts";
import { topClasses } from "../../src/distill/evaluate.ts";
import { fakeQuantizeInput } from "../../src/distill/input_quantizer.ts";
import { recordIntegerForward } from "../../src/distill/integer_inference.ts";
import { IntegerValues } from "../../src/distill/integer_values.ts";
import { type Network, prepareNetwork } from "../../src/distill/network.ts";
import { DEFAULT_RECIPE } from "../../src/distill/recipe.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import type { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import type { Graph } from "../../src/graph/graph.ts";
import type { QuantizedGraph } from "../../src/graph/quantized_graph.ts";
import { checkElements, type Row, row, type Subject, wallTimes } from "../harness.ts";
import { CIFAR10, modelFile, readImages, readModel } from "../resnet20.ts";

const BATCH = 64;
const CALIBRATION_IMAGES = 256;
/** Batches between two waits, as in an evaluation of many images. */
const BATCHES = 8;

/** A network as it runs, and the same as a file. */
interface Deployed {
  readonly name: string;
  readonly graph: Graph;
  /** Puts weights and quantizers on the GPU and records the forward pass of x into the plan. */
  readonly record: (plan: Plan, network: Network, x: Tensor) => Recorded;
  readonly file: Uint8Array;
  /** Largest error of a logit beside ONNX Runtime; without it only the classes must be the same. */
  readonly tolerance?: number;
}

/** A recorded forward pass: what it reads, and what it gives. */
interface Recorded {
  readonly values: Disposable;
  readonly logits: Tensor;
}

/** Images a second, forward only. */
export const inference: Subject = {
  about: "forward passes of ResNet-20, batch 64",
  needsData: true,
  onlyByName: false,
  run: async function* ({ device, samples, data }) {
    const model = readModel(data);
    const calibration = readImages(data, model, "train", CALIBRATION_IMAGES).images;
    const { images } = readImages(data, model, "test", BATCH);
    const inputs = normalize(images, Array(BATCH).keys().toArray(), CIFAR10);
    const { student } = await distill(model, { calibration }, { ...CIFAR10, method: "ptq" }, {
      device,
    });
    // Rounding may go the other way at ties, so that single codes differ.
    const deployed = { graph: student.graph, file: exportOnnx(student) };
    const networks: Deployed[] = [
      {
        name: "fp32",
        graph: model,
        record: recordFloat,
        file: Deno.readFileSync(modelFile(data)),
        tolerance: 1e-3, // float32 logits of order 10 behind 20 layers
      },
      { name: "student W8A8", ...deployed, record: simulated(student) },
      { name: "student W8A8, integer codes", ...deployed, record: onIntegers(student) },
    ];
    for (const network of networks) yield await measure(device, samples, network, inputs);
  },
};

async function measure(
  device: Device,
  samples: number,
  deployed: Deployed,
  inputs: Float32Array<ArrayBuffer>,
): Promise<Row> {
  const network = prepareNetwork(deployed.graph, DEFAULT_RECIPE, false);
  const { input, teacher } = network;
  using plan = new Plan(device);
  const x = plan.tensor([BATCH, ...teacher.shapes.get(input)!.slice(1)], input);
  device.upload(x, inputs);
  const { values, logits } = deployed.record(plan, network, x);
  using _ = values;
  plan.replay();
  const found = await device.read(logits);
  await check(deployed, found, inputs, x.shape);
  const times = await wallTimes(samples, async () => {
    plan.replay(BATCHES, BATCHES);
    await device.synchronize();
  });
  return row(
    { case: deployed.name, metric: "rate" },
    "images/s",
    times.map((ms) => 1000 * BATCH * BATCHES / ms),
  );
}

function recordFloat(plan: Plan, network: Network, x: Tensor): Recorded {
  return recordValues(plan, network, teacherValues(plan.device, network), x);
}

/** The student in fake-quantized float32. */
function simulated({ activations }: QuantizedGraph): Deployed["record"] {
  return (plan, network, x) => {
    const { initializers } = network.teacher.graph;
    return recordValues(
      plan,
      network,
      new NetworkValues(plan.device, initializers, activations),
      x,
    );
  };
}

/** The student on packed int8 codes. */
function onIntegers(student: QuantizedGraph): Deployed["record"] {
  return (plan, network, x) => {
    const values = new IntegerValues(plan.device, student, network);
    return { values, logits: recordIntegerForward(plan, network, values, x) };
  };
}

function recordValues(plan: Plan, network: Network, values: NetworkValues, x: Tensor): Recorded {
  const { input, output, teacher } = network;
  const quantized = fakeQuantizeInput(plan, x, values.quantizer(input));
  const part = partBetween(teacher, [input], [output]);
  const results = recordForward(plan, part, values, new Map([[input, quantized]]));
  return { values, logits: results.get(output)! };
}

/** Compares logits with those of ONNX Runtime. */
async function check(
  { name, file, tolerance }: Deployed,
  found: Float32Array,
  inputs: Float32Array,
  shape: readonly number[],
): Promise<void> {
  const runtime = await import("onnxruntime-node");
  const session = await runtime.InferenceSession.create(file, { logSeverityLevel: 3 });
  const [batch, height, width, channels] = shape as [number, number, number, number];
  const channelsFirst = inputs.map((_, i) => {
    const pixel = i % (height * width), plane = Math.floor(i / (height * width));
    const image = Math.floor(plane / channels), channel = plane % channels;
    return inputs[(image * height * width + pixel) * channels + channel]!;
  });
  const feeds = new runtime.Tensor("float32", channelsFirst, [batch, channels, height, width]);
  const results = await session.run({ [session.inputNames[0]!]: feeds });
  const expected = results[session.outputNames[0]!]!.data as Float32Array;
  await session.release();
  if (tolerance !== undefined) checkElements(name, found, expected.entries(), tolerance);
  const classes = topClasses(found, BATCH), expectedClasses = topClasses(expected, BATCH);
  checkElements(`class of ${name}`, classes, expectedClasses.entries(), 0);
}
