// What stilla remembers between runs: small JSON files in the user's cache folder. They only make things faster, so one
// that is damaged or belongs to something else is left alone after a word, and nothing fails because of it.
import { isAbsolute, join } from "node:path";
import type { z } from "zod";
import { VERSION } from "../distill/report.ts";
import { readJson } from "./input_files.ts";
import { writeWholeFile } from "./whole_file.ts";

/** What a measurement holds for; it says nothing about any other version or machine. */
export interface CacheOwner {
  /** Version of stilla. */
  readonly stilla: string;
  /** Processor and Vulkan drivers. */
  readonly machine: string;
}

/** Environment variables, so that a test can stand in for them. */
export type ReadVariable = (name: string) => string | undefined;

/**
 * The user's cache folder.
 *
 * @param variable reads an environment variable
 * @param os the operating system
 * @returns where stilla's files go, or undefined where there is no such folder
 */
export function cacheFolder(
  variable: ReadVariable,
  os: typeof Deno.build.os = Deno.build.os,
): string | undefined {
  const inside = (name: string, ...below: string[]) => {
    const path = variable(name);
    return path && isAbsolute(path) ? join(path, ...below, "stilla") : undefined;
  };
  if (os === "windows") return inside("LOCALAPPDATA");
  return inside("XDG_CACHE_HOME") ??
    (os === "darwin" ? inside("HOME", "Library", "Caches") : inside("HOME", ".cache"));
}

/**
 * This version on this machine.
 *
 * @param folders where Vulkan drivers are registered
 * @returns processor and drivers as far as the system tells
 */
export async function cacheOwner(
  folders: readonly string[] = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"],
): Promise<CacheOwner> {
  const parts = [/^model name\s*:\s*(.+)$/m.exec(await textOf("/proc/cpuinfo"))?.[1] ?? ""];
  for (const folder of folders) {
    for (const name of await namesIn(folder)) {
      // An update of the driver writes the file anew; the versions inside it are coarse.
      const { mtime } = await Deno.stat(join(folder, name));
      parts.push(`${name} ${mtime?.toISOString() ?? ""}`);
    }
  }
  return { stilla: VERSION, machine: parts.join("; ") };
}

/**
 * Reads a cache file.
 *
 * @param path the file
 * @param schema what it must hold
 * @param owner what it must hold for
 * @param tell is told in one line why a file that is there is not used
 * @returns its content, or undefined when there is none to be used
 */
export async function readCacheFile<T extends CacheOwner>(
  path: string,
  schema: z.ZodType<T>,
  owner: CacheOwner,
  tell: (line: string) => void,
): Promise<T | undefined> {
  try {
    await Deno.lstat(path);
  } catch {
    return undefined; // not there, or nobody's business
  }
  try {
    const { data, error } = schema.safeParse(await readJson(path));
    if (error !== undefined) {
      const [issue] = error.issues;
      tell(`${path}: ignored, ${issue?.path.join(".") || "it"} is not as expected`);
      return undefined;
    }
    if (data.stilla === owner.stilla && data.machine === owner.machine) return data;
    tell(`${path}: ignored, it is of another version, processor or driver`);
  } catch (error) {
    tell(`ignored: ${(error as Error).message}`);
  }
  return undefined;
}

/**
 * Writes a cache file, whole or not at all.
 *
 * @param path the file; folders above it are made
 * @param value its content
 */
export async function writeCacheFile(path: string, value: CacheOwner): Promise<void> {
  await writeWholeFile(path, `${JSON.stringify(value, null, 2)}\n`);
}

/**
 * Forgets what was measured.
 *
 * @param folder of {@linkcode cacheFolder}
 * @returns the files that were removed
 */
export async function clearCache(folder: string): Promise<string[]> {
  const removed: string[] = [];
  for (const name of await namesIn(folder)) {
    if (!/^(tuning-.*|vector-width)\.json$/.test(name)) continue;
    await Deno.remove(join(folder, name));
    removed.push(join(folder, name));
  }
  return removed;
}

async function textOf(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch {
    return ""; // another system
  }
}

async function namesIn(folder: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const { name, isFile } of Deno.readDir(folder)) if (isFile) names.push(name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return names.sort();
}
