// LSTM networks as PyTorch exports them, with what it computes (make_lstm_goldens.py).
import { importOnnx } from "../../src/formats/onnx_import.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { fromBase64 } from "./_refused.ts";
import goldens from "./lstm_goldens.json" with { type: "json" };

/** Inputs of each network. */
export const LSTM_INPUT = [3, 5, 3] as const;

/** A network with its inputs and outputs. */
export interface LstmGolden {
  readonly name: string;
  readonly graph: Graph;
  readonly x: Float32Array<ArrayBuffer>;
  readonly y: Float32Array<ArrayBuffer>;
}

/** All of them. */
export const LSTM_GOLDENS: readonly LstmGolden[] = Object.entries(goldens).map(
  ([name, { file, x, y }]) => ({
    name,
    graph: importOnnx(fromBase64(file), { path: name }),
    x: Float32Array.from(x),
    y: Float32Array.from(y),
  }),
);
