// Brings a network as exporters write it into the few forms that the rest of stilla works on. The result computes the
// same function and is valid ONNX of the same opset, but for Gemm of more than two axes and LSTM: formats/onnx_forms.ts
// writes these as ONNX has them.
import type { Graph } from "./graph.ts";
import { foldConstants } from "./simplify_constants.ts";
import { normalizeLinear } from "./simplify_linear.ts";
import { normalizeLstm } from "./simplify_lstm.ts";
import { removeNoOps } from "./simplify_no_ops.ts";
import { makePadsExplicit, mergePads } from "./simplify_pads.ts";
import { gatherToSlice, meansBeforeTransposes, mergeTransposes } from "./simplify_transposes.ts";

/**
 * Simplifies a network:
 * - what depends on constants and shapes only becomes an initializer; Reshape that flattens becomes Flatten;
 * - LSTM gets one direction, samples first and one weight (lstm.ts);
 * - Identity, inference Dropout and reshapes to the same shape go;
 * - auto_pad becomes pads, and a zero Pad before convolutions becomes their pads;
 * - MatMul by a constant matrix, with or without Add of a constant vector, becomes Gemm;
 * - Gemm gets weight [O, I] (transB = 1), bias [O] and alpha = beta = 1.
 *
 * @param graph the network
 * @returns the simplified network; its inputs, outputs and the tensors that remain keep their names
 * @throws UnsupportedError when an operator, or a form of it, has no shape rule
 * @throws RangeError when shapes contradict each other
 */
export function simplify(graph: Graph): Graph {
  const folded = removeNoOps(normalizeSequences(foldConstants(graph)));
  return normalizeLinear(mergePads(makePadsExplicit(folded)));
}

/** Folds constants again where the first round was needed to see what there is. */
function normalizeSequences(graph: Graph): Graph {
  const normalized = meansBeforeTransposes(gatherToSlice(mergeTransposes(normalizeLstm(graph))));
  return normalized === graph ? graph : foldConstants(normalized);
}
