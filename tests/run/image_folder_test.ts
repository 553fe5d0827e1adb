import assert from "node:assert/strict";
import { join } from "node:path";
import { encode as encodePng } from "fast-png";
import { FormatError } from "../../src/core/errors.ts";
import { mayStartWorker } from "../../src/core/worker_source.ts";
import { readImageFolder, usefulWorkers } from "../../src/run/image_folder.ts";
import { IMAGE_WORKER, ImagePool } from "../../src/run/image_pool.ts";

/** A folder of small PNG images of three colours; image i of `count` holds i in its first byte. */
async function inFolder(count: number, body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    for (let i = 0; i < count; i++) await writePng(folder, i, 3, 4);
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function writePng(folder: string, i: number, channels: number, width: number) {
  const data = Uint8Array.from({ length: width * 5 * channels }, (_, k) => (i + k * 7) % 256);
  await Deno.writeFile(imagePath(folder, i), encodePng({ width, height: 5, channels, data }));
}

function imagePath(folder: string, i: number): string {
  return join(folder, `${String(i).padStart(3, "0")}.png`);
}

async function failure(folder: string, workers: number): Promise<Error> {
  try {
    await readImageFolder(folder, 3, { workers });
  } catch (error) {
    assert(error instanceof Error);
    return error;
  }
  throw new Error(`${folder} was read`);
}

Deno.test("readImageFolder() gives the same images in the same order with workers", () =>
  inFolder(83, async (folder) => {
    const [alone, helped, few] = [
      await readImageFolder(folder, 3, { workers: 0 }),
      await readImageFolder(folder, 3, { workers: 2 }),
      await readImageFolder(folder, null, { workers: 1 }),
    ];
    assert.deepEqual(alone.shape, [83, 5, 4, 3]);
    assert.deepEqual(Array.from({ length: 83 }, (_, i) => alone.data[i * 60]), [
      ...Array(83).keys(),
    ]);
    assert.deepEqual(helped, alone);
    assert.deepEqual(few, alone);
  }));

Deno.test("readImageFolder() gives the same first error with workers", () =>
  inFolder(30, async (folder) => {
    const damage: readonly (readonly [RegExp, () => Promise<void>])[] = [
      [
        /029\.png: found 5 x 9 x 3, expected 5 x 4 x 3 as in 000\.png$/,
        () => writePng(folder, 29, 3, 9),
      ],
      [
        /025\.png: .*neither a PNG nor a JPEG image$/,
        () => Deno.writeTextFile(imagePath(folder, 25), "no image"),
      ],
      [/020\.png: is a folder, expected a file$|020\.png: no such file/, async () => {
        await Deno.remove(imagePath(folder, 20));
        await Deno.symlink(join(folder, "nowhere"), imagePath(folder, 20));
      }],
      [/011\.png: /, async () => {
        const whole = await Deno.readFile(imagePath(folder, 11));
        await Deno.writeFile(imagePath(folder, 11), whole.subarray(0, whole.length - 20));
      }],
      [/000\.png: /, () => Deno.writeTextFile(imagePath(folder, 0), "")],
    ];
    for (const [message, harm] of damage) { // each before those that came before it
      await harm();
      const [alone, helped] = [await failure(folder, 0), await failure(folder, 2)];
      assert(alone instanceof FormatError && helped instanceof FormatError);
      assert.match(alone.message, message);
      assert.deepEqual([helped.message, helped.path], [alone.message, alone.path]);
    }
  }));

Deno.test("readImageFolder() names the image whose colours do not fit, with workers too", () =>
  inFolder(6, async (folder) => {
    await writePng(folder, 4, 1, 4); // grey becomes colours
    await readImageFolder(folder, 3, { workers: 1 });
    for (let i = 0; i < 4; i++) await writePng(folder, i, 1, 4);
    for (const workers of [0, 1]) {
      await assert.rejects(
        () => readImageFolder(folder, 1, { workers }),
        /005\.png: found 3 colour channels, expected 1$/,
      );
    }
  }));

Deno.test("ImagePool.decode() answers null for what it cannot do, and after the end", () =>
  inFolder(2, async (folder) => {
    const pool = new ImagePool(1);
    assert.equal(await pool.decode(join(folder, "none.png"), 3), null);
    assert.deepEqual((await pool.decode(imagePath(folder, 0), 3))?.shape, [5, 4, 3]);
    await Deno.writeTextFile(imagePath(folder, 1), "no image");
    assert.equal(await pool.decode(imagePath(folder, 1), 3), null);
    const under = Array.from({ length: 5 }, () => pool.decode(imagePath(folder, 0), 3));
    pool.dispose();
    assert.deepEqual(await Promise.all(under), Array(5).fill(null));
    assert.equal(await pool.decode(imagePath(folder, 0), 3), null);
  }));

Deno.test("readImageFolder() ends its workers, after an error too", () =>
  inFolder(8, async (folder) => {
    const original = globalThis.Worker;
    const running = new Set<Worker>();
    let started = 0;
    globalThis.Worker = class extends original {
      constructor(source: string | URL, options?: WorkerOptions) {
        super(source, options);
        running.add(this);
        started++;
      }
      override terminate() {
        running.delete(this);
        super.terminate();
      }
    };
    try {
      await readImageFolder(folder, 3, { workers: 2 });
      assert.deepEqual([started, running.size], [2, 0]);
      await Deno.writeTextFile(imagePath(folder, 3), "no image");
      await failure(folder, 2);
      assert.deepEqual([started, running.size], [4, 0]);
    } finally {
      globalThis.Worker = original;
    }
  }));

Deno.test("usefulWorkers() takes none for few images or few pixels", () => {
  assert.equal(usefulWorkers(63, 1e6), 0);
  assert.equal(usefulWorkers(1024, 32 * 32), 0);
  const workers = usefulWorkers(256, 224 * 224);
  assert(workers >= 1 && workers <= 4);
});

const ALLOWED = Deno.makeTempDirSync();

Deno.test("readImageFolder() works where workers may not start", {
  permissions: { read: [ALLOWED], write: [ALLOWED] }, // a worker would have to read its own source
}, async () => {
  try {
    for (let i = 0; i < 8; i++) await writePng(ALLOWED, i, 3, 4);
    const [alone, helped] = [
      await readImageFolder(ALLOWED, 3, { workers: 0 }),
      await readImageFolder(ALLOWED, 3, { workers: 2 }),
    ];
    assert.deepEqual(helped, alone);
    assert.equal(mayStartWorker(IMAGE_WORKER), false);
  } finally {
    await Deno.remove(ALLOWED, { recursive: true });
  }
});
