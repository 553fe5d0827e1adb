import assert from "node:assert/strict";
import { join } from "node:path";
import { ndArray } from "../../src/core/nd_array.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import { readInputs, readJson, readLabels } from "../../src/run/input_files.ts";
import { encode as encodePng } from "fast-png";
import { zipSync } from "fflate";

const SIZE = { channels: 3, height: 2, width: 2 };

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function png(channels: number, values: readonly number[]): Uint8Array {
  const width = 2;
  return encodePng({
    width,
    height: values.length / width / channels,
    channels,
    data: Uint8Array.from(values),
  });
}

Deno.test("readInputs() reads a folder of images in the order of their names", () =>
  inFolder(async (folder) => {
    // So many that no file system lists them in order by luck.
    const names = [..."abcdefghijkl"].map((letter, i) => `${letter}.${i % 2 ? "png" : "PNG"}`);
    const images = names.map((_, n) => Array.from({ length: 12 }, (_, i) => n * 20 + i));
    for (const n of [7, 2, 11, 0, 5, 9, 1, 10, 4, 8, 3, 6]) {
      await Deno.writeFile(join(folder, names[n]!), png(3, images[n]!));
    }
    await Deno.writeTextFile(join(folder, "notes.txt"), "ignored");
    const set = await readInputs(folder, SIZE);
    assert.deepEqual([set.count, set.layout], [12, "NHWC"]);
    assert.deepEqual([...set.data], images.flat());
  }));

Deno.test("readInputs() drops alpha and repeats grey where the network wants colours", () =>
  inFolder(async (folder) => {
    await Deno.writeFile(join(folder, "a.png"), png(1, [1, 2, 3, 4]));
    await Deno.writeFile(
      join(folder, "b.png"),
      png(4, [1, 2, 3, 255, 4, 5, 6, 255, 7, 8, 9, 0, 10, 11, 12, 9]),
    );
    const set = await readInputs(folder, SIZE);
    assert.deepEqual([...set.data.subarray(0, 12)], [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
    assert.deepEqual([...set.data.subarray(12)], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  }));

Deno.test("readInputs() names the image of another size, and the folder without images", () =>
  inFolder(async (folder) => {
    await assert.rejects(() => readInputs(folder, SIZE), /found no \.png, \.jpg or \.jpeg file/);
    await Deno.writeFile(join(folder, "a.png"), png(3, new Array(12).fill(0)));
    await Deno.writeFile(join(folder, "b.png"), png(3, new Array(18).fill(0)));
    await assert.rejects(
      () => readInputs(folder, SIZE),
      /b\.png: found 3 x 2 x 3, expected 2 x 2 x 3 as in a\.png$/,
    );
  }));

Deno.test("readInputs() picks an array of an npz: the only one, a usual name, or the one asked for", () =>
  inFolder(async (folder) => {
    const file = (name: string, arrays: readonly string[]) => {
      const path = join(folder, name);
      const members = arrays.map((array, i) => {
        const values = new Uint8Array(12).fill(i);
        return [`${array}.npy`, encodeNpy(ndArray("uint8", [1, 3, 2, 2], values))] as const;
      });
      Deno.writeFileSync(path, zipSync(Object.fromEntries(members)));
      return path;
    };
    const first = async (path: string) => (await readInputs(path, SIZE)).data[0];
    assert.equal(await first(file("one.npz", ["anything"])), 0);
    assert.equal(await first(file("two.npz", ["a", "x"])), 1);
    assert.equal(await first(`${file("three.npz", ["a", "b", "c"])}#c`), 2);
    await assert.rejects(() => first(join(folder, "three.npz")), /found the arrays a, b, c;/);
    await assert.rejects(() => first(join(folder, "three.npz#d")), /expected "d"$/);
  }));

Deno.test("readLabels() reads IDX, plain and gzipped", () =>
  inFolder(async (folder) => {
    const idx = Uint8Array.from([0, 0, 8, 1, 0, 0, 0, 3, 7, 0, 9]);
    const gzipped = new Blob([idx]).stream().pipeThrough(new CompressionStream("gzip"));
    await Deno.writeFile(join(folder, "y"), idx);
    await Deno.writeFile(join(folder, "y.gz"), gzipped);
    for (const name of ["y", "y.gz"]) {
      const labels = await readLabels(join(folder, name), { count: 3, classes: 10 });
      assert.deepEqual([...labels], [7, 0, 9]);
    }
  }));

Deno.test("readJson() gives plain objects and refuses a key that stands twice", () =>
  inFolder(async (folder) => {
    const path = join(folder, "r.json");
    await Deno.writeTextFile(path, '{"a": [1, {"b": null}]}');
    assert.deepEqual(await readJson(path), { a: [1, { b: null }] });
    await Deno.writeTextFile(path, '{"seed": 1, "seed": 2}');
    await assert.rejects(() => readJson(path), /"seed" is there twice/);
  }));

Deno.test("reading opens regular files only: a pipe or device does not hang", async () => {
  if (Deno.build.os === "windows") return;
  await assert.rejects(() => readInputs("/dev/zero", SIZE), /is not a regular file$/);
  await assert.rejects(() => readJson("/"), /is a folder, expected a file$/);
  await assert.rejects(() => readJson("/no/such"), /no such file or folder$/);
});
