// Scales of groups against float64 written from the definition: [o, i, y, x] of the file has scale [o, i / size, y, x].
import assert from "node:assert/strict";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { createStudent } from "../../src/distill/create_student.ts";
import { prepareNetwork } from "../../src/distill/network.ts";
import {
  convLayout,
  flattenedLayout,
  linearLayout,
  toChannelsLastLayout,
  type WeightLayout,
} from "../../src/graph/weight_layout.ts";
import { compensateLayer, compensateRow, factorHessian } from "../../src/quant/gptq.ts";
import { fakeQuantizeValue } from "../../src/quant/rounding.ts";
import { type LayerState, Student } from "../../src/quant/student.ts";
import { groupRows, ungroupRows, weightGroups } from "../../src/quant/weight_groups.ts";
import { makeGraph, node } from "../graph/_graphs.ts";
import { assertClose, randomArray } from "../_gpu.ts";

const SIZE = 3;
/** A convolution of 7 input channels (groups of 3, 3 and 1), a linear weight, and one that reads a flattened image. */
const LAYOUTS: Readonly<Record<string, WeightLayout>> = {
  conv: convLayout([4, 7, 2, 2], 1),
  linear: linearLayout([4, 7]),
  flattened: flattenedLayout([4, 12], [3, 2, 2]),
};

for (const [name, layout] of Object.entries(LAYOUTS)) {
  Deno.test(`Student.freeze() rounds the weights of a ${name} layer on the grids of their groups`, () => {
    const { layer, inFile } = groupedLayer(layout);
    const bias = Float32Array.from(randomArray(3, 4));
    const graph = makeGraph(["N", 7], [node("Gemm", "x w b", "y", { transB: 1 })], {
      w: layout.originalShape,
      b: [4],
    });
    const student = new Student([{ ...layer, bias, biasName: "b" }], []);
    const frozen = student.freeze(graph);
    const weight = frozen.weights.get("w")!;
    assert.deepEqual([weight.axis, weight.blockSize], [1, SIZE]);
    assert.deepEqual(weight.scale, layer.logScale.map(Math.exp));
    const expected = fileGroups(layout).map((group, i) =>
      fakeQuantizeValue(inFile.data[i]!, gridOf(layer, group))
    );
    assert.ok(new Set(expected).size > 20);
    // The product of a code and a float32 scale, rounded to float32.
    const values = frozen.graph.initializers.get("w") as NdArray<"float32">;
    assertClose(values.data, expected, { rtol: 2e-7, atol: 0 }, name);
    assert.deepEqual(frozen.graph.initializers.get("b")!.data, bias, "the bias stays float");
    assert.equal(frozen.biases.size, 0);
  });

  Deno.test(`compensateLayer() rounds each weight of a ${name} layer on the grid of its group`, () => {
    const { layer, inFile } = groupedLayer(layout);
    const size = inFile.data.length / 4;
    // A well-conditioned H of correlated inputs, in the order of the channels-last weight.
    const hessian = Float64Array.from({ length: size * size }, (_, i) => {
      const [row, column] = [Math.floor(i / size), i % size];
      return 0.8 ** Math.abs(row - column) * (1 + row % 3) * (1 + column % 3);
    });
    const groups = toChannelsLastLayout(
      ndArray("int32", layout.originalShape, Int32Array.from(fileGroups(layout))),
      layout,
    ).data;
    const { latent } = compensateLayer(layer, hessian);
    for (let o = 0; o < 4; o++) {
      const row = Float64Array.from(layer.latent.data.subarray(o * size, (o + 1) * size));
      const round = (value: number, k: number) =>
        fakeQuantizeValue(value, gridOf(layer, groups[o * size + k]!));
      const expected = compensateRow(row, round, factorHessian(hessian));
      const found = latent.data.subarray(o * size, (o + 1) * size);
      // float32 of the value; the scale is a float32 exponential.
      assertClose(found, expected, { rtol: 1e-5, atol: 1e-5 }, `${name} ${o}`);
      assert.notDeepEqual(Array.from(found), Array.from(row));
    }
  });
}

Deno.test("weightGroups() leaves layers without more input channels than a group alone", () => {
  assert.equal(weightGroups(convLayout([8, 1, 3, 3], 8), 2), undefined, "depthwise");
  assert.equal(weightGroups(convLayout([8, 3, 3, 3], 1), 3), undefined);
  assert.equal(weightGroups(convLayout([8, 4, 3, 3], 1), 3)?.count, 8 * 2 * 9);
});

Deno.test("ungroupRows() undoes groupRows(), whose rows end with zeros", () => {
  const groups = weightGroups(LAYOUTS.conv!, SIZE)!;
  const shape = LAYOUTS.conv!.finalShape;
  const values = ndArray("float32", shape, Float32Array.from({ length: 112 }, (_, i) => i + 1));
  const rows = groupRows(values, groups);
  assert.deepEqual(rows.shape, [48, SIZE]);
  // Groups of the third block hold one channel; 4 * 2 * 2 of them have two places left.
  assert.equal(rows.data.filter((value) => value === 0).length, 32);
  assert.deepEqual(ungroupRows(rows, shape, groups), values);
});

Deno.test("createStudent() with groups loses less than with one scale a channel, less the smaller they are", () => {
  const weights = Float32Array.from(randomArray(1, 16 * 96), (value, i) => value * (1 + i % 7));
  const model = makeGraph(["N", 96], [node("Gemm", "x w", "y", { transB: 1 }, "fc")], {
    w: [16, 96],
  });
  const initializers = new Map([["w", ndArray("float32", [16, 96], weights)]]);
  const bits = { weightBits: 4, activationBits: null, firstLastBits: 4 };
  const network = prepareNetwork({ ...model, initializers }, bits, false);
  for (const weightObserver of ["mse", "minmax"] as const) {
    const errors = [null, 32, 10].map((weightGroup) => {
      const recipe = { method: "ptq", weightGrid: "auto", weightObserver, weightGroup } as const;
      const { weightValues } = createStudent(network, [], recipe).freezeLayer("fc");
      return weightValues.data.reduce((sum, value, i) => sum + (value - weights[i]!) ** 2, 0);
    });
    assert.ok(errors[1]! < 0.95 * errors[0]! && errors[2]! < 0.9 * errors[1]!, `${errors}`);
  }
});

/** A layer whose groups all have scales and ranges of their own, and its weights in the order of the file. */
function groupedLayer(layout: WeightLayout): { layer: LayerState; inFile: NdArray<"float32"> } {
  const groups = weightGroups(layout, SIZE)!;
  const length = layout.originalShape.reduce((product, size) => product * size, 1);
  const inFile = ndArray(
    "float32",
    layout.originalShape,
    Float32Array.from(randomArray(2, length)),
  );
  const perGroup = <T>(value: (group: number) => T) =>
    Array.from({ length: groups.count }, (_, group) => value(group));
  const layer: LayerState = {
    node: "fc",
    weight: "w",
    input: "x",
    latent: toChannelsLastLayout(inFile, layout),
    layout,
    axis: 0,
    bits: 4,
    logScale: Float32Array.from(perGroup((group) => Math.log(0.05 + 0.01 * group))),
    quantMin: Int32Array.from(perGroup((group) => group % 2 - 8)),
    quantMax: Int32Array.from(perGroup((group) => group % 2 + 7)),
    groups,
  };
  return { layer, inFile };
}

/** Number of the group of each weight, in the order of the file. */
function fileGroups({ originalShape: [outputs, inputs, ...kernel] }: WeightLayout): number[] {
  const taps = kernel.reduce((product, size) => product * size, 1);
  const blocks = Math.ceil(inputs! / SIZE);
  const result: number[] = [];
  for (let o = 0; o < outputs!; o++) {
    for (let i = 0; i < inputs!; i++) {
      for (let tap = 0; tap < taps; tap++) {
        result.push((o * blocks + Math.floor(i / SIZE)) * taps + tap);
      }
    }
  }
  return result;
}

function gridOf({ logScale, quantMin, quantMax }: LayerState, group: number) {
  return {
    scale: Math.fround(Math.exp(logScale[group]!)),
    zeroPoint: 0,
    quantMin: quantMin[group]!,
    quantMax: quantMax[group]!,
  };
}
