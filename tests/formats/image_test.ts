import assert from "node:assert/strict";
import { encode as encodePng, type ImageData } from "fast-png";
import { encode as encodeJpeg } from "jpeg-js";
import { decodeImage } from "../../src/formats/image.ts";
import { crc32 } from "../../src/formats/inflate.ts";
import { sharedData, sharedDataMissing } from "../_shared_data.ts";
import { assertRefused, fromBase64, PATH } from "./_refused.ts";
import goldens from "./png_goldens.json" with { type: "json" };

Deno.test("decodeImage() reads every PNG colour type and depth, plain and interlaced", () => {
  for (const [name, { file, shape, pixels }] of Object.entries(goldens)) {
    const image = decodeImage(fromBase64(file), PATH);
    assert.deepEqual(image.shape, shape, name);
    assert.deepEqual(Array.from(image.data), pixels, name);
  }
});

const JPEG = encodeJpeg({ width: 19, height: 9, data: gradient(19, 9) }, 100).data;

Deno.test("decodeImage() reads JPEG within the loss of quality 100", () => {
  const { shape, data } = decodeImage(JPEG, PATH);
  assert.deepEqual(shape, [9, 19, 3]);
  const original = gradient(19, 9);
  for (let pixel = 0; pixel < 9 * 19; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      // Quality 100 quantizes by 1 and rounds YCbCr: a few grey levels.
      const difference = data[3 * pixel + channel]! - original[4 * pixel + channel]!;
      assert.ok(Math.abs(difference) <= 4, `pixel ${pixel} is off by ${difference}`);
    }
  }
});

Deno.test({
  name: "decodeImage() reads a photograph of ImageNet: 227 x 227, the whole range of greys",
  ignore: sharedDataMissing,
  fn() {
    const file = Deno.readFileSync(sharedData("imagenet/val/ILSVRC2012_val_00000355.JPEG"));
    const { shape, data } = decodeImage(file, PATH);
    assert.deepEqual(shape, [227, 227, 3]);
    assert.ok(new Set(data).size > 200);
    for (let size = 0; size < file.length; size += 997) {
      assertRefused(() => decodeImage(file.subarray(0, size), PATH), /byte \d+/);
    }
  },
});

Deno.test("decodeImage() refuses what is neither PNG nor JPEG", () => {
  assertRefused(() => decodeImage(new Uint8Array(), PATH), /neither a PNG nor a JPEG/);
  assertRefused(() => decodeImage(new TextEncoder().encode("GIF89a"), PATH), /neither/);
});

Deno.test("decodeImage() refuses every truncation of a PNG and a JPEG", () => {
  for (const file of [png(), JPEG]) {
    for (let size = 0; size < file.length; size++) {
      assertRefused(() => decodeImage(file.subarray(0, size), PATH), /byte \d+/);
    }
  }
});

Deno.test("decodeImage() never throws anything but FormatError on damaged bytes", () => {
  for (const file of [png(), JPEG]) {
    for (let at = 2; at < file.length; at++) {
      for (const mask of [1, 0x80, 0xff]) {
        const damaged = Uint8Array.from(file, (byte, i) => i === at ? byte ^ mask : byte);
        try {
          decodeImage(damaged, PATH, { maxPixels: 2 ** 16 });
        } catch (error) {
          assertRefused(() => {
            throw error;
          }, /byte \d+/);
        }
      }
    }
  }
});

Deno.test("decodeImage() refuses sizes above the cap before decoding", () => {
  assertRefused(() => decodeImage(patchedPng(16, [64, 0, 0, 0]), PATH), /image of 1073741824 x/);
  assertRefused(() => decodeImage(png(), PATH, { maxPixels: 5 }), /expected 1 to 5 pixels/);
  assertRefused(() => decodeImage(patchedPng(16, [0, 0, 0, 0]), PATH), /image of 0 x/);
  const jpeg = Uint8Array.from(JPEG);
  const frame = jpeg.findIndex((byte, at) => byte === 0xff && jpeg[at + 1] === 0xc0);
  jpeg.set([0xff, 0xff, 0xff, 0xff], frame + 5);
  assertRefused(() => decodeImage(jpeg, PATH), /image of 65535 x 65535/);
});

Deno.test("decodeImage() refuses PNG data that is larger or smaller than the header says", () => {
  assertRefused(() => decodeImage(patchedPng(20, [0, 0, 0, 1]), PATH), /gives more than the/);
  assertRefused(
    () => decodeImage(patchedPng(20, [0, 0, 1, 0]), PATH),
    /deflate stream gives|cannot/,
  );
});

Deno.test("decodeImage() refuses false PNG kinds, checksums and unknown critical chunks", () => {
  assertRefused(() => decodeImage(patchedPng(24, [3]), PATH), /with 3 bits/);
  assertRefused(() => decodeImage(patchedPng(25, [7]), PATH), /colour type 7/);
  assertRefused(() => decodeImage(patchedPng(25, [3]), PATH), /without a palette/);
  assertRefused(() => decodeImage(patchedPng(28, [2]), PATH), /interlace method 2/);
  const damaged = png();
  damaged[20]! ^= 1;
  assertRefused(() => decodeImage(damaged, PATH), /checksum of PNG chunk IHDR/);
  const renamed = png();
  renamed.set(new TextEncoder().encode("XDAT"), 37);
  assertRefused(() => decodeImage(renamed, PATH), /critical PNG chunk XDAT/);
});

Deno.test("decodeImage() refuses JPEG kinds it cannot decode and endless scans", () => {
  const change = (offset: number, byte: number) => {
    const file = Uint8Array.from(JPEG);
    const frame = file.findIndex((value, at) => value === 0xff && file[at + 1] === 0xc0);
    file[frame + offset] = byte;
    return file;
  };
  assertRefused(() => decodeImage(change(1, 0xc3), PATH), /lossless or arithmetic/);
  assertRefused(() => decodeImage(change(4, 12), PATH), /samples of 12 bits/);
  assertRefused(() => decodeImage(change(9, 4), PATH), /4 components/);
  assertRefused(() => decodeImage(change(11, 0), PATH), /damaged JPEG data/);
  const scans = Uint8Array.from(
    { length: 30_000 * 10 },
    (_, i) => [0xff, 0xda, 0, 8, 1][i % 10] ?? 0,
  );
  const start = [0xff, 0xd8, 0xff, 0xc2, 0, 11, 8, 2, 0, 2, 0, 1, 1, 0x11, 0];
  assertRefused(
    () => decodeImage(Uint8Array.of(...start, ...scans.subarray(0, 60_000)), PATH),
    /4097 scans of 512 x 512/,
  );
});

/** The test image: 4 channels, smooth. */
function gradient(width: number, height: number): Uint8Array {
  return Uint8Array.from({ length: width * height * 4 }, (_, i) => {
    const [x, y] = [(i >> 2) % width, Math.floor((i >> 2) / width)];
    return [x * 10, y * 20, 255 - x * 5 - y * 5, 255][i & 3]!;
  });
}

function png(): Uint8Array<ArrayBuffer> {
  const image: ImageData = { width: 3, height: 2, data: gradient(3, 2), channels: 4, depth: 8 };
  return Uint8Array.from(encodePng(image));
}

/** The PNG with header bytes changed and the header's checksum made right again. */
function patchedPng(at: number, bytes: readonly number[]): Uint8Array {
  const file = png();
  file.set(bytes, at);
  new DataView(file.buffer).setUint32(29, crc32(file.subarray(12, 29)));
  return file;
}
