import { lstmCellBackward, lstmCellForward } from "../../kernels/lstm.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";

const SAMPLES = 3;
// What float32's exp and tanh may be off by.
const TOLERANCE = { rtol: 1e-5, atol: 1e-6 };

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

/** Gates i, o, f, g, cell and state of every unit. */
function reference(z: Float64Array, hidden: number, before: Float64Array | undefined) {
  return Array.from({ length: SAMPLES * hidden }, (_, at) => {
    const n = Math.floor(at / hidden), j = at % hidden;
    const row = (g: number) => z[(n * 4 + g) * hidden + j]!;
    const [i, o, f, g] = [sigmoid(row(0)), sigmoid(row(1)), sigmoid(row(2)), Math.tanh(row(3))];
    const last = before?.[at] ?? 0, cell = f * last + i * g;
    return { i, o, f, g, last, cell, h: o * Math.tanh(cell) };
  });
}

/** [SAMPLES, 4 H] from the gates of every unit. */
function byGate(units: readonly (readonly number[])[], hidden: number): number[] {
  return Array.from({ length: SAMPLES * 4 * hidden }, (_, at) => {
    const n = Math.floor(at / hidden / 4), g = Math.floor(at / hidden) % 4;
    return units[n * hidden + at % hidden]![g]!;
  });
}

for (const hidden of [8, 5]) {
  for (const first of [true, false]) {
    const title = `of ${hidden} units${first ? ", first step" : ""}`;
    const spec = { samples: SAMPLES, hidden, first };
    const wide = [SAMPLES, 4 * hidden], shape = [SAMPLES, hidden];
    // Some so large that tanh and exp would overflow.
    const z = randomArray(1, SAMPLES * 4 * hidden, { scale: 3 }).map((v, i) => i % 7 ? v : 40 * v);
    const before = randomArray(2, SAMPLES * hidden);
    const units = reference(z, hidden, first ? undefined : before);
    const c = { ...(!first && { before: { shape, data: before } }) };

    forEachTarget(`lstmCellForward() ${title}`, async (device) => {
      for (const keepsGates of [true, false]) {
        const found = await runKernel(device, lstmCellForward(spec, keepsGates), {
          z: { shape: wide, data: z },
          ...c,
        }, { cells: shape, h: shape, ...(keepsGates && { gates: wide }) });
        assertClose(found.cells!, units.map(({ cell }) => cell), TOLERANCE, "cells");
        assertClose(found.h!, units.map(({ h }) => h), TOLERANCE, "h");
        if (!keepsGates) continue;
        const gates = byGate(units.map(({ i, o, f, g }) => [i, o, f, g]), hidden);
        assertClose(found.gates!, gates, TOLERANCE, "gates");
      }
    });

    forEachTarget(`lstmCellBackward() ${title}`, async (device) => {
      const dh = randomArray(3, SAMPLES * hidden), dc = randomArray(4, SAMPLES * hidden);
      for (const last of [true, false]) {
        const slopes = units.map(({ o, cell }, at) =>
          dh[at]! * o * (1 - Math.tanh(cell) ** 2) + (last ? 0 : dc[at]!)
        );
        const dz = byGate(
          units.map(({ i, o, f, g, last, cell }, at) => [
            slopes[at]! * g * i * (1 - i),
            dh[at]! * Math.tanh(cell) * o * (1 - o),
            slopes[at]! * last * f * (1 - f),
            slopes[at]! * i * (1 - g * g),
          ]),
          hidden,
        );
        const gates = byGate(units.map(({ i, o, f, g }) => [i, o, f, g]), hidden);
        const found = await runKernel(device, lstmCellBackward(spec, last), {
          dh: { shape, data: dh },
          gates: { shape: wide, data: gates },
          ...c,
          cells: { shape, data: units.map(({ cell }) => cell) },
          ...(!last && { dc: { shape, data: dc } }),
        }, { dz: wide, ...(last && { dc: shape }) });
        assertClose(found.dz!, dz, TOLERANCE, "dz");
        // What is read before it is written cannot be poisoned.
        if (last) assertClose(found.dc!, slopes.map((s, at) => s * units[at]!.f), TOLERANCE, "dc");
      }
    });
  }
}
