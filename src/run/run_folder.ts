// The folder a run leaves behind. It appears whole or not at all: every file is written and fsynced in a hidden folder
// beside it, which is then renamed (Pillai et al., OSDI 2014: rename without fsync is not safe).
import { basename, dirname, join, resolve } from "node:path";
import { FormatError } from "../core/errors.ts";

/** A stage this old belongs to a process that died: writing takes seconds. */
const STALE_MILLISECONDS = 10 * 60 * 1000;
const OLD = "-old";

/** The files of a run folder by relative path with `/`. */
export type RunFiles = ReadonlyMap<string, Uint8Array>;

/**
 * Checks, before the long work, that the folder can be written later. Leaves nothing behind.
 *
 * @param folder where the run will be written
 * @param entries names a run may have in it; an earlier run is replaced, anything else is never touched
 * @throws FormatError when it holds other files, is a file, or cannot be written
 */
export async function checkRunFolder(folder: string, entries: readonly string[]): Promise<void> {
  const target = resolve(folder);
  let existing = target;
  try {
    await recover(target);
    await checkReplaceable(target, entries);
    while (!(await exists(existing))) existing = dirname(existing);
    const info = await Deno.stat(existing);
    if (!info.isDirectory) throw new FormatError(existing, "", "is a file, expected a folder");
    // The folder is replaced by renaming, so what must be writable is the folder it stands in.
    const parent = existing === target ? dirname(target) : existing;
    const probe = await Deno.makeTempDir({ dir: parent, prefix: ".stilla-" });
    await Deno.remove(probe);
  } catch (error) {
    throw unwritable(folder, error);
  }
}

/**
 * Writes a run folder, replacing an earlier run.
 *
 * @param folder where; folders above it are made
 * @param files every file of the run
 * @throws FormatError when the folder holds other files or cannot be written; then it is as it was before
 */
export async function writeRunFolder(folder: string, files: RunFiles): Promise<void> {
  const target = resolve(folder);
  const parent = dirname(target);
  let stage: string | undefined;
  try {
    await checkReplaceable(target, [...files.keys()].map((path) => path.split("/")[0]!));
    await Deno.mkdir(parent, { recursive: true });
    stage = await Deno.makeTempDir({ dir: parent, prefix: stagePrefix(target) });
    await writeAll(stage, files);
    await moveInto(stage, target);
    await syncFolder(parent);
  } catch (error) {
    if (stage !== undefined) await Deno.remove(stage, { recursive: true }).catch(() => {});
    throw unwritable(folder, error);
  }
}

async function writeAll(stage: string, files: RunFiles): Promise<void> {
  // makeTempDir gives 0700; a run folder is as readable as any other folder.
  if (Deno.build.os !== "windows") await Deno.chmod(stage, 0o777 & ~Deno.umask());
  const folders = new Set<string>([stage]);
  for (const [path, bytes] of files) {
    const parts = path.split("/");
    if (parts.some((part) => part === "" || part === "." || part === "..")) {
      throw new RangeError(`Cannot write "${path}" into a run folder: expected a plain path`);
    }
    const file = join(stage, ...parts);
    await Deno.mkdir(dirname(file), { recursive: true });
    folders.add(dirname(file));
    using handle = await Deno.open(file, { write: true, createNew: true });
    for (let at = 0; at < bytes.length;) at += await handle.write(bytes.subarray(at));
    await handle.sync();
  }
  for (const path of folders) await syncFolder(path);
}

/** Puts the finished stage in the place of the target; the old target goes only when the new one is there. */
async function moveInto(stage: string, target: string): Promise<void> {
  if (!(await exists(target))) return await Deno.rename(stage, target);
  const old = stage + OLD;
  await Deno.rename(target, old);
  try {
    await Deno.rename(stage, target);
  } catch (error) {
    await Deno.rename(old, target);
    throw error;
  }
  await Deno.remove(old, { recursive: true });
}

/** Tidies up after a process that was killed while it wrote: its stage goes, and a run it had moved away comes back. */
async function recover(target: string): Promise<void> {
  const parent = dirname(target);
  if (!(await exists(parent)) || !(await Deno.stat(parent)).isDirectory) return;
  const prefix = stagePrefix(target);
  for await (const { name } of Deno.readDir(parent)) {
    if (!name.startsWith(prefix)) continue;
    const left = join(parent, name);
    if (name.endsWith(OLD) && !(await exists(target))) {
      await Deno.rename(left, target);
      continue;
    }
    const { mtime } = await Deno.stat(left);
    const isStale = mtime !== null && Date.now() - mtime.getTime() > STALE_MILLISECONDS;
    if (name.endsWith(OLD) || isStale) await Deno.remove(left, { recursive: true });
  }
}

function stagePrefix(target: string): string {
  return `.${basename(target)}.stilla-`;
}

/** Nothing, an empty folder, or the folder of an earlier run may be replaced. */
async function checkReplaceable(target: string, entries: readonly string[]): Promise<void> {
  if (!(await exists(target))) return;
  const found: string[] = [];
  for await (const entry of Deno.readDir(target)) found.push(entry.name);
  if (found.length === 0) return;
  const other = found.sort().find((name) => !entries.includes(name));
  if (other !== undefined || !(await isRun(target))) {
    const name = other ?? found[0]!;
    throw new FormatError(
      target,
      "",
      `holds "${name}", expected an empty folder or an earlier run`,
    );
  }
}

async function isRun(folder: string): Promise<boolean> {
  try {
    const report: unknown = JSON.parse(await Deno.readTextFile(join(folder, "report.json")));
    return typeof report === "object" && report !== null && "stilla" in report;
  } catch {
    return false;
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.lstat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    // Below a file: says so when the walk reaches the file.
    if (error instanceof Deno.errors.NotADirectory) return false;
    throw error;
  }
}

/** Makes renames inside a folder durable, where the system can (Windows cannot open folders). */
async function syncFolder(path: string): Promise<void> {
  if (Deno.build.os === "windows") return;
  using folder = await Deno.open(path);
  await folder.sync();
}

/**
 * A full disk keeps its own class; every other refusal of the system becomes one line about the folder.
 *
 * @param folder what could not be written
 * @param error what the system said
 * @returns the error to throw
 */
export function unwritable(folder: string, error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof FormatError || error instanceof RangeError) {
    return error;
  }
  const { code } = error as Error & { code?: string };
  if (code === "ENOSPC" || code === "EDQUOT") return error;
  return new FormatError(folder, "", `cannot be written: ${error.message}`);
}
