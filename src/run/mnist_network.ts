// The built-in example's teacher before training: a small residual network with a depthwise-separable block, for
// MNIST's 28 x 28 images. 1.7 million multiplications an image, so that 10,000 take seconds on a software adapter.
import { type NdArray, ndArray, sizeOf } from "../core/nd_array.ts";
import { Rng } from "../core/rng.ts";
import type { Graph, Node } from "../graph/graph.ts";

/** Kernel size, stride and group of a convolution. */
interface ConvolutionSize {
  readonly kernel: number;
  readonly stride?: number;
  readonly group?: number;
}

/**
 * Makes the network with random weights (He et al. 2015).
 *
 * @param seed of the weights
 * @returns x [N, 1, 28, 28], logits [N, 10]
 */
export function mnistNetwork(seed: number): Graph {
  const builder = new NetworkBuilder(seed);
  const stem = builder.relu(builder.convolution("x", "stem", [1, 16], { kernel: 5, stride: 2 }));
  const depthwise = builder.convolution(stem, "separable.depthwise", [16, 16], {
    kernel: 3,
    group: 16,
  });
  const pointwise = builder.convolution(builder.relu(depthwise), "separable.pointwise", [16, 32], {
    kernel: 1,
  });
  const down = builder.convolution(builder.relu(pointwise), "down", [32, 32], {
    kernel: 3,
    stride: 2,
  });
  const skip = builder.relu(down);
  const first = builder.convolution(skip, "residual.0", [32, 32], { kernel: 3 });
  const second = builder.convolution(builder.relu(first), "residual.1", [32, 32], { kernel: 3 });
  const sum = builder.node("Add", "residual.add", [second, skip]);
  const features = builder.convolution(builder.relu(sum), "features", [32, 64], { kernel: 1 });
  const pooled = builder.node("GlobalAveragePool", "pool", [builder.relu(features)]);
  const flat = builder.node("Flatten", "flatten", [pooled], { axis: 1 });
  builder.linear(flat, "logits", [64, 10]);
  return builder.graph("mnist");
}

/** Collects nodes; a node's only output has the node's name. */
class NetworkBuilder {
  readonly #rng: Rng;
  readonly #nodes: Node[] = [];
  readonly #initializers = new Map<string, NdArray>();

  constructor(seed: number) {
    this.#rng = new Rng(seed);
  }

  node(
    opType: string,
    name: string,
    inputs: readonly string[],
    attributes: Node["attributes"] = {},
  ): string {
    this.#nodes.push({ name, opType, inputs, outputs: [name], attributes });
    return name;
  }

  /** Convolution that keeps the size (divided by its stride), with batch norm. */
  convolution(
    input: string,
    name: string,
    [inChannels, outChannels]: readonly [number, number],
    { kernel, stride = 1, group = 1 }: ConvolutionSize,
  ): string {
    const weight = this.#weight(name, [outChannels, inChannels / group, kernel, kernel]);
    const border = (kernel - 1) / 2;
    const convolved = this.node("Conv", name, [input, weight], {
      kernel_shape: [kernel, kernel],
      strides: [stride, stride],
      pads: [border, border, border, border],
      dilations: [1, 1],
      group,
    });
    const norm = `${name}.norm`;
    const constants = Object.entries({ gamma: 1, beta: 0, mean: 0, variance: 1 }).map(
      ([key, value]) => this.#constant(`${norm}.${key}`, outChannels, value),
    );
    return this.node("BatchNormalization", norm, [convolved, ...constants], { epsilon: 1e-5 });
  }

  relu(input: string): string {
    return this.node("Relu", `${input}.relu`, [input]);
  }

  linear(input: string, name: string, [inputs, outputs]: readonly [number, number]): void {
    const weight = this.#weight(name, [outputs, inputs]);
    const bias = this.#constant(`${name}.bias`, outputs, 0);
    this.node("Gemm", name, [input, weight, bias], { transB: 1 });
  }

  graph(name: string): Graph {
    return {
      name,
      opset: 13,
      inputs: [{ name: "x", dtype: "float32", shape: ["N", 1, 28, 28] }],
      outputs: [{ name: "logits", dtype: "float32", shape: ["N", 10] }],
      nodes: this.#nodes,
      initializers: this.#initializers,
    };
  }

  /** Normal numbers of variance 2 / (inputs of one output). */
  #weight(layer: string, shape: readonly number[]): string {
    const name = `${layer}.weight`;
    const deviation = Math.sqrt(2 / sizeOf(shape.slice(1)));
    const data = Float32Array.from(
      { length: sizeOf(shape) },
      () => deviation * this.#rng.normal(),
    );
    this.#initializers.set(name, ndArray("float32", shape, data));
    return name;
  }

  #constant(name: string, size: number, value: number): string {
    this.#initializers.set(name, ndArray("float32", [size], new Float32Array(size).fill(value)));
    return name;
  }
}
