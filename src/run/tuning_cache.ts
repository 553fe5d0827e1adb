// Measured tiles on disk: one file for each adapter, `tuning-<adapter>.json`.
import { join } from "node:path";
import { z } from "zod";
import type { TileTable } from "../../kernels/kernel.ts";
import type { AdapterDescription } from "../gpu/adapter.ts";
import { tileTable, type TunedTile } from "../gpu/tuner.ts";
import {
  cacheFolder,
  type CacheOwner,
  cacheOwner,
  readCacheFile,
  writeCacheFile,
} from "./cache_files.ts";

/** Content of the file. */
export interface Tuning extends CacheOwner {
  readonly adapter: AdapterDescription;
  readonly tiles: readonly TunedTile[];
}

const NANOSECONDS = z.number().nonnegative();

const SCHEMA: z.ZodType<Tuning> = z.strictObject({
  stilla: z.string(),
  machine: z.string(),
  adapter: z.strictObject({
    name: z.string(),
    family: z.enum(["software", "gpu"]),
    subgroupSize: z.int(),
  }),
  tiles: z.array(z.strictObject({
    key: z.string(),
    defaultTile: z.string(),
    defaultNanoseconds: NANOSECONDS,
    tile: z.string(),
    nanoseconds: NANOSECONDS,
    refused: z.array(z.string()),
  })),
});

/**
 * Finds the tiles that `deno task tune` measured on an adapter, in the user's cache folder.
 *
 * @example
 * ```ts
 * import { Device, findTunedTiles } from "@stilla/stilla";
 *
 * using device = await Device.open({ findTiles: findTunedTiles });
 * ```
 *
 * @param adapter the adapter
 * @param tell is told in one line why a file that is there is not used
 * @returns the tiles, or undefined when there are none
 */
export async function findTunedTiles(
  adapter: AdapterDescription,
  tell: (line: string) => void = () => {},
): Promise<TileTable | undefined> {
  const folder = cacheFolder((name) => Deno.env.get(name));
  if (folder === undefined) return undefined;
  const tuning = await readTuning(folder, adapter, await cacheOwner(), tell);
  return tuning && tileTable(tuning.tiles);
}

/**
 * Reads what was measured on an adapter.
 *
 * @param folder of the cache
 * @param adapter the adapter
 * @param owner version and machine it must have been measured with
 * @param tell is told in one line why a file that is there is not used
 * @returns the measurements, or undefined when there are none
 */
export async function readTuning(
  folder: string,
  adapter: AdapterDescription,
  owner: CacheOwner,
  tell: (line: string) => void,
): Promise<Tuning | undefined> {
  const path = tuningPath(folder, adapter);
  const tuning = await readCacheFile(path, SCHEMA, owner, tell);
  if (tuning === undefined) return undefined;
  const { name, family, subgroupSize } = tuning.adapter;
  const isSame = name === adapter.name && family === adapter.family &&
    subgroupSize === adapter.subgroupSize;
  if (!isSame) tell(`${path}: ignored, it is of another adapter`);
  return isSame ? tuning : undefined;
}

/**
 * Adds measurements to those on disk.
 *
 * @param folder of the cache
 * @param tuning what was measured; what was known of other kernels and shapes is kept
 * @returns path of the file
 */
export async function addTuning(folder: string, tuning: Tuning): Promise<string> {
  const path = tuningPath(folder, tuning.adapter);
  const earlier = await readTuning(folder, tuning.adapter, tuning, () => {});
  const tiles = new Map<string, TunedTile>();
  for (const tile of [...earlier?.tiles ?? [], ...tuning.tiles]) tiles.set(tile.key, tile);
  const whole: Tuning = { ...tuning, tiles: [...tiles.values()] };
  await writeCacheFile(path, whole);
  return path;
}

function tuningPath(folder: string, { name, family }: AdapterDescription): string {
  const slug = `${name} ${family}`.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 100);
  return join(folder, `tuning-${slug.replace(/^-|-$/g, "")}.json`);
}
