import assert from "node:assert/strict";
import { join } from "node:path";
import type { Io } from "../../src/cli/io.ts";
import { tune } from "../../src/cli/tune.ts";
import { parseTuneFlags, tuneCommand } from "../../src/cli/tune_command.ts";
import { prepareVectorWidth, type VectorWidthHost } from "../../src/cli/vector_width.ts";
import type { AdapterDescription } from "../../src/gpu/adapter.ts";
import {
  cacheFolder,
  type CacheOwner,
  cacheOwner,
  clearCache,
  writeCacheFile,
} from "../../src/run/cache_files.ts";
import { addTuning, findTunedTiles, readTuning, type Tuning } from "../../src/run/tuning_cache.ts";
import { tinyModel } from "./_fake_run.ts";

const OWNER: CacheOwner = { stilla: "1.2.3", machine: "a processor; a driver" };
const ADAPTER: AdapterDescription = {
  name: "llvmpipe (LLVM 15, 256 bits)",
  family: "software",
  subgroupSize: 8,
};

async function withFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function fakeIo(cwd = "/"): { io: Io; text: { stdout: string; stderr: string } } {
  const text = { stdout: "", stderr: "" };
  const io: Io = {
    stdout: (words) => text.stdout += words,
    stderr: (words) => text.stderr += words,
    columns: null,
    now: () => 0,
    cwd,
    signal: new AbortController().signal,
  };
  return { io, text };
}

function tuning(key: string, tile: string): Tuning {
  const times = { defaultNanoseconds: 2, nanoseconds: 1 };
  return {
    ...OWNER,
    adapter: ADAPTER,
    tiles: [{ key, defaultTile: "a", tile, ...times, refused: [] }],
  };
}

Deno.test("parseTuneFlags() reads the flags and names what is wrong with one", () => {
  const given = parseTuneFlags(["--model", "a.onnx", "--batch-size=32"]);
  assert.deepEqual([given.model, given.batchSize], ["a.onnx", 32]);
  assert.deepEqual([given.clear, given.integers], [false, false]);
  assert.equal(parseTuneFlags([]).batchSize, 64);
  const cases: readonly (readonly [args: string[], message: RegExp])[] = [
    [["--speed"], /^--speed: unknown flag/],
    [["a.onnx"], /^a\.onnx: unknown flag/],
    [["--model"], /^--model: needs a value, --model FILE$/],
    [["--model", "--clear"], /^--model: needs a value/],
    [["--clear=yes"], /^--clear: takes no value$/],
    [["--clear", "--clear"], /^--clear: given twice$/],
    [["--batch-size", "0"], /^--batch-size: found "0", expected an integer from 1 to 4096$/],
    [["--batch-size", "many"], /^--batch-size: found "many"/],
  ];
  for (const [args, message] of cases) {
    assert.throws(() => parseTuneFlags(args), { name: "UsageError", message });
  }
});

Deno.test("tune() shows its help, and ends with 2 and one line when a flag is wrong", async () => {
  const help = fakeIo();
  assert.equal(await tune(["--help"], help.io), 0);
  assert.match(help.text.stdout, /--batch-size N .*default 64/);
  const wrong = fakeIo();
  assert.equal(await tune(["--batch-size", "x"], wrong.io), 2);
  assert.match(wrong.text.stderr, /^stilla: --batch-size: found "x"[^\n]*\n$/);
  assert.equal(wrong.text.stdout, "");
});

Deno.test("tuneCommand() measures a network, keeps the tiles, and forgets them again", () =>
  withFolder(async (folder) => {
    await Deno.writeFile(join(folder, "m.onnx"), tinyModel());
    const cache = join(folder, "stilla");
    // What the probe would find, so that it does not run.
    const found = { ...await cacheOwner(), width: null, ratio: null };
    await writeCacheFile(join(cache, "vector-width.json"), found);
    const variable = (name: string) => name === "XDG_CACHE_HOME" ? folder : undefined;
    const { io, text } = fakeIo(folder);
    const args = ["--model", "m.onnx", "--batch-size", "2", "--integers"];
    await tuneCommand(parseTuneFlags(args), io, variable);
    assert.match(text.stdout, /^kernel +default tile +us +best tile +us +gain\nconv2d_forward /);
    assert.match(text.stdout, /\nall +\d+ +\d+ +-?\d+\.\d %\n$/);
    const [, path] = /\nwrote (.*)\n$/.exec(text.stderr)!;
    const kept = JSON.parse(await Deno.readTextFile(path!)) as Tuning;
    // The network's input needs no gradient.
    const kernels = kept.tiles.map(({ key }) => key.split(" ")[0]);
    const integers = ["integer_conv2d", "integer_depthwise_conv2d"]; // a layer and an average
    assert.deepEqual(kernels, ["conv2d_forward", "conv2d_backward_weight", ...integers]);
    await tuneCommand(parseTuneFlags(["--clear"]), fakeIo().io, variable);
    assert.deepEqual([...Deno.readDirSync(cache)], []);
  }));

Deno.test("addTuning() adds to what is there, and readTuning() gives it back", () =>
  withFolder(async (folder) => {
    await addTuning(folder, tuning("k", "a"));
    await addTuning(folder, tuning("l", "b"));
    await addTuning(folder, tuning("k", "c"));
    const read = await readTuning(folder, ADAPTER, OWNER, assert.fail);
    assert.deepEqual(read!.tiles.map(({ key, tile }) => [key, tile]), [["k", "c"], ["l", "b"]]);
    assert.equal([...Deno.readDirSync(folder)].length, 1); // no stage is left behind
  }));

Deno.test("findTunedTiles() finds in the user's folder what differs from the defaults", () =>
  withFolder(async (folder) => {
    const before = Deno.env.get("XDG_CACHE_HOME");
    Deno.env.set("XDG_CACHE_HOME", folder);
    try {
      assert.equal(await findTunedTiles(ADAPTER), undefined);
      const owner = await cacheOwner();
      await addTuning(join(folder, "stilla"), { ...tuning("k", "b"), ...owner });
      await addTuning(join(folder, "stilla"), { ...tuning("l", "a"), ...owner });
      assert.deepEqual([...(await findTunedTiles(ADAPTER))!], [["k", "b"]]);
    } finally {
      if (before === undefined) Deno.env.delete("XDG_CACHE_HOME");
      else Deno.env.set("XDG_CACHE_HOME", before);
    }
  }));

Deno.test("readTuning() leaves what is damaged or of something else, with one line", () =>
  withFolder(async (folder) => {
    const other = { ...ADAPTER, subgroupSize: 16 };
    assert.equal(await readTuning(folder, ADAPTER, OWNER, assert.fail), undefined);
    const path = await addTuning(folder, tuning("k", "b"));
    const text = await Deno.readTextFile(path);
    const cases:
      readonly (readonly [text: string, owner: CacheOwner, adapter: AdapterDescription])[] = [
        [text, { ...OWNER, stilla: "9.9.9" }, ADAPTER],
        [text, { ...OWNER, machine: "another" }, ADAPTER],
        [text, OWNER, other],
        [text.slice(0, 50), OWNER, ADAPTER],
        ["", OWNER, ADAPTER],
        ["{}", OWNER, ADAPTER],
        [text.replace('"b"', "7"), OWNER, ADAPTER],
      ];
    for (const [content, owner, adapter] of cases) {
      await Deno.writeTextFile(path, content);
      const lines: string[] = [];
      assert.equal(await readTuning(folder, adapter, owner, (line) => lines.push(line)), undefined);
      assert.equal(lines.length, 1, content);
      assert.match(lines[0]!, /ignored[^\n]*$/);
    }
  }));

Deno.test("cacheFolder() follows the system's rules", () => {
  const folder = (variables: Record<string, string>, os: typeof Deno.build.os) =>
    cacheFolder((name) => variables[name], os);
  assert.equal(folder({ XDG_CACHE_HOME: "/c", HOME: "/h" }, "linux"), "/c/stilla");
  assert.equal(folder({ XDG_CACHE_HOME: "relative", HOME: "/h" }, "linux"), "/h/.cache/stilla");
  assert.equal(folder({ HOME: "/h" }, "darwin"), "/h/Library/Caches/stilla");
  assert.equal(folder({}, "linux"), undefined);
  assert.equal(folder({ HOME: "/h" }, "windows"), undefined);
});

/** A machine whose kernels take the given nanoseconds by width; counts the probes. */
function fakeHost(
  times: Readonly<Record<number, number | null>>,
  { environment = {}, adapter = "llvmpipe" }: {
    environment?: Record<string, string>;
    adapter?: string;
  } = {},
): VectorWidthHost & { readonly environment: Record<string, string>; probes: number } {
  const host = {
    environment,
    probes: 0,
    isCandidate: () => Promise.resolve(true),
    get: (name: string) => environment[name],
    set: (name: string, value: string) => void (environment[name] = value),
    probe: (width: number) => {
      host.probes++;
      const nanoseconds = times[width];
      if (nanoseconds === undefined) return Promise.reject(new Error("the probe failed"));
      return Promise.resolve({ adapter, nanoseconds });
    },
  };
  return host;
}

Deno.test("prepareVectorWidth() takes 512 bits only where they are clearly faster, and asks once", () =>
  withFolder(async (folder) => {
    const place = { folder, owner: OWNER, tell: () => {} };
    const fast = fakeHost({ 256: 100, 512: 80 });
    for (let i = 0; i < 2; i++) {
      const found = await prepareVectorWidth(place, { ...fast, get: () => undefined });
      assert.deepEqual([found!.width, found!.ratio], [512, 0.8]);
    }
    assert.equal(fast.probes, 3); // both widths and 256 bits again, the first time
    assert.equal(fast.environment.LP_NATIVE_VECTOR_WIDTH, "512");
    assert.equal((await clearCache(folder)).length, 1);
    const slow = fakeHost({ 256: 100, 512: 95 });
    assert.equal((await prepareVectorWidth(place, slow))!.width, 256);
    assert.deepEqual(slow.environment, {});
    await clearCache(folder);
    const times = [100, 80, 70]; // the first was held up
    const busy = fakeHost({});
    const probe = () => Promise.resolve({ adapter: "llvmpipe", nanoseconds: times.shift()! });
    assert.equal((await prepareVectorWidth(place, { ...busy, probe }))!.width, 256);
  }));

Deno.test("prepareVectorWidth() leaves the user's own width, other adapters and failures alone", () =>
  withFolder(async (folder) => {
    const lines: string[] = [];
    const place = { folder, owner: OWNER, tell: (line: string) => void lines.push(line) };
    const own = fakeHost({}, { environment: { LP_NATIVE_VECTOR_WIDTH: "128" } });
    assert.equal(await prepareVectorWidth(place, own), undefined);
    assert.equal(own.probes, 0);
    const failing = fakeHost({ 256: 100 });
    assert.equal(await prepareVectorWidth(place, failing), undefined);
    assert.match(lines.at(-1)!, /stays the driver's own: the probe failed$/);
    assert.deepEqual([...Deno.readDirSync(folder)], []);
    const gpu = fakeHost({ 256: 100, 512: 10 }, { adapter: "a GPU" });
    assert.equal((await prepareVectorWidth(place, gpu))!.width, null);
    assert.deepEqual([gpu.probes, gpu.environment], [1, {}]);
  }));
