import assert from "node:assert/strict";
import { join } from "node:path";
import { FormatError } from "../../src/core/errors.ts";
import { checkRunFolder, type RunFiles, writeRunFolder } from "../../src/run/run_folder.ts";

const ENTRIES = ["report.json", "weights"];

function run(generation: string): RunFiles {
  const bytes = new TextEncoder().encode(JSON.stringify({ stilla: "0", generation }));
  return new Map([["weights/a.npy", bytes], ["report.json", bytes]]);
}

/** A fresh folder, removed afterwards. */
async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function namesOf(folder: string): string[] {
  return [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
}

function generationOf(folder: string): string {
  const [a, b] = ["weights/a.npy", "report.json"].map((name) =>
    Deno.readTextFileSync(join(folder, name))
  );
  assert.equal(a, b); // never files of two runs side by side
  return JSON.parse(a!).generation;
}

Deno.test("writeRunFolder() writes every file, makes the folders above, and leaves nothing else", () =>
  inFolder(async (folder) => {
    const target = join(folder, "runs", "a");
    await checkRunFolder(target, ENTRIES);
    assert.deepEqual(namesOf(folder), []);
    await writeRunFolder(target, run("1"));
    assert.equal(generationOf(target), "1");
    assert.deepEqual(namesOf(join(folder, "runs")), ["a"]);
  }));

Deno.test("writeRunFolder() replaces an earlier run as a whole", () =>
  inFolder(async (folder) => {
    const target = join(folder, "a");
    await writeRunFolder(target, run("1"));
    await checkRunFolder(target, ENTRIES);
    await writeRunFolder(target, run("2"));
    assert.equal(generationOf(target), "2");
    assert.deepEqual(namesOf(folder), ["a"]);
  }));

Deno.test("writeRunFolder() leaves the earlier run as it was when a file cannot be written", () =>
  inFolder(async (folder) => {
    const target = join(folder, "a");
    await writeRunFolder(target, run("1"));
    const tooLong = `weights/${"x".repeat(300)}.npy`; // over every system's 255 bytes
    const files = new Map([...run("2"), [tooLong, new Uint8Array(1)]]);
    await assert.rejects(() => writeRunFolder(target, files), FormatError);
    assert.equal(generationOf(target), "1");
    assert.deepEqual(namesOf(folder), ["a"]);
  }));

Deno.test("run folders: other people's files are never touched", () =>
  inFolder(async (folder) => {
    const target = join(folder, "a");
    await Deno.mkdir(target);
    await checkRunFolder(target, ENTRIES); // an empty folder may be used
    await Deno.writeTextFile(join(target, "thesis.txt"), "x");
    const holds = /holds "thesis\.txt", expected an empty folder or an earlier run$/;
    await assert.rejects(() => checkRunFolder(target, ENTRIES), holds);
    await assert.rejects(() => writeRunFolder(target, run("1")), holds);
    await Deno.rename(join(target, "thesis.txt"), join(target, "report.json"));
    await assert.rejects(() => checkRunFolder(target, ENTRIES), /holds "report\.json"/);
    assert.deepEqual(namesOf(target), ["report.json"]);
  }));

Deno.test("checkRunFolder() refuses a place below a file or where no folder can be made", () =>
  inFolder(async (folder) => {
    const file = join(folder, "file");
    await Deno.writeTextFile(file, "");
    await assert.rejects(() => checkRunFolder(join(file, "a", "b"), []), FormatError);
    await assert.rejects(() => checkRunFolder(file, []), FormatError);
    if (Deno.build.os === "linux") {
      await assert.rejects(() => checkRunFolder("/proc/stilla/a", []), /cannot be written/);
    }
    assert.deepEqual(namesOf(folder), ["file"]);
  }));

Deno.test("writeRunFolder() refuses paths that leave the folder", () =>
  inFolder(async (folder) => {
    const files = new Map([["../evil", new Uint8Array(1)]]);
    await assert.rejects(() => writeRunFolder(join(folder, "a"), files), RangeError);
    assert.deepEqual(namesOf(folder), []);
  }));

Deno.test("checkRunFolder() brings back the run that a killed process had moved away", () =>
  inFolder(async (folder) => {
    const target = join(folder, "a");
    await writeRunFolder(target, run("1"));
    await Deno.rename(target, join(folder, ".a.stilla-1234-old"));
    await Deno.mkdir(join(folder, ".a.stilla-5678"));
    await Deno.utime(join(folder, ".a.stilla-5678"), 1e9, 1e9); // long ago
    await checkRunFolder(target, ENTRIES);
    assert.equal(generationOf(target), "1");
    assert.deepEqual(namesOf(folder), ["a"]);
  }));

Deno.test("run folders are whole or absent after kill -9 at any moment", () =>
  inFolder(async (folder) => {
    const target = join(folder, "a");
    const module = new URL("../../src/run/run_folder.ts", import.meta.url).href;
    const script = join(folder, "writer.ts");
    await Deno.writeTextFile(
      script,
      `import { writeRunFolder } from ${JSON.stringify(module)};
      console.log("ready");
      for (let i = 0;; i++) {
        const bytes = new TextEncoder().encode(JSON.stringify({ stilla: "0", generation: String(i) }));
        await writeRunFolder(${
        JSON.stringify(target)
      }, new Map([["weights/a.npy", bytes], ["report.json", bytes]]));
      }`,
    );
    for (let kill = 0; kill < 6; kill++) {
      const writer = new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--quiet", "--no-check", script],
        stdout: "piped",
      }).spawn();
      const reader = writer.stdout.getReader();
      await reader.read();
      await new Promise((resolve) => setTimeout(resolve, 5 + 7 * kill));
      writer.kill("SIGKILL");
      await writer.status;
      await reader.cancel();
      await checkRunFolder(target, ENTRIES);
      if (namesOf(folder).includes("a")) generationOf(target);
    }
  }));
