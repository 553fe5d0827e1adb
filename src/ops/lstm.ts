// LSTM over sequences x [N, T, I], step after step: the products with all inputs are one GEMM, those with the states one a
// step, on parts of buffers with the steps first. Its weight [4 H, I + H] holds what multiplies the input and what
// multiplies the state before; its rows are those of the gates i, o, f, g.
import {
  concatForward,
  sliceAndPadForward,
  type SliceAndPadSpec,
  transposeForward,
} from "../../kernels/data_movement.ts";
import { fill } from "../../kernels/elementwise.ts";
import { gemm, type GemmSpec } from "../../kernels/gemm.ts";
import { lstmCellBackward, lstmCellForward, type LstmCellSpec } from "../../kernels/lstm.ts";
import { reductionForward } from "../../kernels/reduction.ts";
import { padded } from "../../kernels/kernel.ts";
import type { Recorder } from "../gpu/plan.ts";
import { type Tensor, view } from "../gpu/tensor.ts";
import { stringAttribute } from "../graph/attributes.ts";
import type { Node } from "../graph/graph.ts";
import type { OpContext, Trainable } from "./context.ts";
import { recordDynamicQuantize } from "./dynamic_quantize.ts";

/** Samples are filled up to a multiple, so that every step of a buffer begins where a binding may. */
const SAMPLES = 16;

/**
 * Records an LSTM.
 *
 * @param context where to record
 * @param node the LSTM as graph/lstm.ts has it
 * @param x [N, T, I]
 * @param options weight [4 H, I + H], bias [4 H] if it has one, and whether the states are quantized at run time, as x
 * then already is; that has no gradient
 * @returns [N, T, H]
 */
export function recordLstm(
  context: Pick<OpContext, "recorder" | "tape">,
  node: Node,
  x: Tensor,
  { weight, bias, quantizesStates }: {
    readonly weight: Trainable;
    readonly bias: Trainable | undefined;
    readonly quantizesStates: boolean;
  },
): Tensor {
  const { recorder, tape } = context;
  const lstm = new Lstm(recorder, node, x.shape, weight.value);
  const steps = lstm.stepsFirst(x, "inputs");
  const { states, gates, cells } = lstm.forward(steps, bias?.value, {
    keepsGates: tape !== undefined,
    quantizesStates,
  });
  const y = lstm.samplesFirst(states, node.outputs[0]!);
  if (tape === undefined) {
    for (const tensor of [steps, states, ...lstm.weights]) recorder.release(tensor);
    return y;
  }
  const trains = weight.gradient !== undefined || bias?.gradient !== undefined;
  tape.push([x], y, (dy) => {
    const dz = lstm.backward(dy, gates!, cells!);
    if (weight.gradient) lstm.weightGradient(dz, steps, states, weight.gradient);
    if (bias?.gradient) {
      const sum = { operator: "sum", shape: dz.shape, axes: "leading" } as const;
      recorder.run(reductionForward(sum, recorder.device.target), { x: dz, y: bias.gradient });
    }
    tape.give(x, (dx) => lstm.inputGradient(dz, dx));
    recorder.release(dz);
  }, trains);
  return y;
}

/** Sizes of an LSTM and what every direction of computing needs. */
class Lstm {
  readonly #recorder: Recorder;
  readonly #label: string;
  readonly #samples: number;
  /** With those that fill up. */
  readonly #rows: number;
  readonly #steps: number;
  readonly #inputs: number;
  readonly #hidden: number;
  readonly #reverse: boolean;
  readonly #inputWeight: Tensor;
  readonly #recurrentWeight: Tensor;

  constructor(recorder: Recorder, node: Node, shape: readonly number[], weight: Tensor) {
    const [samples = 1, steps = 1, inputs = 1] = shape;
    this.#recorder = recorder;
    this.#label = node.outputs[0]!;
    this.#samples = samples;
    this.#rows = Math.ceil(samples / SAMPLES) * SAMPLES;
    this.#steps = steps;
    this.#inputs = inputs;
    this.#hidden = weight.shape[0]! / 4;
    this.#reverse = stringAttribute(node, "direction", "forward") === "reverse";
    this.#inputWeight = this.#columns(weight, 0, inputs, "input weight");
    this.#recurrentWeight = this.#columns(weight, inputs, inputs + this.#hidden, "state weight");
  }

  /** The parts of the weight: [4 H, I] and [4 H, H]. */
  get weights(): readonly Tensor[] {
    return [this.#inputWeight, this.#recurrentWeight];
  }

  /** [N, T, C] as [T, rows, C], in the order of time. */
  stepsFirst(x: Tensor, what: string): Tensor {
    const channels = x.shape[2]!;
    const size = (samples: number) => [samples, this.#steps, 1, channels] as const;
    const whole = [this.#rows, this.#steps, channels];
    const ordered = this.#rows === this.#samples && !this.#reverse
      ? x
      : this.#rearranged(x, size(this.#samples), size(this.#rows), whole);
    const y = this.#tensor([this.#steps, this.#rows, channels], what);
    const spec = { shape: whole, permutation: [1, 0, 2] };
    this.#recorder.run(transposeForward(spec), { x: ordered, y });
    if (ordered !== x) this.#recorder.release(ordered);
    return y;
  }

  /** The inverse of {@linkcode stepsFirst}. */
  samplesFirst(states: Tensor, label: string): Tensor {
    return this.#write(states, (shape) => this.#recorder.tensor(shape, label));
  }

  /**
   * All steps.
   *
   * @param x [T, rows, I]
   * @param bias [4 H]
   * @returns states [T, rows, H] and, with `keepsGates`, gates [T, rows, 4 H] and cells [T, rows, H]
   */
  forward(
    x: Tensor,
    bias: Tensor | undefined,
    { keepsGates, quantizesStates }: {
      readonly keepsGates: boolean;
      readonly quantizesStates: boolean;
    },
  ): { readonly states: Tensor; readonly gates?: Tensor; readonly cells?: Tensor } {
    const width = 4 * this.#hidden;
    const products = this.#tensor([this.#steps, this.#rows, width], "products");
    this.#gemm({ m: this.#steps * this.#rows, n: width, k: this.#inputs, transposeB: true }, {
      a: x,
      b: this.#inputWeight,
      ...(bias && { bias }),
      y: products,
    });
    const states = this.#tensor([this.#steps, this.#rows, this.#hidden], "states");
    const gates = keepsGates ? this.#tensor(products.shape, "gates") : undefined;
    // Without gates to keep only the cells of the step before are wanted.
    const kept = keepsGates ? this.#steps : Math.min(2, this.#steps);
    const cells = this.#tensor([kept, this.#rows, this.#hidden], "cells");
    const sum = this.#tensor([this.#rows, width], "pre-activations");
    for (let t = 0; t < this.#steps; t++) {
      let z = this.#step(products, t);
      if (t > 0) {
        const before = this.#step(states, t - 1);
        const h = quantizesStates ? recordDynamicQuantize(this.#recorder, before) : before;
        this.#gemm({ m: this.#rows, n: width, k: this.#hidden, transposeB: true }, {
          a: h,
          b: this.#recurrentWeight,
          residual: z,
          y: sum,
        });
        if (h !== before) this.#recorder.release(h);
        z = sum;
      }
      this.#recorder.run(lstmCellForward(this.#cell(t), keepsGates), {
        z,
        ...(t > 0 && { before: this.#step(cells, (t - 1) % kept) }),
        cells: this.#step(cells, t % kept),
        h: this.#step(states, t),
        ...(gates && { gates: this.#step(gates, t) }),
      });
    }
    for (const tensor of [sum, products]) this.#recorder.release(tensor);
    if (gates) return { states, gates, cells };
    this.#recorder.release(cells);
    return { states };
  }

  /** The gradient of the pre-activations, [T, rows, 4 H], from that of y [N, T, H]. */
  backward(dy: Tensor, gates: Tensor, cells: Tensor): Tensor {
    const width = 4 * this.#hidden;
    const given = this.stepsFirst(dy, "slopes of states");
    const dz = this.#tensor(gates.shape, "slopes of pre-activations");
    const sum = this.#tensor([this.#rows, this.#hidden], "whole slopes of states");
    const dc = this.#tensor(sum.shape, "slopes of cells");
    for (let t = this.#steps - 1; t >= 0; t--) {
      let dh = this.#step(given, t);
      const last = t === this.#steps - 1;
      if (!last) {
        this.#gemm({ m: this.#rows, n: this.#hidden, k: width }, {
          a: this.#step(dz, t + 1),
          b: this.#recurrentWeight,
          residual: dh,
          y: sum,
        });
        dh = sum;
      }
      this.#recorder.run(lstmCellBackward(this.#cell(t), last), {
        dh,
        gates: this.#step(gates, t),
        ...(t > 0 && { before: this.#step(cells, t - 1) }),
        cells: this.#step(cells, t),
        dc,
        dz: this.#step(dz, t),
      });
    }
    for (const tensor of [given, sum, dc]) this.#recorder.release(tensor);
    return dz;
  }

  /** dw = dz^T [x, h'], h' being the state before. */
  weightGradient(dz: Tensor, x: Tensor, states: Tensor, dw: Tensor): void {
    const width = 4 * this.#hidden;
    const ofInputs = this.#tensor([width, this.#inputs], "slopes of the input weight");
    const rows = this.#steps * this.#rows;
    this.#gemm({ m: width, n: this.#inputs, k: rows, transposeA: true }, {
      a: dz,
      b: x,
      y: ofInputs,
    });
    const ofStates = this.#tensor([width, this.#hidden], "slopes of the state weight");
    if (this.#steps === 1) {
      this.#recorder.run(fill(ofStates.shape, 0), { y: ofStates });
    } else {
      const later = rows - this.#rows;
      this.#gemm({ m: width, n: this.#hidden, k: later, transposeA: true }, {
        a: view(dz, this.#rows * width, [later, width], "later slopes"),
        b: view(states, 0, [later, this.#hidden], "earlier states"),
        y: ofStates,
      });
    }
    const joined = concatForward({ rows: width, channels: [this.#inputs, this.#hidden] });
    this.#recorder.run(joined, { x0: ofInputs, x1: ofStates, y: dw });
    for (const part of [ofInputs, ofStates]) this.#recorder.release(part);
  }

  /** dx = dz w. */
  inputGradient(dz: Tensor, dx: Tensor): void {
    const steps = this.#tensor([this.#steps, this.#rows, this.#inputs], "slopes of inputs");
    const size = { m: this.#steps * this.#rows, n: this.#inputs, k: 4 * this.#hidden };
    this.#gemm(size, { a: dz, b: this.#inputWeight, y: steps });
    this.#write(steps, () => dx);
    this.#recorder.release(steps);
  }

  /** [T, rows, C] into a tensor [N, T, C]. */
  #write(steps: Tensor, target: (shape: readonly number[]) => Tensor): Tensor {
    const channels = steps.shape[2]!;
    const whole = [this.#rows, this.#steps, channels];
    const shape = [this.#samples, this.#steps, channels];
    const spec = { shape: steps.shape, permutation: [1, 0, 2] };
    if (this.#rows === this.#samples && !this.#reverse) {
      const y = target(shape);
      this.#recorder.run(transposeForward(spec), { x: steps, y });
      return y;
    }
    const all = this.#tensor(whole, "all samples");
    this.#recorder.run(transposeForward(spec), { x: steps, y: all });
    const size = (samples: number) => [samples, this.#steps, 1, channels] as const;
    const y = this.#rearranged(all, size(this.#rows), size(this.#samples), shape, target);
    this.#recorder.release(all);
    return y;
  }

  /** Another number of samples, zeros where there are more; in the order of time. */
  #rearranged(
    x: Tensor,
    input: SliceAndPadSpec["input"],
    output: SliceAndPadSpec["output"],
    shape: readonly number[],
    target = (shape: readonly number[]) => this.#tensor(shape, "all samples"),
  ): Tensor {
    const y = target(shape);
    const kernel = sliceAndPadForward({
      input,
      output,
      start: [0, this.#reverse ? this.#steps - 1 : 0, 0, 0],
      step: [1, this.#reverse ? -1 : 1, 1, 1],
      value: 0,
    });
    this.#recorder.run(kernel, { x, y });
    return y;
  }

  /** Some columns of the weight. */
  #columns(weight: Tensor, start: number, end: number, what: string): Tensor {
    const [rows = 1, columns = 1] = weight.shape;
    const y = this.#tensor([rows, end - start], what);
    const kernel = sliceAndPadForward({
      input: [1, 1, rows, columns],
      output: [1, 1, rows, end - start],
      start: [0, 0, 0, start],
      step: [1, 1, 1, 1],
      value: 0,
    });
    this.#recorder.run(kernel, { x: weight, y });
    return y;
  }

  #gemm(
    size: Pick<GemmSpec, "m" | "n" | "k"> & Partial<GemmSpec>,
    bindings: Readonly<Record<string, Tensor>>,
  ): void {
    const epilogue = { bias: "bias" in bindings, residual: "residual" in bindings };
    const spec = { transposeA: false, transposeB: false, ...size };
    this.#recorder.run(gemm(spec, epilogue, this.#recorder.device.target), bindings);
  }

  #cell(t: number): LstmCellSpec {
    return { samples: this.#rows, hidden: this.#hidden, first: t === 0 };
  }

  /** [rows, C]: a step of [T, rows, C]. */
  #step(tensor: Tensor, t: number): Tensor {
    const channels = tensor.shape[2]!;
    const start = t * this.#rows * padded(channels);
    return view(tensor, start, [this.#rows, channels], `${tensor.label} ${t}`);
  }

  #tensor(shape: readonly number[], what: string): Tensor {
    return this.#recorder.tensor(shape, `${what} of ${this.#label}`);
  }
}
