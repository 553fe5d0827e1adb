import assert from "node:assert/strict";

const root = new URL("../../", import.meta.url).pathname;

Deno.test("prepareEnvironment() leaves what the user has set", async () => {
  const script = `import { prepareEnvironment } from "./src/gpu/environment.ts";
prepareEnvironment();
const names = ["DENO_WEBGPU_BACKEND", "XDG_RUNTIME_DIR"];
console.log(JSON.stringify(names.map((name) => Deno.env.get(name) ?? null)));`;
  const set = { DENO_WEBGPU_BACKEND: "gl", XDG_RUNTIME_DIR: "/elsewhere" };
  assert.deepEqual(JSON.parse(await evaluate(script, ["-A"], set)), ["gl", "/elsewhere"]);
  const unset = JSON.parse(await evaluate(script, ["-A"], {}));
  const linux = Deno.build.os === "linux";
  assert.deepEqual(unset, linux ? ["vulkan", "/tmp"] : [null, null]);
});

Deno.test("prepareEnvironment() touches nothing without permission", async () => {
  const script = `import { prepareEnvironment } from "./src/gpu/environment.ts";
prepareEnvironment();
console.log("done");`;
  assert.equal(await evaluate(script, [], {}), "done");
});

Deno.test("importing the library asks for no permission", async () => {
  const script = `import * as stilla from "./mod.ts"; console.log(typeof stilla.distill);`;
  assert.equal(await evaluate(script, [], {}), "function");
});

/** Runs a module in a child process with the given permissions and environment. */
async function evaluate(
  script: string,
  permissions: readonly string[],
  env: Record<string, string>,
): Promise<string> {
  const kept: Record<string, string> = {};
  for (const name of ["HOME", "PATH", "DENO_DIR"]) {
    const value = Deno.env.get(name);
    if (value !== undefined) kept[name] = value;
  }
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--cached-only", "--no-check", ...permissions, "-"],
    cwd: root,
    env: { ...kept, ...env },
    clearEnv: true,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(script));
  await writer.close();
  const { success, stdout, stderr } = await child.output();
  assert(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout).trim();
}
