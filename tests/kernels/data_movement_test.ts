// Moves are exact: forward against float64 references, backward against finite differences with a step of 1.
import {
  concatBackward,
  concatForward,
  gatherRows,
  sliceAndPadBackward,
  sliceAndPadForward,
  type SliceAndPadSpec,
  transposeBackward,
  transposeForward,
} from "../../kernels/data_movement.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import {
  mapRows,
  numericGradient,
  sizeOf,
  sliceAndPadReference,
  transposeReference,
} from "../_reference.ts";

const EXACT = { rtol: 0, atol: 0 };
// The differences, not the moves, are rounded.
const DIFFERENCES = { rtol: 1e-12, atol: 1e-12 };

forEachTarget("concatForward(), concatBackward() join and split channels", async (device) => {
  for (const channels of [[1], [4, 8], [8, 4, 3], [3, 5], [5, 1, 17, 4]]) {
    for (const rows of [1, 33]) {
      const parts = channels.map((count, q) => ({
        shape: [rows, count],
        data: randomArray(q + 1, rows * count),
      }));
      const total = channels.reduce((sum, count) => sum + count, 0);
      const inputs = Object.fromEntries(parts.map((part, q) => [`x${q}`, part]));
      const spec = { rows, channels };
      const { y } = await runKernel(device, concatForward(spec), inputs, { y: [rows, total] });
      const expected = mapRows(
        new Float64Array(rows),
        1,
        (_, r) =>
          parts.flatMap(({ data }, q) =>
            Array.from(data.subarray(r * channels[q]!, (r + 1) * channels[q]!))
          ),
      );
      assertClose(y!, expected, EXACT, `[${channels}]`);
      for (const [q, part] of parts.entries()) {
        const dy = { shape: [rows, total], data: expected };
        const { dx } = await runKernel(device, concatBackward(spec, q), { dy }, { dx: part.shape });
        assertClose(dx!, part.data, EXACT, `[${channels}] to ${q}`);
      }
    }
  }
});

const SLICES: readonly SliceAndPadSpec[] = [
  { input: [1, 1, 1, 1], output: [1, 1, 1, 1], start: [0, 0, 0, 0], step: [1, 1, 1, 1], value: 3 },
  // padding on all sides
  {
    input: [2, 3, 3, 5],
    output: [2, 6, 4, 5],
    start: [0, -2, -1, 0],
    step: [1, 1, 1, 1],
    value: 0,
  },
  {
    input: [2, 3, 3, 5],
    output: [2, 5, 4, 9],
    start: [0, -1, 0, -3],
    step: [1, 1, 1, 1],
    value: -7,
  },
  {
    input: [1, 2, 2, 5],
    output: [1, 2, 2, 10],
    start: [0, 0, 0, -4],
    step: [1, 1, 1, 1],
    value: 2,
  },
  // slices: every other one, backwards, channels at and off a vec4
  { input: [3, 7, 7, 8], output: [2, 3, 4, 8], start: [1, 1, 0, 0], step: [1, 2, 2, 1], value: 0 },
  {
    input: [3, 5, 5, 7],
    output: [2, 5, 2, 3],
    start: [2, 4, 3, 5],
    step: [-2, -1, -2, -2],
    value: 0,
  },
  { input: [2, 3, 3, 17], output: [2, 3, 3, 6], start: [0, 0, 0, 8], step: [1, 1, 1, 1], value: 0 },
  { input: [2, 3, 3, 17], output: [2, 3, 3, 6], start: [0, 0, 0, 3], step: [1, 1, 1, 2], value: 0 },
  {
    input: [2, 9, 9, 3],
    output: [2, 11, 11, 3],
    start: [0, -1, -1, 0],
    step: [1, 1, 1, 1],
    value: 1,
  },
];

forEachTarget("sliceAndPadForward(), sliceAndPadBackward() move elements", async (device) => {
  for (const spec of SLICES) {
    const label = `[${spec.input}] to [${spec.output}]`;
    const x = { shape: spec.input, data: randomArray(1, sizeOf(spec.input)) };
    const dy = { shape: spec.output, data: randomArray(2, sizeOf(spec.output)) };
    const { y } = await runKernel(device, sliceAndPadForward(spec), { x }, { y: spec.output });
    assertClose(y!, sliceAndPadReference(spec, x.data), EXACT, label);
    const { dx } = await runKernel(device, sliceAndPadBackward(spec), { dy }, { dx: spec.input });
    const numeric = numericGradient((v) => sliceAndPadReference(spec, v), x.data, dy.data, 1);
    assertClose(dx!, numeric, DIFFERENCES, `${label} backward`);
  }
});

forEachTarget("transposeForward(), transposeBackward() permute axes", async (device) => {
  const cases = [
    [[1, 1], [1, 0]],
    [[3, 5], [1, 0]],
    [[33, 17], [1, 0]],
    [[2, 3, 5, 7], [0, 3, 1, 2]],
    [[2, 3, 5, 7], [0, 2, 1, 3]],
    [[2, 7, 3, 5], [0, 2, 3, 1]],
    [[2, 3, 4, 2, 5], [3, 1, 0, 4, 2]],
  ] as const;
  for (const [shape, permutation] of cases) {
    const spec = { shape, permutation };
    const label = `[${shape}] by [${permutation}]`;
    const outShape = permutation.map((axis) => shape[axis]!);
    const x = { shape, data: randomArray(1, sizeOf(shape)) };
    const dy = { shape: outShape, data: randomArray(2, sizeOf(shape)) };
    const { y } = await runKernel(device, transposeForward(spec), { x }, { y: outShape });
    assertClose(y!, transposeReference(spec, x.data), EXACT, label);
    const { dx } = await runKernel(device, transposeBackward(spec), { dy }, { dx: shape });
    const numeric = numericGradient((v) => transposeReference(spec, v), x.data, dy.data, 1);
    assertClose(dx!, numeric, DIFFERENCES, `${label} backward`);
  }
});

forEachTarget("gatherRows() takes the step's rows", async (device) => {
  const x = { shape: [7, 2, 3], data: randomArray(1, 42) };
  const indices = Uint32Array.from([0, 1, 2, 6, 3, 6, 5, 4, 0]);
  for (const step of [0, 2]) {
    const inputs = { x, indices, state: { shape: [4], data: [step, 9, 9, 9] } };
    const kernel = gatherRows({ rows: 7, rowSize: 2, batch: 3 });
    const { y } = await runKernel(device, kernel, inputs, { y: [3, 2, 3] });
    const expected = Array.from(indices.subarray(3 * step, 3 * step + 3)).flatMap((row) =>
      Array.from(x.data.subarray(6 * row, 6 * row + 6))
    );
    assertClose(y!, expected, EXACT, `step ${step}`);
  }
});
