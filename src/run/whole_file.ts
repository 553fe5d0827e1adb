// A text file that appears whole or not at all: written and fsynced beside its place, then renamed (Pillai et al., OSDI
// 2014: rename without fsync is not safe).
import { dirname } from "node:path";

/**
 * Writes a text file, replacing an earlier one.
 *
 * @param path the file; folders above it are made
 * @param text its content
 */
export async function writeWholeFile(path: string, text: string): Promise<void> {
  const folder = dirname(path);
  await Deno.mkdir(folder, { recursive: true });
  const stage = await Deno.makeTempFile({ dir: folder, prefix: ".stilla-" });
  try {
    // makeTempFile gives 0600; the file is as readable as any other.
    if (Deno.build.os !== "windows") await Deno.chmod(stage, 0o666 & ~Deno.umask());
    const bytes = new TextEncoder().encode(text);
    using handle = await Deno.open(stage, { write: true });
    for (let at = 0; at < bytes.length;) at += await handle.write(bytes.subarray(at));
    await handle.sync();
    await Deno.rename(stage, path);
  } catch (error) {
    await Deno.remove(stage).catch(() => {});
    throw error;
  }
}
