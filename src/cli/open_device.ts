// The device of a command: opened with the vector width and the tiles that were measured on this machine.
import { Device } from "../gpu/device.ts";
import { cacheFolder, cacheOwner } from "../run/cache_files.ts";
import { findTunedTiles } from "../run/tuning_cache.ts";
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
  const tell = (line: string) => io.stderr(`${line}\n`);
  await prepareVectorWidth({ folder, owner: await cacheOwner(), tell });
  return await Device.open({ findTiles: (adapter) => findTunedTiles(adapter, tell) });
}
