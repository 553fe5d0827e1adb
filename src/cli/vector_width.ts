// The vector width of Mesa's lavapipe: 512 bits are up to half faster than 256 on one machine and several times slower on
// the next. On a processor with AVX-512 both are tried once, each in a process of its own, and the choice is kept. The
// user's own LP_NATIVE_VECTOR_WIDTH is never changed, and whatever goes wrong here leaves the driver's default.
import { join } from "node:path";
import { z } from "zod";
import { type CacheOwner, readCacheFile, writeCacheFile } from "../run/cache_files.ts";
import type { ProbeResult } from "./vector_width_probe.ts";

const VARIABLE = "LP_NATIVE_VECTOR_WIDTH";
const FILE = "vector-width.json";
const WIDTHS = [256, 512] as const;
/** Part of the time with 256 bits above which 512 bits are not clearly faster. */
const CLEARLY_FASTER = 0.9;
const LONGEST_MILLISECONDS = 60_000;

/** What the probe found. */
export interface VectorWidth extends CacheOwner {
  /** Bits; null where it makes no difference because the adapter is not lavapipe. */
  readonly width: 256 | 512 | null;
  /** Time with 512 bits as a part of the time with 256. */
  readonly ratio: number | null;
}

const SCHEMA: z.ZodType<VectorWidth> = z.strictObject({
  stilla: z.string(),
  machine: z.string(),
  width: z.union([z.literal(256), z.literal(512), z.null()]),
  ratio: z.number().positive().nullable(),
});

/** The machine, so that a test can stand in for it. */
export interface VectorWidthHost {
  /** Whether the processor has AVX-512 and the system is one lavapipe runs on. */
  readonly isCandidate: () => Promise<boolean>;
  readonly get: (variable: string) => string | undefined;
  readonly set: (variable: string, value: string) => void;
  /** Times kernels in a process with the given width. */
  readonly probe: (width: number) => Promise<ProbeResult>;
}

/**
 * Sets the vector width for this process, before its first adapter.
 *
 * @param place.folder of the cache
 * @param place.owner version and machine
 * @param place.tell is told in one line what happens
 * @param host the machine
 * @returns what was found, or undefined where there is nothing to choose
 */
export async function prepareVectorWidth(
  { folder, owner, tell }: {
    readonly folder: string;
    readonly owner: CacheOwner;
    readonly tell: (line: string) => void;
  },
  host: VectorWidthHost = thisHost(),
): Promise<VectorWidth | undefined> {
  if (host.get(VARIABLE) !== undefined || !(await host.isCandidate())) return undefined;
  const path = join(folder, FILE);
  let found = await readCacheFile(path, SCHEMA, owner, tell);
  if (found === undefined) {
    try {
      tell("trying lavapipe with 256 and 512 bits, once on this machine");
      const measured = { ...owner, ...await compareWidths(host) };
      await writeCacheFile(path, measured);
      found = measured; // only what is kept: the next run must give the same numbers
    } catch (error) {
      tell(`the vector width stays the driver's own: ${(error as Error).message}`);
    }
  }
  if (found?.width === 512) host.set(VARIABLE, "512");
  return found;
}

async function compareWidths(host: VectorWidthHost): Promise<Pick<VectorWidth, "width" | "ratio">> {
  const [narrow, wide] = WIDTHS;
  const { adapter, nanoseconds: first } = await host.probe(narrow);
  if (!/llvmpipe/i.test(adapter)) return { width: null, ratio: null };
  const { nanoseconds: other } = await host.probe(wide);
  if (first === null || other === null) return { width: narrow, ratio: null };
  if (other >= CLEARLY_FASTER * first) return { width: narrow, ratio: other / first };
  // 512 bits have won: once more, since a busy machine may have held up the others.
  const { nanoseconds: second } = await host.probe(narrow);
  const ratio = other / Math.min(first, second ?? first);
  return { width: ratio < CLEARLY_FASTER ? wide : narrow, ratio };
}

function thisHost(): VectorWidthHost {
  return {
    isCandidate: async () => {
      if (Deno.build.os !== "linux" || Deno.build.arch !== "x86_64") return false;
      return /^flags\s*:.*\bavx512f\b/m.test(await Deno.readTextFile("/proc/cpuinfo"));
    },
    get: (variable) => Deno.env.get(variable),
    set: (variable, value) => Deno.env.set(variable, value),
    probe: async (width) => {
      const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--quiet", new URL("vector_width_probe.ts", import.meta.url).href],
        env: { [VARIABLE]: String(width) },
        stdin: "null",
        stdout: "piped",
        stderr: "piped",
        signal: AbortSignal.timeout(LONGEST_MILLISECONDS),
      }).output();
      const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
      if (!success) throw new Error(`the probe failed: ${text(stderr).split("\n").at(-1)}`);
      return JSON.parse(text(stdout)) as ProbeResult; // printed by our own script
    },
  };
}
