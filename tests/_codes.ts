// Packed int8 codes on the host: four channels a word, channels last, as kernels/integer_epilogue.ts lays them out.
import { padded } from "../kernels/kernel.ts";
import type { Device } from "../src/gpu/device.ts";
import type { Tensor } from "../src/gpu/tensor.ts";

/** Words of stored codes [.., channels]; lanes past the last channel hold 77, which must not matter. */
export function packCodes(codes: ArrayLike<number>, channels: number): Uint32Array<ArrayBuffer> {
  const stride = padded(channels);
  const bytes = new Int8Array(codes.length / channels * stride).fill(77);
  for (let i = 0; i < codes.length; i++) {
    const c = i % channels;
    bytes[(i - c) / channels * stride + c] = codes[i]!;
  }
  return new Uint32Array(bytes.buffer);
}

/** The stored codes of a tensor of words, lanes past the last channel left out. */
export async function readCodes(
  device: Device,
  words: Tensor,
  size: number,
  channels: number,
): Promise<number[]> {
  const bytes = new Int8Array((await device.readUint32(words)).buffer);
  const stride = padded(channels);
  return Array.from({ length: size }, (_, i) => {
    const c = i % channels;
    return bytes[(i - c) / channels * stride + c]!;
  });
}

/** [N, C, H, W] as [N, H, W, C], or back with the sizes in the other order. */
export function swapLayout(
  data: ArrayLike<number>,
  [batch, a, b]: readonly [batch: number, a: number, b: number],
): number[] {
  return Array.from({ length: batch * a * b }, (_, i) => {
    const outer = Math.floor(i / (a * b)), rest = i % (a * b);
    return data[outer * a * b + (rest % a) * b + Math.floor(rest / a)]!;
  });
}
