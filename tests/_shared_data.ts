// Where the real networks and data are: the folder `shared/data` beside the project, or STILLA_SHARED_DATA. Tests that
// need them call `sharedData`; where it is missing they fail in CI and are ignored, visibly, elsewhere.

const root = Deno.env.get("STILLA_SHARED_DATA") ??
  new URL("../../shared/data/", import.meta.url).pathname;

/** Path of a shared file. */
export function sharedData(path: string): string {
  return `${root.replace(/\/$/, "")}/${path}`;
}

/** For `ignore:` of a test: true where the data is missing, except in CI, where the test must run and fail. */
export const sharedDataMissing: boolean = !exists(root) && Deno.env.get("CI") === undefined;

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false;
  }
}
