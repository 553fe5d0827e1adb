// LSTM as ONNX has it into the form of lstm.ts: one direction, samples first, one weight. What exporters put behind it to
// take the axis of directions away (Squeeze, Transpose and Reshape, Gather of a final state) goes with it.
import { UnsupportedError } from "../core/errors.ts";
import { type NdArray, ndArray, toFloat32 } from "../core/nd_array.ts";
import { axesArgument, numbersOf } from "./arguments.ts";
import { normalizeAxis, numberAttribute, numbersAttribute } from "./attributes.ts";
import type { Attribute, Graph, Node } from "./graph.ts";
import { directionOf, isBatchFirst, lstmSizes } from "./lstm.ts";
import { finishEdit, type GraphEdit, startEdit, uniqueName } from "./rewrite.ts";
import { inferShapesAndValues } from "./shape_inference.ts";
import { sampleBatch } from "./simplify_constants.ts";
import { outputNames } from "./topology.ts";

/** Tensors that exist in parts only, until a node behind them asks for a form that a tensor has. */
type Parts =
  /** Y: [N, T, H] of each direction, for [T, D, N, H] or [N, T, D, H]; swapped: after Transpose to [T, N, D, H]. */
  | { readonly kind: "sequence"; readonly names: readonly string[]; readonly form: SequenceForm }
  /** States along axis 0: [N, H] each, of directions and, joined, of layers. */
  | { readonly kind: "states"; readonly names: readonly string[] };

type SequenceForm = "TDNH" | "NTDH" | "TNDH";

/**
 * Brings every LSTM into the form of lstm.ts.
 *
 * @param graph the network, its constants folded
 * @returns the graph itself when it has no other LSTM
 * @throws UnsupportedError when an LSTM, or what reads it, has a form that is not implemented
 */
export function normalizeLstm(graph: Graph): Graph {
  const isOriginal = ({ opType, inputs }: Node) =>
    opType === "LSTM" && graph.initializers.get(inputs[1] ?? "")?.shape.length !== 2;
  if (!graph.nodes.some(isOriginal)) return graph;
  const { shapes, values } = inferShapesAndValues(graph, sampleBatch(graph));
  const lowering = new Lowering(graph, shapes, values);
  for (const node of graph.nodes) {
    if (isOriginal(node)) lowering.lstm(node);
    else lowering.other(node);
  }
  return lowering.finish();
}

class Lowering {
  readonly #graph: Graph;
  readonly #shapes: ReadonlyMap<string, readonly number[]>;
  readonly #values: ReadonlyMap<string, NdArray>;
  readonly #edit: GraphEdit;
  readonly #parts = new Map<string, Parts>();
  readonly #outputs: ReadonlySet<string>;

  constructor(
    graph: Graph,
    shapes: ReadonlyMap<string, readonly number[]>,
    values: ReadonlyMap<string, NdArray>,
  ) {
    this.#graph = graph;
    this.#shapes = shapes;
    this.#values = values;
    this.#edit = startEdit(graph);
    this.#outputs = outputNames(graph);
    this.#edit.nodes = [];
  }

  finish(): Graph {
    return finishEdit(this.#graph, this.#edit);
  }

  lstm(node: Node): void {
    const shape = (index: number) => this.#shapes.get(node.inputs[index] ?? "");
    const { directions, hidden } = lstmSizes(node, shape);
    this.#checkInputs(node);
    const batchFirst = isBatchFirst(node);
    const [x, w, r, b = ""] = node.inputs as [string, string, string, string?];
    const samplesFirst = batchFirst ? x : this.#swap(node, x, `${node.name}_input`);
    const weights = joinedWeights(node, [w, r].map((name) => this.#values.get(name)));
    const biases = b === "" ? undefined : summedBiases(node, this.#values.get(b));
    const direction = directionOf(node);
    const sequences: string[] = [], states: string[] = [];
    for (let d = 0; d < directions; d++) {
      const reverse = direction === "reverse" || d === 1;
      const suffix = directions === 1 ? "" : reverse ? "_reverse" : "_forward";
      const weight = this.#constant(`${w}${suffix}`, weights[d]!, w);
      const inputs = [samplesFirst, weight];
      if (biases) inputs.push(this.#constant(`${b}${suffix}`, biases[d]!, b));
      const y = this.#unique(`${node.name}_output${suffix}`);
      sequences.push(y);
      this.#edit.nodes.push({
        name: suffix === "" ? node.name : this.#unique(`${node.name}${suffix}`),
        opType: "LSTM",
        inputs,
        outputs: [y],
        attributes: {
          direction: reverse ? "reverse" : "forward",
          hidden_size: hidden,
          layout: 1,
        },
      });
      if ((node.outputs[1] ?? "") !== "") states.push(this.#finalState(node, y, reverse));
    }
    const [all = "", state = "", cell = ""] = node.outputs;
    if (cell !== "" && this.#isRead(cell)) {
      throw new UnsupportedError(node.opType, node.name, `its cell state "${cell}" is read`);
    }
    this.#setParts(node, all, {
      kind: "sequence",
      names: sequences,
      form: batchFirst ? "NTDH" : "TDNH",
    });
    if (batchFirst && state !== "" && this.#isRead(state)) {
      throw new UnsupportedError(node.opType, node.name, "Y_h of layout 1 is read");
    }
    this.#setParts(node, state, { kind: "states", names: states });
  }

  /** A node that may read parts. */
  other(node: Node): void {
    const parts = node.inputs.map((name) => this.#parts.get(name));
    if (parts.every((part) => part === undefined)) {
      this.#edit.nodes.push(node);
      return;
    }
    const [part] = parts;
    const done = part?.kind === "sequence"
      ? this.#sequenceReader(node, part.names, part.form)
      : this.#statesReader(node, parts);
    if (done) return;
    throw new UnsupportedError(
      node.opType,
      node.name,
      `"${node.inputs.find((name) => this.#parts.has(name))}" of an LSTM may be read by a ` +
        "Squeeze, by a Transpose and Reshape that join its directions, or by a Gather of one state",
    );
  }

  #sequenceReader(node: Node, names: readonly string[], form: SequenceForm): boolean {
    const output = node.outputs[0]!;
    const shape = this.#shapes.get(output)!;
    const hidden = this.#shapes.get(node.inputs[0]!)!.at(-1)!;
    if (node.opType === "Transpose" && form === "TDNH") {
      if (numbersAttribute(node, "perm")?.join() !== "0,2,1,3") return false;
      this.#setParts(node, output, { kind: "sequence", names, form: "TNDH" });
      return true;
    }
    // Squeeze of one direction, or Reshape that puts both behind one another.
    const joins = node.opType === "Reshape" && (form !== "TDNH" || names.length === 1) ||
      node.opType === "Squeeze" && names.length === 1;
    if (!joins || shape.length !== 3 || shape[2] !== names.length * hidden) return false;
    const joined = names.length === 1 ? names[0]! : this.#unique(`${output}_joined`);
    if (names.length > 1) {
      this.#add("Concat", joined, names, { axis: 2 });
    }
    const isTimeFirst = form !== "NTDH";
    this.#add(isTimeFirst ? "Transpose" : "Identity", output, [joined], {
      ...(isTimeFirst && { perm: [1, 0, 2] }),
    });
    return true;
  }

  #statesReader(node: Node, parts: readonly (Parts | undefined)[]): boolean {
    const lists = parts.map((part) => part?.kind === "states" ? part.names : undefined);
    const [first] = lists;
    const output = node.outputs[0]!;
    if (first === undefined) return false;
    const axisOf = (axis: number | undefined, rank: number) =>
      axis === undefined ? undefined : normalizeAxis(node, axis, rank);
    switch (node.opType) {
      case "Concat": {
        const all = lists.flatMap((list) => list ?? []);
        if (lists.includes(undefined)) return false;
        if (axisOf(numberAttribute(node, "axis", 0), 3) !== 0) return false;
        this.#setParts(node, output, { kind: "states", names: all });
        return true;
      }
      case "Gather": {
        const index = this.#values.get(node.inputs[1] ?? "");
        if (index === undefined || index.shape.length !== 0) return false;
        if (axisOf(numberAttribute(node, "axis", 0), 3) !== 0) return false;
        const position = normalizeAxis(node, numbersOf(index)[0]!, first.length);
        this.#add("Identity", output, [first[position]!]);
        return true;
      }
      case "Squeeze": {
        const axes = axesArgument(node, (name) => this.#values.get(name));
        if (first.length !== 1 || axes?.length !== 1 || axisOf(axes[0], 3) !== 0) return false;
        this.#add("Identity", output, first);
        return true;
      }
      default:
        return false;
    }
  }

  /** [N, H]: y at the last step in time. */
  #finalState(node: Node, y: string, reverse: boolean): string {
    const index = ndArray("int64", [], BigInt64Array.of(reverse ? 0n : -1n));
    const at = this.#constant(`${y}_last`, index);
    const state = this.#unique(`${node.outputs[1]}_state`);
    this.#add("Gather", state, [y, at], { axis: 1 });
    return state;
  }

  /** Sequences with the samples first. */
  #swap(node: Node, x: string, wish: string): string {
    const y = this.#unique(wish);
    this.#add("Transpose", y, [x], { perm: [1, 0, 2] }, this.#unique(`${node.name}_transpose`));
    return y;
  }

  /** Optional inputs are as if they were not there. */
  #checkInputs(node: Node): void {
    const steps = this.#shapes.get(node.inputs[0]!)![isBatchFirst(node) ? 1 : 0]!;
    const usual = new Map([[4, steps], [5, 0], [6, 0]]);
    for (const [index, expected] of usual) {
      const name = node.inputs[index] ?? "";
      if (name === "") continue;
      const value = this.#values.get(name);
      if (value !== undefined && numbersOf(value).every((number) => number === expected)) continue;
      const what = ["sequence_lens", "initial_h", "initial_c"][index - 4];
      throw new UnsupportedError(
        node.opType,
        node.name,
        `${what} "${name}" must be a constant, all ${expected}`,
      );
    }
  }

  #setParts(node: Node, name: string, parts: Parts): void {
    if (name === "") return;
    if (this.#outputs.has(name)) {
      const axes = parts.kind === "sequence" ? "four axes" : "an axis of directions";
      throw new UnsupportedError(
        node.opType,
        node.name,
        `"${name}", with ${axes}, is an output of the network`,
      );
    }
    this.#parts.set(name, parts);
  }

  #isRead(name: string): boolean {
    return this.#outputs.has(name) || this.#graph.nodes.some(({ inputs }) => inputs.includes(name));
  }

  #add(
    opType: string,
    output: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>> = {},
    name = this.#unique(`${output}_${opType}`),
  ): void {
    this.#edit.nodes.push({ name, opType, inputs, outputs: [output], attributes });
  }

  /** Adds an initializer; one that takes the place of another may have its name. */
  #constant(wish: string, array: NdArray, replaced?: string): string {
    const uses = this.#graph.nodes.flatMap(({ inputs }) => inputs).filter((i) => i === replaced);
    const name = wish === replaced && uses.length === 1 ? wish : this.#unique(wish);
    this.#edit.initializers.set(name, array);
    return name;
  }

  /** A name that neither the old graph nor the new one has. */
  #unique(wish: string): string {
    const edit = { ...this.#edit, nodes: [...this.#graph.nodes, ...this.#edit.nodes] };
    return uniqueName(this.#graph, edit, wish);
  }
}

/** [4H, I + H] of each direction, from W [D, 4H, I] and R [D, 4H, H]. */
function joinedWeights(
  node: Node,
  arrays: readonly (NdArray | undefined)[],
): NdArray<"float32">[] {
  const [w, r] = arrays.map((array) => constantOf(node, array));
  const [directions = 1, rows = 1, inputs = 1] = w!.shape;
  const hidden = r!.shape[2]!, columns = inputs + hidden;
  return Array.from({ length: directions }, (_, d) => {
    const data = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      const line = d * rows + row;
      data.set(w!.data.subarray(line * inputs, (line + 1) * inputs), row * columns);
      data.set(r!.data.subarray(line * hidden, (line + 1) * hidden), row * columns + inputs);
    }
    return ndArray("float32", [rows, columns], data);
  });
}

/** [4H] of each direction, from B [D, 8H]. */
function summedBiases(node: Node, array: NdArray | undefined): NdArray<"float32">[] {
  const { shape: [directions = 1, both = 2], data } = constantOf(node, array);
  const rows = both / 2;
  return Array.from({ length: directions }, (_, d) => {
    const sum = new Float32Array(rows);
    for (let i = 0; i < rows; i++) sum[i] = data[d * both + i]! + data[d * both + rows + i]!;
    return ndArray("float32", [rows], sum);
  });
}

function constantOf(node: Node, array: NdArray | undefined): NdArray<"float32"> {
  if (array !== undefined) return ndArray("float32", array.shape, toFloat32(array));
  throw new UnsupportedError(node.opType, node.name, "its weights must be constants");
}
