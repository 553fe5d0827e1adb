// Whether a worker may be started without asking the user anything.

/**
 * Whether the source of a worker may be read: starting one from a file would otherwise ask for the permission.
 *
 * @param source the worker's module
 * @returns true for modules that do not lie in a file
 */
export function mayStartWorker(source: URL): boolean {
  return source.protocol !== "file:" ||
    Deno.permissions.querySync({ name: "read", path: source }).state === "granted";
}
