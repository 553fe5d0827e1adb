// Settings that Deno's WebGPU and Mesa's lavapipe read once, before the first adapter of a process. A value the user
// has set is never changed, and without the permission nothing is touched.

/**
 * Prepares the process for its first `requestAdapter()`: on Linux the Vulkan backend (Deno otherwise probes OpenGL too,
 * which is slower to start and lacks features), and for Mesa a runtime folder so that it does not warn.
 */
export function prepareEnvironment(): void {
  if (Deno.build.os !== "linux") return;
  setUnlessSet("DENO_WEBGPU_BACKEND", "vulkan");
  setUnlessSet("XDG_RUNTIME_DIR", "/tmp");
}

/** Sets an environment variable unless it is set or may not be touched. */
export function setUnlessSet(variable: string, value: string): void {
  const { state } = Deno.permissions.querySync({ name: "env", variable });
  if (state === "granted" && Deno.env.get(variable) === undefined) Deno.env.set(variable, value);
}
