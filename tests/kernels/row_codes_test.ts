import assert from "node:assert/strict";
import { fakeQuantizeForward } from "../../kernels/fake_quantize.ts";
import { gatherBatch } from "../../kernels/gather.ts";
import {
  encodeCodes,
  encodeFloat16,
  FLOAT16_LEAST,
  FLOAT16_MOST,
  storedForm,
} from "../../kernels/row_codes.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { forEachTarget, randomArray } from "../_gpu.ts";
import { roundTiesToEven } from "../_reference_quant.ts";

/** More than one workgroup, its end partly filled, and padded channels. */
const SHAPE = [37, 11, 5], SIZE = 37 * 11 * 5, QUADS = 37 * 11 * 2;

/** [scale, zeroPoint, quantMin, quantMax]: 2 to 8 bits, signed and unsigned. */
const GRIDS = [
  [0.7, 0, 0, 3],
  [0.25, -2, -8, 7],
  [1 / 3, 4, 0, 15],
  [0.013, 10, 0, 255],
  [0.0171, 5, -128, 127],
] as const;

for (const grid of GRIDS) {
  forEachTarget(`encodeCodes() of grid ${grid} decodes bit for bit`, async (device) => {
    const [scale, zeroPoint, quantMin, quantMax] = grid;
    const x = device.fromArray(SHAPE, randomArray(1, SIZE, { scale: scale * quantMax }));
    const qparams = device.fromArray([4], grid);
    const y = device.tensor(SHAPE);
    const spec = { rows: 37 * 11, channels: 5 };
    device.run(fakeQuantizeForward(spec, device.target), { x, qparams, y });
    const { words, decoded } = await roundTrip(device, y, "codes", { qparams });
    const expected = await device.readRaw(y);
    assert.deepEqual(decoded, expected);
    const bytes = new Uint8Array(words.buffer).subarray(0, expected.length);
    assert.deepEqual(
      [...bytes],
      // the values lie on the grid, so the quotient is near an integer
      Array.from(expected, (v) => roundTiesToEven(v / scale) + zeroPoint - quantMin),
    );
    for (const tensor of [x, qparams, y]) device.release(tensor);
  });
}

forEachTarget("encodeFloat16() is near, and exact on what float16 has", async (device) => {
  const signs = randomArray(2, SIZE), exponents = randomArray(3, SIZE, { scale: 5 });
  const values = Float32Array.from(signs, (sign, i) => sign * 2 ** Math.min(exponents[i]!, 13));
  values.set([0, 1, -1.5, 1024, 60000, 2 ** -14, 2047]);
  const x = device.fromArray(SHAPE, values);
  const range = device.uint32(new Uint32Array(2));
  const { decoded } = await roundTrip(device, x, "float16", { range });
  const expected = await device.readRaw(x);
  expected.forEach((value, i) => {
    // 11 significant bits, of which WGSL does not say how they are rounded; adapters may take below 2^-14 for 0
    const bound = Math.max(2 ** -10 * Math.abs(value), 2 ** -14);
    assert(Math.abs(decoded[i]! - value) <= bound, `element ${i}: ${decoded[i]} of ${value}`);
  });
  assert.deepEqual(decoded.slice(0, 4), expected.slice(0, 4));
  assert.deepEqual([decoded[4], decoded[8], decoded[9]], [60000, 2 ** -14, 2047]);
  assert.deepEqual([...(await device.readUint32(range)).subarray(0, 2)], [0, 1]);
  device.release(x);
  device.release(range);
});

forEachTarget("encodeFloat16() notes magnitudes out of range", async (device) => {
  for (
    const [largest, expected] of [
      [FLOAT16_LEAST, [0, 0]],
      [-FLOAT16_LEAST * 1.01, [0, 1]],
      [FLOAT16_MOST, [0, 1]],
      [-FLOAT16_MOST * 1.01, [1, 1]],
      [Infinity, [1, 1]],
    ] as const
  ) {
    const values = new Float32Array(SIZE);
    values[SIZE - 1] = largest;
    const x = device.fromArray(SHAPE, values);
    const range = device.uint32(new Uint32Array(2));
    await roundTrip(device, x, "float16", { range });
    const noted = await device.readUint32(range);
    assert.deepEqual([...noted.subarray(0, 2)], expected, `${largest}`);
    device.release(x);
    device.release(range);
  }
});

/** Stores a tensor and gathers its rows back in their order; everything as it lies there, padding included. */
async function roundTrip(
  device: Device,
  x: Tensor,
  format: "float16" | "codes",
  parameters: Readonly<Record<string, Tensor>>,
): Promise<{ words: Uint32Array<ArrayBuffer>; decoded: Float32Array<ArrayBuffer> }> {
  const rows = SHAPE[0]!;
  const stored = device.tensor([QUADS * storedForm(format).words]);
  const encode = format === "codes" ? encodeCodes : encodeFloat16;
  device.run(encode(QUADS), { x, y: stored, ...parameters });
  const y = device.fromArray(SHAPE, new Float32Array(SIZE).fill(NaN));
  const place = device.uint32(Uint32Array.of(0, rows)), state = device.tensor([16]);
  const indices = device.uint32(Uint32Array.from({ length: rows }, (_, i) => i));
  const kernel = gatherBatch({ batch: rows, rowSize: QUADS / rows, steps: 1, format });
  const { range: _, ...read } = parameters;
  device.run(kernel, { x: stored, place, indices, state, y, ...read });
  const result = { words: await device.readUint32(stored), decoded: await device.readRaw(y) };
  for (const tensor of [stored, y, place, state, indices]) device.release(tensor);
  return result;
}
