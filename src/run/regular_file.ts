// Opening of files a user names: only regular files are read, and whatever the system refuses is said in one line.
import { FormatError } from "../core/errors.ts";

/**
 * Reads a whole file, but no folder, pipe or device.
 *
 * @param path the file
 * @returns its bytes
 * @throws FormatError when it is missing, may not be read, or is not a regular file
 */
export async function readRegularFile(path: string): Promise<Uint8Array<ArrayBuffer>> {
  try {
    const info = await Deno.stat(path); // before opening: opening a pipe would wait for its writer
    if (info.isDirectory) throw new FormatError(path, "", "is a folder, expected a file");
    if (!info.isFile) throw new FormatError(path, "", "is not a regular file");
    using file = await Deno.open(path);
    // Reading into one allocation is several times faster than Deno.readFile for large files.
    const bytes = new Uint8Array(info.size);
    let at = 0;
    while (at < bytes.length) {
      const count = await file.read(bytes.subarray(at));
      if (count === null) break;
      at += count;
    }
    return at === bytes.length ? bytes : bytes.slice(0, at);
  } catch (error) {
    throw unreadable(path, error);
  }
}

/** The system's refusals in one line that names the file. */
function unreadable(path: string, error: unknown): unknown {
  if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) {
    return new FormatError(path, "", "no such file or folder");
  }
  if (error instanceof Deno.errors.PermissionDenied) {
    return new FormatError(path, "", "may not be read (permission denied)");
  }
  return error;
}
