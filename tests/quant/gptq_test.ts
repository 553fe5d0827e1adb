// Compensated rounding against OBQ written straight from its definition: after each rounding the rest of the row moves
// by -e / (H^-1)_jj * (H^-1)_j, and row and column j leave H^-1 (Frantar and Alistarh 2022, eq. 2 and 3).
import assert from "node:assert/strict";
import { ndArray } from "../../src/core/nd_array.ts";
import { Rng } from "../../src/core/rng.ts";
import { convLayout } from "../../src/graph/weight_layout.ts";
import { compensateLayer, compensateRow, factorHessian } from "../../src/quant/gptq.ts";
import { roundHalfEven } from "../../src/quant/rounding.ts";
import type { LayerState } from "../../src/quant/student.ts";

const round = (value: number) => 0.5 * Math.min(3, Math.max(-4, roundHalfEven(value / 0.5)));

/** A row of weights and the X^T X of correlated inputs. */
function problem(seed: number, size: number, rows = 4 * size) {
  const rng = new Rng(seed);
  const row = Float64Array.from({ length: size }, () => rng.normal() * 0.7);
  const hessian = new Float64Array(size * size);
  for (let r = 0; r < rows; r++) {
    const common = 1 + rng.normal();
    const x = Array.from({ length: size }, (_, k) => common + rng.normal() * (1 + k % 3) / 2);
    for (let i = 0; i < size * size; i++) {
      hessian[i]! += x[Math.floor(i / size)]! * x[i % size]!;
    }
  }
  return { row, hessian };
}

/** Gauss-Jordan; H is positive definite. */
function inverse(matrix: Float64Array, size: number): Float64Array {
  const a = Float64Array.from(matrix), b = new Float64Array(size * size);
  for (let i = 0; i < size; i++) b[i * size + i] = 1;
  for (let p = 0; p < size; p++) {
    const pivot = a[p * size + p]!;
    for (const m of [a, b]) for (let j = 0; j < size; j++) m[p * size + j]! /= pivot;
    for (let i = 0; i < size; i++) {
      const factor = a[i * size + p]!;
      if (i === p) continue;
      for (const m of [a, b]) {
        for (let j = 0; j < size; j++) m[i * size + j]! -= factor * m[p * size + j]!;
      }
    }
  }
  return b;
}

/** Values before rounding, with the weights rounded in the given order. */
function obq(start: Float64Array, hessian: Float64Array, order: readonly number[]): Float64Array {
  const size = start.length;
  const row = Float64Array.from(start), h = inverse(hessian, size);
  for (const j of order) {
    const step = (row[j]! - round(row[j]!)) / h[j * size + j]!;
    const column = Float64Array.from({ length: size }, (_, k) => h[j * size + k]!);
    for (let k = 0; k < size; k++) if (k !== j) row[k]! -= step * column[k]!;
    for (let i = 0; i < size * size; i++) {
      h[i]! -= column[Math.floor(i / size)]! * column[i % size]! / column[j]!;
    }
  }
  return row;
}

function error(row: Float64Array, hessian: Float64Array, values: Float64Array): number {
  const change = Float64Array.from(values, (value, k) => round(value) - row[k]!);
  return hessian.reduce(
    (sum, h, i) => sum + h * change[Math.floor(i / row.length)]! * change[i % row.length]!,
    0,
  );
}

Deno.test("compensateRow() gives the values of the OBQ update, in the natural order", () => {
  for (let seed = 0; seed < 40; seed++) {
    const size = 1 + seed % 6;
    const { row, hessian } = problem(seed, size);
    const found = compensateRow(
      row,
      round,
      factorHessian(hessian, { damping: 0, order: "natural" }),
    );
    const expected = obq(row, hessian, [...row.keys()]);
    // A weight that is done no longer moves: its column of the inverse is zero up to float64 rounding.
    found.forEach((value, k) => assert.ok(Math.abs(value - expected[k]!) < 1e-9, `${seed} ${k}`));
  }
});

Deno.test("factorHessian() has the weight of the largest input rounded first", () => {
  for (let seed = 0; seed < 20; seed++) {
    const { row, hessian } = problem(seed, 6);
    const order = [...row.keys()].sort((a, b) => hessian[b * 7]! - hessian[a * 7]!);
    const factor = factorHessian(hessian, { damping: 0 });
    assert.deepEqual([...factor.order].reverse(), order);
    const expected = obq(row, hessian, order);
    compensateRow(row, round, factor)
      .forEach((value, k) => assert.ok(Math.abs(value - expected[k]!) < 1e-9, `${seed} ${k}`));
  }
});

Deno.test("compensateRow() has a smaller error in the mean than nearest rounding", () => {
  let compensated = 0, nearest = 0;
  for (let seed = 0; seed < 200; seed++) {
    const { row, hessian } = problem(seed, 6);
    nearest += error(row, hessian, row);
    compensated += error(row, hessian, compensateRow(row, round, factorHessian(hessian)));
  }
  assert.ok(compensated < 0.6 * nearest, `${compensated} beside ${nearest}`);
});

Deno.test("compensateRow() leaves the row alone where inputs are uncorrelated or always zero", () => {
  const { row } = problem(1, 5);
  for (const diagonal of [[3, 1, 2, 5, 4], [3, 0, 2, 0, 4], [0, 0, 0, 0, 0]]) {
    const hessian = new Float64Array(25);
    diagonal.forEach((value, k) => hessian[k * 6] = value);
    assert.deepEqual(compensateRow(row, round, factorHessian(hessian)), row);
  }
});

Deno.test("factorHessian() gives L L^T = H plus 1 % of its mean diagonal, over several blocks", () => {
  const size = 71;
  const { hessian } = problem(3, size);
  const { order, lower } = factorHessian(hessian);
  let mean = 0;
  for (let k = 0; k < size; k++) mean += hessian[k * size + k]! / size;
  for (let i = 0; i < size; i++) {
    for (let j = 0; j <= i; j++) {
      let product = 0;
      for (let k = 0; k <= j; k++) product += lower[i * size + k]! * lower[j * size + k]!;
      const expected = hessian[order[i]! * size + order[j]!]! + (i === j ? 0.01 * mean : 0);
      // float64 sums of at most 71 products below the mean diagonal.
      assert.ok(Math.abs(product - expected) < 1e-12 * mean, `${i} ${j}`);
    }
  }
});

Deno.test("factorHessian() damps a singular H until it factors, and refuses one that is not finite", () => {
  const { row, hessian } = problem(2, 6, 2);
  const factor = factorHessian(hessian, { damping: 0 });
  assert.ok(factor.lower.every(Number.isFinite));
  assert.ok(compensateRow(row, round, factor).every(Number.isFinite));
  assert.throws(() => factorHessian(new Float64Array(4).fill(NaN)), RangeError);
});

Deno.test("compensateLayer() takes each channel's own scale and group, in either layout", () => {
  const scales = [0.5, 0.25, 1];
  // Depthwise [KH, KW, C] with one H a channel; [O, KH, KW, I] with one for all.
  for (const depthwise of [true, false]) {
    const rows = [problem(4, 4), problem(5, 4), problem(6, 4)];
    const hessians = depthwise ? rows : rows.slice(0, 1);
    const weights = Float32Array.from(
      { length: 12 },
      (_, i) =>
        depthwise ? rows[i % 3]!.row[Math.floor(i / 3)]! : rows[Math.floor(i / 4)]!.row[i % 4]!,
    );
    const layout = convLayout(depthwise ? [3, 1, 2, 2] : [3, 1, 2, 2], depthwise ? 3 : 1);
    const layer: LayerState = {
      node: "conv",
      weight: "w",
      input: "x",
      latent: ndArray("float32", layout.finalShape, weights),
      layout,
      axis: layout.channelAxis,
      bits: 3,
      logScale: Float32Array.from(scales, Math.log),
      quantMin: Int32Array.of(-4, -3, -4),
      quantMax: Int32Array.of(3, 4, 3),
    };
    const all = Float64Array.from(hessians.flatMap(({ hessian }) => [...hessian]));
    const { latent } = compensateLayer(layer, all);
    rows.forEach(({ row }, c) => {
      const [low, high] = [layer.quantMin[c]!, layer.quantMax[c]!];
      const scale = scales[c]!;
      const grid = (value: number) =>
        scale * Math.min(high, Math.max(low, roundHalfEven(value / scale)));
      const { hessian } = hessians[depthwise ? c : 0]!;
      compensateRow(Float64Array.from(row, Math.fround), grid, factorHessian(hessian))
        .forEach((value, k) => {
          const found = latent.data[depthwise ? 3 * k + c : 4 * c + k]!;
          // float32 of the value; the scale is a float32 exponential.
          assert.ok(
            Math.abs(found - value) < 1e-6,
            `channel ${c}, weight ${k}: ${found}, ${value}`,
          );
        });
    });
  }
});
