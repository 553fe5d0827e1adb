// Products whose operands lie in workgroup memory as float16: float64 references of operands rounded to float16 first, with
// the tolerances of float32 sums, so that a product or a sum in float16 would be seen.
import assert from "node:assert/strict";
import { conv2dBackwardInput, conv2dForward, type Conv2dSpec } from "../../kernels/conv2d.ts";
import { gemm, gemmBackwardA, gemmBackwardB, type GemmSpec } from "../../kernels/gemm.ts";
import type { KernelSequence } from "../../kernels/kernel.ts";
import { assertClose, randomArray, runKernel, type TestArray, testDevice } from "../_gpu.ts";
import { gemmReference } from "../_reference.ts";
import {
  type ConvCase,
  convShapes,
  convSpec,
  referenceForward,
  sizeOf,
} from "../_reference_conv.ts";

/** float32 sums of `terms` products of normal numbers: a few ulps of the largest partial sum. */
function tolerance(terms: number): { rtol: number; atol: number } {
  return { rtol: 1e-5, atol: 2e-6 * Math.sqrt(terms) };
}

/** To the nearest float16, which is what lavapipe does; WGSL allows either neighbour. */
function halves(data: Float64Array): Float64Array {
  return data.map(Math.f16round);
}

/** Runs every tile, and holds the results beside references of rounded and of unrounded operands. */
async function checkTiles(
  { kernels: [kernel] }: KernelSequence,
  inputs: Readonly<Record<string, TestArray>>,
  references: { readonly rounded: Float64Array; readonly exact: Float64Array },
  terms: number,
): Promise<void> {
  const device = await testDevice("gpu");
  const choice = kernel!.choice!;
  for (const tile of choice.tiles) {
    const sequence = choice.build(tile);
    assert.match(sequence.kernels[0]!.code, /^enable f16;/);
    const { y } = await runKernel(device, sequence, inputs, { y: choice.shapes.y! });
    const label = `${choice.key}, ${tile}`;
    assertClose(y!, references.rounded, tolerance(terms), label);
    assert.throws(() => assertClose(y!, references.exact, tolerance(terms), label), label);
  }
}

const PRODUCTS: readonly GemmSpec[] = [
  { m: 33, n: 21, k: 45, transposeA: false, transposeB: true },
  { m: 70, n: 17, k: 33, transposeA: true, transposeB: true },
  { m: 5, n: 70, k: 7, transposeA: false, transposeB: false },
  { m: 18, n: 9, k: 2051, transposeA: true, transposeB: false }, // split
];

Deno.test("gemm() rounds operands to float16 where they are kept so, and nothing else", async () => {
  const { target } = await testDevice("gpu");
  for (const spec of PRODUCTS) {
    const { m, n, k, transposeA, transposeB } = spec;
    const a = { shape: transposeA ? [k, m] : [m, k], data: randomArray(1, m * k) };
    const b = { shape: transposeB ? [n, k] : [k, n], data: randomArray(2, k * n) };
    const sequence = gemm({ ...spec, tileStorage: "float16" }, {}, target);
    const references = {
      rounded: gemmReference(spec, halves(a.data), halves(b.data)),
      exact: gemmReference(spec, a.data, b.data),
    };
    await checkTiles(sequence, { a, b }, references, k);
  }
});

const CONVOLUTIONS: Readonly<Record<string, ConvCase>> = {
  "image to features": { batch: 2, size: [11, 11], channels: [3, 16] },
  "prime sizes": { batch: 3, size: [5, 11], channels: [10, 34] },
  "many channels, stride 2": { size: [5, 7], channels: [132, 70], stride: [2, 2] },
  "pointwise": { size: [7, 5], channels: [12, 13], kernel: [1, 1], pad: [0, 0, 0, 0] },
  "groups, dilation": {
    size: [9, 7],
    channels: [8, 24],
    dilation: [2, 2],
    pad: [2, 2, 2, 2],
    group: 2,
  },
};

for (const [name, options] of Object.entries(CONVOLUTIONS)) {
  Deno.test(`conv2dForward() rounds operands to float16 where they are kept so: ${name}`, async () => {
    const { target } = await testDevice("gpu");
    const spec: Conv2dSpec = convSpec(options);
    const shapes = convShapes(spec);
    const x = { shape: shapes.x, data: randomArray(1, sizeOf(shapes.x)) };
    const w = { shape: shapes.w, data: randomArray(2, sizeOf(shapes.w)) };
    const references = {
      rounded: referenceForward(spec, halves(x.data), halves(w.data)),
      exact: referenceForward(spec, x.data, w.data),
    };
    const terms = spec.kernelHeight * spec.kernelWidth * spec.inChannels / spec.group;
    const sequence = conv2dForward({ ...spec, tileStorage: "float16" }, {}, target);
    await checkTiles(sequence, { x, w }, references, terms);
  });
}

Deno.test("gemm() does not hide what is beyond float16, or no number", async () => {
  const device = await testDevice("gpu");
  const spec = { m: 3, n: 1, k: 1, transposeA: false, transposeB: false } as const;
  const inputs = {
    a: { shape: [3, 1], data: [65504, -1e6, NaN] },
    b: { shape: [1, 1], data: [2] },
  };
  const product = gemm({ ...spec, tileStorage: "float16" }, {}, device.target);
  const { y } = await runKernel(device, product, inputs, { y: [3, 1] });
  assert.deepEqual([...y!], [131008, -Infinity, NaN]);
});

Deno.test("gradients keep float32 tiles", async () => {
  const { target } = await testDevice("gpu");
  const spec = { ...convSpec({ size: [9, 8], channels: [16, 16], stride: [2, 2] }) };
  const sequences = [
    conv2dBackwardInput({ ...spec, tileStorage: "float16" }, target),
    ...[gemmBackwardA, gemmBackwardB].map((of) =>
      gemm(of({ ...PRODUCTS[0]!, tileStorage: "float16" }), {}, target)
    ),
  ];
  for (const { code } of sequences.flatMap(({ kernels }) => kernels)) {
    assert.equal(code.includes("f16"), false);
  }
});
