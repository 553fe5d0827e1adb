// Products of all transpositions against float64, at sizes that fit no tile, with epilogues and with split sums.
import assert from "node:assert/strict";
import { gemm, gemmBackwardA, gemmBackwardB, type GemmSpec } from "../../kernels/gemm.ts";
import type { Epilogue } from "../../kernels/epilogue.ts";
import type { Target } from "../../kernels/kernel.ts";
import { Device } from "../../src/gpu/device.ts";
import { assertClose, forEachTarget, randomArray, runKernel, testDevice } from "../_gpu.ts";
import { gemmReference, numericGradient } from "../_reference.ts";

const TRANSPOSITIONS = [[false, false], [true, false], [false, true], [true, true]] as const;

/** float32 rounds each of k products: the error grows as sqrt(k) times the terms' size. */
function tolerance(k: number): { rtol: number; atol: number } {
  return { rtol: 1e-5, atol: 2e-6 * Math.sqrt(k) };
}

function operands({ m, n, k, transposeA, transposeB }: GemmSpec) {
  return {
    a: { shape: transposeA ? [k, m] : [m, k], data: randomArray(1, m * k) },
    b: { shape: transposeB ? [n, k] : [k, n], data: randomArray(2, k * n) },
  };
}

async function check(device: Device, spec: GemmSpec): Promise<void> {
  const { a, b } = operands(spec);
  const { m, n, k } = spec;
  const { y } = await runKernel(device, gemm(spec, {}, device.target), { a, b }, { y: [m, n] });
  const label = `${m}x${n}x${k} ${spec.transposeA} ${spec.transposeB}`;
  assertClose(y!, gemmReference(spec, a.data, b.data), tolerance(k), label);
}

forEachTarget("gemm() multiplies any sizes in all transpositions", async (device) => {
  const sizes = [[1, 1, 1], [3, 5, 7], [33, 10, 64], [70, 17, 33], [17, 70, 5]] as const;
  for (const [m, n, k] of sizes) {
    for (const [transposeA, transposeB] of TRANSPOSITIONS) {
      await check(device, { m, n, k, transposeA, transposeB });
    }
  }
});

Deno.test("gemm() takes the large GPU tile for large results", async () => {
  // 17 x 17 tiles of 64 are enough to fill a large GPU; the tiles at the edges are partial.
  const device = await testDevice("gpu");
  const spec = { m: 1034, n: 1030, k: 5, transposeA: false, transposeB: false };
  const kernel = gemm(spec, {}, device.target).kernels[0]!;
  assert.deepEqual(kernel.grid, [289, 1, 1]);
  await check(device, spec);
});

forEachTarget("gemm() splits long sums and still gives the same bits twice", async (device) => {
  for (const [transposeA, transposeB] of TRANSPOSITIONS) {
    const spec = { m: 18, n: 9, k: 2051, transposeA, transposeB };
    await check(device, spec);
  }
  const spec = { m: 18, n: 9, k: 2051, transposeA: true, transposeB: false };
  const kernels = gemm(spec, {}, device.target);
  assert.equal(kernels.kernels.length, 2, "this product should be split");
  const first = await runKernel(device, kernels, operands(spec), { y: [18, 9] });
  const second = await runKernel(device, kernels, operands(spec), { y: [18, 9] });
  assert.deepEqual(first, second);
});

forEachTarget("gemm() applies bias, residual and activation before it stores", async (device) => {
  const epilogue: Epilogue = { bias: true, residual: true, activation: { kind: "sigmoid" } };
  for (const k of [13, 1030]) { // the second is split
    const spec = { m: 9, n: 6, k, transposeA: false, transposeB: true };
    const { a, b } = operands(spec);
    const bias = { shape: [6], data: randomArray(3, 6) };
    const residual = { shape: [9, 6], data: randomArray(4, 54) };
    const inputs = { a, b, bias, residual };
    const { y } = await runKernel(device, gemm(spec, epilogue, device.target), inputs, {
      y: [9, 6],
    });
    const expected = gemmReference(spec, a.data, b.data).map((value, i) =>
      1 / (1 + Math.exp(-(value + bias.data[i % 6]! + residual.data[i]!)))
    );
    assertClose(y!, expected, tolerance(k), `k = ${k}`);
  }
});

forEachTarget("gemmBackwardA(), gemmBackwardB() describe the gradients", async (device) => {
  for (const [transposeA, transposeB] of TRANSPOSITIONS) {
    const spec = { m: 5, n: 7, k: 3, transposeA, transposeB };
    const { a, b } = operands(spec);
    const dy = { shape: [5, 7], data: randomArray(5, 35) };
    const toA = gemmBackwardA(spec), toB = gemmBackwardB(spec);
    const { y: da } = await runKernel(
      device,
      gemm(toA, {}, device.target),
      transposeA ? { a: b, b: dy } : { a: dy, b },
      { y: a.shape },
    );
    const { y: db } = await runKernel(
      device,
      gemm(toB, {}, device.target),
      transposeB ? { a: dy, b: a } : { a, b: dy },
      { y: b.shape },
    );
    // A product is linear in each factor: differences with a step of 1 are exact.
    const numericA = numericGradient((x) => gemmReference(spec, x, b.data), a.data, dy.data, 1);
    const numericB = numericGradient((x) => gemmReference(spec, a.data, x), b.data, dy.data, 1);
    assertClose(da!, numericA, tolerance(7), `da ${transposeA} ${transposeB}`);
    assertClose(db!, numericB, tolerance(5), `db ${transposeA} ${transposeB}`);
  }
});

Deno.test("gemm() works without subgroups", async () => {
  using device = await Device.open({ family: "software", subgroups: false });
  assert.equal(device.target.subgroupSize, 0);
  for (const [transposeA, transposeB] of TRANSPOSITIONS) {
    await check(device, { m: 21, n: 35, k: 19, transposeA, transposeB });
  }
});

Deno.test("gemm() writes shaders for every subgroup size", () => {
  for (const subgroupSize of [0, 4, 8, 16, 32, 64, 128]) {
    const target: Target = { family: "software", subgroupSize };
    const spec = { m: 64, n: 64, k: 64, transposeA: false, transposeB: false };
    const [kernel] = gemm(spec, {}, target).kernels;
    const shuffles = [4, 8, 16, 32].includes(subgroupSize);
    assert.equal(kernel!.code.includes("subgroupShuffle"), shuffles, `${subgroupSize}`);
  }
});
