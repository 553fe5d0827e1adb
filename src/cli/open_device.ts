// The device of a command: opened with the vector width and the tiles that were measured on this machine.
import { Device } from "../gpu/device.ts";
import { cacheFolder, cacheOwner } from "../run/cache_files.ts";
import { readTuning } from "../run/tuning_cache.ts";
import { tileTable } from "../gpu/tuner.ts";
import type { Io } from "./io.ts";
import { prepareVectorWidth } from "./vector_width.ts";

/**
 * Opens the device.
 *
 * @param io where to say that a measurement on disk is not used
 * @returns the device; without measurements it is a plain one
 */
export async function openDevice(io: Io): Promise<Device> {
  const folder = cacheFolder((name) => Deno.env.get(name));
  if (folder === undefined) return await Device.open();
  const owner = await cacheOwner();
  const tell = (line: string) => io.stderr(`${line}\n`);
  await prepareVectorWidth({ folder, owner, tell });
  return await Device.open({
    findTiles: async (adapter) => {
      const tuning = await readTuning(folder, adapter, owner, tell);
      return tuning && tileTable(tuning.tiles);
    },
  });
}
