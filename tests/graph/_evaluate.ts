// Runs a graph on the host in float64, channels first or channels last: plain loops straight from the ONNX operator
// specification, with none of the passes' code.
import type { NdArray } from "../../src/core/nd_array.ts";
import type { Graph, Node } from "../../src/graph/graph.ts";
import { lstmReference } from "../_reference_lstm.ts";

/** A tensor in float64, C order. */
export interface Values {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

/** Runs all nodes; returns every tensor by name. */
export function evaluate(
  graph: Graph,
  x: Values,
  layout: "first" | "last" = "first",
): Map<string, Values> {
  const tensors = new Map<string, Values>();
  for (const [name, array] of graph.initializers) tensors.set(name, fromArray(array));
  tensors.set(graph.inputs[0]!.name, x);
  for (const node of graph.nodes) {
    const inputs = node.inputs.filter((name) => name !== "").map((name) => tensors.get(name)!);
    if (node.opType === "LSTM") {
      lstm(node, inputs).forEach((y, i) => tensors.set(node.outputs[i] ?? "", y));
    } else tensors.set(node.outputs[0]!, run(node, inputs, layout, graph.opset));
  }
  return tensors;
}

/** An array as float64. */
export function fromArray(array: NdArray): Values {
  return { shape: array.shape, data: Float64Array.from(array.data as ArrayLike<number>, Number) };
}

/** Swaps the axes: `y.shape[i] = x.shape[permutation[i]]`. */
export function permute(x: Values, permutation: readonly number[]): Values {
  return fill(permutation.map((axis) => x.shape[axis]!), (index) => {
    const from = new Array<number>(index.length);
    permutation.forEach((axis, i) => from[axis] = index[i]!);
    return at(x, from);
  });
}

const TO_FIRST = [0, 3, 1, 2], TO_LAST = [0, 2, 3, 1];

const UNARY: Record<string, (v: number, node: Node) => number> = {
  Relu: (v) => Math.max(v, 0),
  Sigmoid: (v) => 1 / (1 + Math.exp(-v)),
  Tanh: (v) => Math.tanh(v),
  LeakyRelu: (v, node) => v < 0 ? v * Number(node.attributes.alpha ?? 0.01) : v,
  Identity: (v) => v,
  Dropout: (v) => v,
};

const BINARY: Record<string, (a: number, b: number) => number> = {
  Add: (a, b) => a + b,
  Sub: (a, b) => a - b,
  Mul: (a, b) => a * b,
  Div: (a, b) => a / b,
  PRelu: (v, slope) => v < 0 ? v * slope : v,
};

function run(node: Node, inputs: Values[], layout: string, opset: number): Values {
  const x = inputs[0]!;
  const unary = UNARY[node.opType], binary = BINARY[node.opType];
  if (unary !== undefined) return { ...x, data: x.data.map((v) => unary(v, node)) };
  if (binary !== undefined) return broadcast(x, inputs[1]!, binary);
  const spatial = ["Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"];
  if (layout === "last" && spatial.includes(node.opType) && x.shape.length === 4) {
    const y = runFirst(node, [permute(x, TO_FIRST), ...toFirstWeight(node, inputs)], opset);
    return permute(y, TO_LAST);
  }
  // A Gemm over a flattened image is a Conv that makes [N, 1, 1, O]; the next Gemm reads it as [N, O].
  const flat = node.opType === "Gemm" && x.shape.length === 4
    ? { ...x, shape: [x.shape[0]!, x.shape[3]!] }
    : x;
  return runFirst(node, [flat, ...inputs.slice(1)], opset);
}

function toFirstWeight(node: Node, [, w, ...rest]: Values[]): Values[] {
  if (node.opType !== "Conv") return w === undefined ? rest : [w, ...rest];
  if (w!.shape.length === 4) return [permute(w!, TO_FIRST), ...rest];
  const [kh, kw, c] = w!.shape;
  return [{ ...permute(w!, [2, 0, 1]), shape: [c!, 1, kh!, kw!] }, ...rest];
}

function runFirst(node: Node, inputs: Values[], opset: number): Values {
  const [x, w, b] = inputs as [Values, Values, Values | undefined];
  const a = node.attributes;
  const list = (name: string, index: number, old = false): number[] | undefined =>
    (a[name] as number[] | undefined) ??
      (old ? undefined : inputs[index] && [...inputs[index].data]);
  switch (node.opType) {
    case "Conv":
      return conv(node, x, w, b);
    case "MaxPool":
    case "AveragePool":
      return pool(node, x);
    case "GlobalAveragePool":
      return reduceMean(x, [2, 3], true);
    case "BatchNormalization": {
      const [, gamma, beta, mean, variance] = inputs;
      return fill(x.shape, (i) => {
        const c = i[1]!;
        return (at(x, i) - mean!.data[c]!) * gamma!.data[c]! /
            Math.sqrt(variance!.data[c]! + Number(a.epsilon ?? 1e-5)) + beta!.data[c]!;
      });
    }
    case "MatMul":
    case "Gemm": {
      const ta = a.transA === 1, tb = a.transB === 1;
      if (x.shape.length > 2) {
        const rows = { ...x, shape: [x.data.length / x.shape.at(-1)!, x.shape.at(-1)!] };
        const y = runFirst(node, [rows, ...inputs.slice(1)], opset);
        return { ...y, shape: [...x.shape.slice(0, -1), y.shape[1]!] };
      }
      const shape = [x.shape[ta ? 1 : 0]!, w.shape[tb ? 0 : 1]!];
      const product = fill(shape, ([n, o]) => Number(a.alpha ?? 1) * dot(x, w, n!, o!, ta, tb));
      return b === undefined
        ? product
        : broadcast(product, b, (p, c) => p + Number(a.beta ?? 1) * c);
    }
    case "Clip":
      return {
        ...x,
        data: x.data.map((v) =>
          Math.min(
            Math.max(v, list("min", 1)?.[0] ?? Number(a.min ?? -Infinity)),
            b?.data[0] ?? Number(a.max ?? Infinity),
          )
        ),
      };
    case "ReduceMean":
      return reduceMean(x, list("axes", 1)!, a.keepdims !== 0);
    case "Concat": {
      const axis = (Number(a.axis) + x.shape.length) % x.shape.length;
      const sum = inputs.reduce((total, input) => total + input.shape[axis]!, 0);
      return fill(x.shape.with(axis, sum), (index) => {
        let offset = index[axis]!, i = 0;
        while (offset >= inputs[i]!.shape[axis]!) offset -= inputs[i++]!.shape[axis]!;
        return at(inputs[i]!, index.with(axis, offset));
      });
    }
    case "Slice":
      return slice(x, list("starts", 1)!, list("ends", 2)!, list("axes", 3)!, list("steps", 4));
    case "Pad": {
      const pads = list("pads", 1)!, rank = x.shape.length;
      const value = Number(a.value ?? inputs[2]?.data[0] ?? 0);
      return fill(x.shape.map((s, i) => s + pads[i]! + pads[i + rank]!), (index) => {
        const from = index.map((v, i) => v - pads[i]!);
        return from.every((v, i) => v >= 0 && v < x.shape[i]!) ? at(x, from) : value;
      });
    }
    case "Gather": {
      const axis = (Number(a.axis ?? 0) + x.shape.length) % x.shape.length;
      const index = (w.data[0]! + x.shape[axis]!) % x.shape[axis]!;
      const end = index + 1;
      return { shape: x.shape.toSpliced(axis, 1), data: slice(x, [index], [end], [axis]).data };
    }
    case "Squeeze": {
      const axes = list("axes", 1)!.map((axis) => (axis + x.shape.length) % x.shape.length);
      return { shape: x.shape.filter((_, axis) => !axes.includes(axis)), data: x.data };
    }
    case "Flatten":
      return { shape: [x.shape[0]!, x.data.length / x.shape[0]!], data: x.data };
    case "Reshape": {
      const target = (list("shape", 1)!).map((s, i) => s === 0 ? x.shape[i]! : s);
      const known = target.filter((s) => s > 0).reduce((p, s) => p * s, 1);
      return { shape: target.map((s) => s === -1 ? x.data.length / known : s), data: x.data };
    }
    case "Transpose":
      return permute(x, a.perm as number[]);
    case "Softmax": {
      const axis = (Number(a.axis ?? (opset < 13 ? 1 : -1)) + x.shape.length) % x.shape.length;
      return fill(x.shape, (index) => {
        let sum = 0;
        for (let i = 0; i < x.shape[axis]!; i++) sum += Math.exp(at(x, index.with(axis, i)));
        return Math.exp(at(x, index)) / sum;
      });
    }
    default:
      throw new Error(`The test's evaluator does not know ${node.opType}`);
  }
}

/** Y, Y_h and Y_c of an LSTM; of the form that simplify leaves, Y. */
function lstm(node: Node, [x, w, r, b]: Values[]): Values[] {
  const isOwn = w!.shape.length === 2;
  const isBatchFirst = node.attributes.layout === 1 || isOwn;
  const steps = x!.shape[isBatchFirst ? 1 : 0]!, samples = x!.shape[isBatchFirst ? 0 : 1]!;
  const inputs = x!.shape[2]!, hidden = w!.shape.at(isOwn ? 0 : 1)! / 4;
  const direction = node.attributes.direction ?? "forward";
  const directions = direction === "bidirectional" ? [0, 1] : [0];
  const results = directions.map((d) =>
    lstmReference(
      { samples, steps, inputs, hidden, reverse: direction === "reverse" || d === 1 },
      (n, t, i) => at(x!, isBatchFirst ? [n, t, i] : [t, n, i]),
      (row, i) => isOwn ? at(w!, [row, i]) : at(w!, [d, row, i]),
      (row, k) => isOwn ? at(w!, [row, inputs + k]) : at(r!, [d, row, k]),
      (row) => isOwn ? r?.data[row] ?? 0 : b ? at(b, [d, row]) + at(b, [d, 4 * hidden + row]) : 0,
    )
  );
  const last = (d: number) => direction === "reverse" || d === 1 ? 0 : steps - 1;
  if (isOwn) return [fill([samples, steps, hidden], ([n, t, j]) => results[0]!.y[n!]![t!]![j!]!)];
  if (isBatchFirst) {
    const shape = [samples, steps, directions.length, hidden];
    return [fill(shape, ([n, t, d, j]) => results[d!]!.y[n!]![t!]![j!]!)];
  }
  const states = [directions.length, samples, hidden];
  return [
    fill([steps, ...states], ([t, d, n, j]) => results[d!]!.y[n!]![t!]![j!]!),
    fill(states, ([d, n, j]) => results[d!]!.y[n!]![last(d!)]![j!]!),
    fill(states, ([d, n, j]) => results[d!]!.cells[n!]![last(d!)]![j!]!),
  ];
}

function conv(node: Node, x: Values, w: Values, b: Values | undefined): Values {
  const a = node.attributes as Record<string, number[]>;
  const [kh, kw] = w.shape.slice(2) as [number, number];
  const [sh, sw] = a.strides ?? [1, 1], [dh, dw] = a.dilations ?? [1, 1];
  const [top, left, bottom, right] = a.pads ?? [0, 0, 0, 0];
  const [batch, , height, width] = x.shape as [number, number, number, number];
  const oh = Math.floor((height + top! + bottom! - dh! * (kh - 1) - 1) / sh!) + 1;
  const ow = Math.floor((width + left! + right! - dw! * (kw - 1) - 1) / sw!) + 1;
  const inputs = w.shape[1]!, outputs = w.shape[0]!;
  const perGroup = outputs / Number(node.attributes.group ?? 1);
  return fill([batch, outputs, oh, ow], ([n, o, y, z]) => {
    let sum = b?.data[o!] ?? 0;
    const base = Math.floor(o! / perGroup) * inputs;
    for (let c = 0; c < inputs; c++) {
      const plane = (n! * x.shape[1]! + base + c) * height * width;
      for (let i = 0; i < kh; i++) {
        const row = y! * sh! - top! + i * dh!;
        if (row < 0 || row >= height) continue;
        for (let j = 0; j < kw; j++) {
          const column = z! * sw! - left! + j * dw!;
          if (column < 0 || column >= width) continue;
          sum += x.data[plane + row * width + column]! *
            w.data[((o! * inputs + c) * kh + i) * kw + j]!;
        }
      }
    }
    return sum;
  });
}

function pool(node: Node, x: Values): Values {
  const a = node.attributes as Record<string, number[]>;
  const [kh, kw] = a.kernel_shape as [number, number];
  const [sh, sw] = a.strides ?? [1, 1];
  const [top, left, bottom, right] = a.pads ?? [0, 0, 0, 0];
  const [, , height, width] = x.shape as [number, number, number, number];
  const oh = Math.floor((height + top! + bottom! - kh) / sh!) + 1;
  const ow = Math.floor((width + left! + right! - kw) / sw!) + 1;
  return fill([x.shape[0]!, x.shape[1]!, oh, ow], ([n, c, y, z]) => {
    const taken: number[] = [];
    for (let i = 0; i < kh; i++) {
      for (let j = 0; j < kw; j++) {
        const row = y! * sh! - top! + i, column = z! * sw! - left! + j;
        if (row < 0 || column < 0 || row >= height || column >= width) continue;
        taken.push(at(x, [n!, c!, row, column]));
      }
    }
    if (node.opType === "MaxPool") return Math.max(...taken);
    const count = Number(node.attributes.count_include_pad ?? 0) ? kh * kw : taken.length;
    return taken.reduce((sum, v) => sum + v, 0) / count;
  });
}

function slice(
  x: Values,
  starts: number[],
  ends: number[],
  axes: number[],
  steps = starts.map(() => 1),
): Values {
  let y = x;
  axes.forEach((axis, i) => {
    const size = y.shape[axis]!, from: number[] = [];
    const start = starts[i]! < 0 ? starts[i]! + size : starts[i]!;
    const end = ends[i]! < 0 ? ends[i]! + size : Math.min(ends[i]!, size);
    for (let p = start; p < end; p += steps[i]!) from.push(p);
    const source = y;
    y = fill(
      y.shape.with(axis, from.length),
      (index) => at(source, index.with(axis, from[index[axis]!]!)),
    );
  });
  return y;
}

function reduceMean(x: Values, given: number[], keep: boolean): Values {
  const axes = given.map((axis) => (axis + x.shape.length) % x.shape.length);
  const kept = x.shape.map((size, axis) => axes.includes(axis) ? 1 : size);
  const y = fill(kept, () => 0);
  const count = x.data.length / y.data.length;
  fill(x.shape, (index) => {
    y.data[offset(y, index.map((v, axis) => axes.includes(axis) ? 0 : v))]! += at(x, index) / count;
    return 0;
  });
  return keep ? y : { shape: x.shape.filter((_, axis) => !axes.includes(axis)), data: y.data };
}

function broadcast(a: Values, b: Values, apply: (a: number, b: number) => number): Values {
  const rank = Math.max(a.shape.length, b.shape.length);
  const pad = (v: Values): Values => ({
    shape: [...new Array<number>(rank - v.shape.length).fill(1), ...v.shape],
    data: v.data,
  });
  const [p, q] = [pad(a), pad(b)];
  const pick = (v: Values, index: number[]) =>
    at(v, index.map((i, axis) => v.shape[axis] === 1 ? 0 : i));
  const shape = p.shape.map((size, axis) => Math.max(size, q.shape[axis]!));
  return fill(shape, (index) => apply(pick(p, index), pick(q, index)));
}

function dot(x: Values, w: Values, n: number, o: number, transA: boolean, transB: boolean): number {
  let sum = 0;
  for (let i = 0; i < x.shape[transA ? 0 : 1]!; i++) {
    sum += at(x, transA ? [i, n] : [n, i]) * at(w, transB ? [o, i] : [i, o]);
  }
  return sum;
}

function fill(shape: readonly number[], value: (index: number[]) => number): Values {
  const data = new Float64Array(shape.reduce((product, size) => product * size, 1));
  const index = new Array<number>(shape.length).fill(0);
  for (let i = 0; i < data.length; i++) {
    data[i] = value(index);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      if (++index[axis]! < shape[axis]!) break;
      index[axis] = 0;
    }
  }
  return { shape, data };
}

function at(x: Values, index: readonly number[]): number {
  return x.data[offset(x, index)]!;
}

function offset(x: Values, index: readonly number[]): number {
  let position = 0;
  for (let axis = 0; axis < index.length; axis++) {
    position = position * x.shape[axis]! + index[axis]!;
  }
  return position;
}
