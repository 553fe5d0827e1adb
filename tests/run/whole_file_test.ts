import assert from "node:assert/strict";
import { join } from "node:path";
import { writeWholeFile } from "../../src/run/whole_file.ts";
import { inFolder } from "./_fake_comparison.ts";

const namesIn = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

Deno.test("writeWholeFile() puts a new file in the place of the old one, never writes into it", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a", "b.json");
    await writeWholeFile(path, "old");
    await Deno.link(path, join(folder, "a", "same")); // another name of the same bytes
    await writeWholeFile(path, "new");
    assert.equal(await Deno.readTextFile(path), "new");
    assert.equal(await Deno.readTextFile(join(folder, "a", "same")), "old");
    assert.deepEqual(namesIn(join(folder, "a")), ["b.json", "same"]);
    if (Deno.build.os === "windows") return;
    assert.equal(Deno.statSync(path).mode! & 0o777, 0o666 & ~Deno.umask());
  }));

Deno.test("writeWholeFile() leaves nothing behind when the file cannot be put in its place", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a");
    await Deno.mkdir(join(path, "inner"), { recursive: true });
    await assert.rejects(() => writeWholeFile(path, "text"));
    assert.deepEqual(namesIn(folder), ["a"]);
  }));
