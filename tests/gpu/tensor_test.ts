import assert from "node:assert/strict";
import { pad, reshape, unpad, view } from "../../src/gpu/tensor.ts";
import { randomArray, testDevice } from "../_gpu.ts";

Deno.test("pad() and unpad() are inverse for any shape", () => {
  for (const shape of [[1], [3], [4], [2, 5], [3, 1], [2, 3, 4], [2, 2, 2, 7], []]) {
    const size = shape.reduce((product, n) => product * n, 1);
    const data = Float32Array.from(randomArray(1, size));
    const padded = pad(shape, data);
    assert.equal(padded.length % 4, 0);
    assert.deepEqual(unpad(shape, padded), data, `[${shape}]`);
  }
  assert.deepEqual([...pad([2, 3], [1, 2, 3, 4, 5, 6])], [1, 2, 3, 0, 4, 5, 6, 0]);
});

Deno.test("view() reads a part of a tensor", async () => {
  const device = await testDevice();
  const whole = device.fromArray([192], Float32Array.from({ length: 192 }, (_, i) => i));
  const part = view(whole, 64, [2, 3], "part");
  assert.deepEqual([...await device.read(part)], [64, 65, 66, 68, 69, 70]);
  assert.throws(() => view(whole, 32, [4], "odd"), RangeError);
  assert.throws(() => view(whole, 128, [65], "past"), RangeError);
  device.release(whole);
});

Deno.test("reshape() keeps the bytes and refuses to move them", async () => {
  const device = await testDevice();
  const x = device.fromArray([2, 1, 1, 3], [1, 2, 3, 4, 5, 6]);
  assert.deepEqual([...await device.read(reshape(x, [2, 3]))], [1, 2, 3, 4, 5, 6]);
  // [6] has as many padded elements, but they are others
  for (const shape of [[6], [3, 2], [2, 4], [2, 2, 3]]) {
    assert.throws(() => reshape(x, shape), { name: "RangeError", message: /would have to move/ });
  }
  device.release(x);
});
