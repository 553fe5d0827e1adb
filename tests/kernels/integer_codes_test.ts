// Codes of float32 values beside the host's float32 arithmetic, which is ONNX QuantizeLinear's, exactly.
import assert from "node:assert/strict";
import { dequantizeCodes, quantizeCodes } from "../../kernels/integer_codes.ts";
import { codeGrid, codeOffset } from "../../kernels/integer_epilogue.ts";
import { paddedSize } from "../../kernels/kernel.ts";
import { Rng } from "../../src/core/rng.ts";
import { dequantizeFloat32, quantizeFloat32 } from "../../src/quant/rounding.ts";
import { packCodes, readCodes } from "../_codes.ts";
import { forEachTarget, runKernel } from "../_gpu.ts";

const rng = new Rng(1);
const SCALES = [
  1,
  0.1,
  2 ** -23,
  3.7e-5,
  123.456,
  ...Array.from(
    { length: 11 },
    () => Math.exp(4 * rng.normal()),
  ),
].map(Math.fround);

/** Values of all sizes; most lie within 3 units in the last place of where a code begins. */
function valuesNearTies(scale: number, size: number): Float32Array<ArrayBuffer> {
  const values = Float32Array.from(
    { length: size },
    (_, i) => i % 8 === 0 ? 100 * scale * rng.normal() : (rng.integer(600) - 299.5) * scale,
  );
  const words = new Uint32Array(values.buffer);
  words.forEach((word, i) => words[i] = word + rng.integer(7) - 3);
  values.set([0, -0, 3e38, -3e38, Infinity, -Infinity, 1e-38]);
  return values;
}

forEachTarget(
  "quantizeCodes() gives the codes of QuantizeLinear, also next to ties",
  async (device) => {
    const size = 1 << 14;
    for (const [i, scale] of SCALES.entries()) {
      const quantizer = i % 2 === 0
        ? { scale, zeroPoint: rng.integer(256), quantMin: 0, quantMax: 255 }
        : { scale, zeroPoint: 0, quantMin: -8, quantMax: 7 };
      const values = valuesNearTies(scale, size);
      const y = device.tensor([size / 4]);
      const bindings = {
        x: device.fromArray([size], values),
        grid: device.fromArray([8], codeGrid(quantizer)),
        y,
      };
      device.run(quantizeCodes({ rows: 1, channels: size }), bindings);
      const found = await readCodes(device, y, size, size);
      const offset = codeOffset(quantizer);
      const expected = Array.from(values, (value) => quantizeFloat32(value, quantizer) - offset);
      assert.deepEqual(found, expected, `scale ${scale}`);
      for (const tensor of Object.values(bindings)) device.release(tensor);
    }
  },
);

forEachTarget(
  "dequantizeCodes() inverts quantizeCodes(), zeros in padded channels",
  async (device) => {
    const quantizer = { scale: Math.fround(0.3), zeroPoint: 77, quantMin: 0, quantMax: 255 };
    const shape = [5, 3];
    const codes = Array.from({ length: 15 }, () => rng.integer(256));
    const words = packCodes(codes.map((code) => code - 128), 3);
    const grid = { shape: [8], data: codeGrid(quantizer) };
    const kernel = dequantizeCodes({ rows: 5, channels: 3 });
    const { y } = await runKernel(device, kernel, { x: words, grid }, { y: shape });
    assert.deepEqual([...y!], codes.map((code) => dequantizeFloat32(code, quantizer)));
    const back = device.tensor([paddedSize(shape) / 4]);
    const x = device.fromArray(shape, y!), parameters = device.fromArray([8], grid.data);
    device.run(quantizeCodes({ rows: 5, channels: 3 }), { x, grid: parameters, y: back });
    assert.deepEqual(await readCodes(device, back, 15, 3), codes.map((code) => code - 128));
    for (const tensor of [x, parameters, back]) device.release(tensor);
  },
);
