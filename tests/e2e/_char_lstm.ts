// The character LSTM of the shared data as an ONNX network: [N, T, 108] one-hot characters to [N, T, 108] logits of the
// next one, with its text cut into sequences.
import { type NdArray, ndArray, toFloat32 } from "../../src/core/nd_array.ts";
import { decodeSafetensors } from "../../src/formats/safetensors.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { sharedData } from "../_shared_data.ts";
import { int64, makeGraph, node } from "../graph/_graphs.ts";

const MODEL = "lm/charlstm_charlotte_bronte.safetensors";
const VOCABULARY = "lm/charlstm_charlotte_bronte_vocab.json";
const SIZE = 108, HIDDEN = 128;
/** TensorFlow's BasicLSTMCell has the gates i, g, f, o in its columns; ONNX wants i, o, f, g. */
const GATES = [0, 3, 2, 1];
const FORGET_BIAS = 1;

/**
 * The network.
 *
 * @param steps characters of an input
 * @returns two LSTM layers between two products, as PyTorch would export them
 */
export function charLstm(steps: number): Graph {
  const path = sharedData(MODEL);
  const { tensors } = decodeSafetensors(Deno.readFileSync(path), path);
  const values = (name: string) => toFloat32(tensors.get(name)!);
  const initializers: Record<string, NdArray> = {
    embedding: ndArray("float32", [SIZE, HIDDEN], values("embedding")),
    "softmax.weight": ndArray("float32", [HIDDEN, SIZE], values("rnnlm/softmax_w")),
    "softmax.bias": ndArray("float32", [SIZE], values("rnnlm/softmax_b")),
    one: int64(1),
  };
  for (const layer of [0, 1]) {
    const cell = `rnnlm/multi_rnn_cell/cell_${layer}/basic_lstm_cell`;
    const kernel = values(`${cell}/kernel`), bias = values(`${cell}/bias`);
    const rows = 4 * HIDDEN;
    // Row g H + j of ONNX is column GATES[g] H + j of the kernel [x, h].
    const column = (row: number) => GATES[Math.floor(row / HIDDEN)]! * HIDDEN + row % HIDDEN;
    const part = (first: number) =>
      ndArray(
        "float32",
        [1, rows, HIDDEN],
        Float32Array.from(
          { length: rows * HIDDEN },
          (_, i) => kernel[(first + i % HIDDEN) * rows + column(Math.floor(i / HIDDEN))]!,
        ),
      );
    const both = new Float32Array(2 * rows);
    for (let row = 0; row < rows; row++) {
      both[row] = bias[column(row)]! + (Math.floor(row / HIDDEN) === 2 ? FORGET_BIAS : 0);
    }
    initializers[`W${layer}`] = part(0);
    initializers[`R${layer}`] = part(HIDDEN);
    initializers[`B${layer}`] = ndArray("float32", [1, 2 * rows], both);
  }
  const cell = (layer: number, x: string, y: string) => [
    node(
      "LSTM",
      `${x} W${layer} R${layer} B${layer}`,
      `Y${layer}`,
      { hidden_size: HIDDEN },
      `lstm${layer}`,
    ),
    node("Squeeze", `Y${layer} one`, y),
  ];
  return makeGraph(["N", steps, SIZE], [
    node("MatMul", "x embedding", "embedded", {}, "embed"),
    node("Transpose", "embedded", "steps", { perm: [1, 0, 2] }),
    ...cell(0, "steps", "first"),
    ...cell(1, "first", "second"),
    node("Transpose", "second", "states", { perm: [1, 0, 2] }),
    node("MatMul", "states softmax.weight", "product", {}, "softmax"),
    node("Add", "product softmax.bias", "y"),
  ], initializers);
}

/**
 * Sequences of a text and what follows each of their characters.
 *
 * @param text of the two in the shared data
 * @param count sequences, spread evenly over the text
 * @param steps characters of each
 * @returns x [count, steps, 108] and labels [count, steps]
 */
export function charSequences(
  text: "calib" | "eval",
  count: number,
  steps: number,
): { readonly x: NdArray<"float32">; readonly labels: Uint32Array<ArrayBuffer> } {
  const vocabulary: Record<string, number> = JSON.parse(
    Deno.readTextFileSync(sharedData(VOCABULARY)),
  );
  const characters = [...Deno.readTextFileSync(sharedData(`lm/charlotte_bronte_${text}.txt`))];
  const ids = characters.map((character) => vocabulary[character]!);
  const stride = Math.floor((ids.length - 1) / count);
  const x = new Float32Array(count * steps * SIZE);
  const labels = new Uint32Array(count * steps);
  for (let n = 0; n < count; n++) {
    for (let t = 0; t < steps; t++) {
      const at = n * stride + t;
      x[(n * steps + t) * SIZE + ids[at]!] = 1;
      labels[n * steps + t] = ids[at + 1]!;
    }
  }
  return { x: ndArray("float32", [count, steps, SIZE], x), labels };
}
