// `deno task setup`: the locked npm packages, and a Vulkan driver where no GPU adapter answers. It imports no package,
// since none may be there yet, and is quick when nothing is missing.

/** The machine, so that a test can stand in for it. */
export interface Machine {
  readonly os: typeof Deno.build.os;
  /** Whether this process may install system packages. */
  readonly isRoot: boolean;
  /** Whether the program is there. */
  readonly has: (program: string) => Promise<boolean>;
  /** Runs a program with its output shown; returns its exit code. */
  readonly run: (program: string, args: readonly string[]) => Promise<number>;
  /** Runs one of our own scripts silently; returns its exit code. */
  readonly check: (script: string) => Promise<number>;
  /** Tells the user something. */
  readonly say: (text: string) => void;
}

const DRIVER = "mesa-vulkan-drivers";
const SILENT = { stdin: "null", stdout: "null", stderr: "null" } as const;
const APT_UPDATE = ["update"];
const APT_INSTALL = ["install", "-y", "--no-install-recommends", DRIVER];

/**
 * Sets up what is missing.
 *
 * @param machine where
 * @returns the exit code: 0 ready, 2 the packages cannot be had, 3 no adapter
 */
export async function setUp(machine: Machine): Promise<number> {
  const [packages, adapter] = await Promise.all([
    machine.run("deno", ["ci", "--quiet"]),
    hasAdapter(machine),
  ]);
  if (packages !== 0) {
    machine.say(`stilla: the locked npm packages could not be installed (deno ci: ${packages})`);
    return 2;
  }
  if (adapter) return 0;
  if (machine.os !== "linux") {
    machine.say("stilla: no GPU adapter was found; stilla installs no driver on this system");
    return 3;
  }
  const isDebian = await machine.has("apt-get");
  if (!isDebian || !machine.isRoot) {
    machine.say(`stilla: no GPU adapter was found. ${commandFor(isDebian)}`);
    return 3;
  }
  machine.say(`stilla: no GPU adapter was found; installing ${DRIVER} (software Vulkan) with apt`);
  // The update is not optional: a fresh image has no package lists.
  for (const args of [APT_UPDATE, APT_INSTALL]) {
    const code = await machine.run("apt-get", args);
    if (code !== 0) {
      machine.say(`stilla: apt-get ${args.join(" ")} failed (${code})`);
      return 3;
    }
  }
  if (await hasAdapter(machine)) return 0;
  machine.say(`stilla: ${DRIVER} is installed, but still no GPU adapter answers`);
  return 3;
}

async function hasAdapter(machine: Machine): Promise<boolean> {
  return await machine.check("adapter_check.ts") === 0;
}

function commandFor(isDebian: boolean): string {
  return isDebian
    ? `This installs one: sudo sh -c 'apt-get ${APT_UPDATE} && apt-get ${APT_INSTALL.join(" ")}'`
    : "Install a Vulkan driver with your system's package manager (Mesa's lavapipe runs without a GPU)";
}

if (import.meta.main) Deno.exit(await setUp(thisMachine()));

function thisMachine(): Machine {
  return {
    os: Deno.build.os,
    isRoot: Deno.build.os !== "windows" && Deno.uid() === 0,
    has: async (program) => {
      try {
        const { code } = await new Deno.Command(program, { args: ["--version"], ...SILENT })
          .output();
        return code === 0;
      } catch {
        return false; // not there
      }
    },
    run: async (program, args) => {
      const command = new Deno.Command(program === "deno" ? Deno.execPath() : program, {
        args: [...args],
        cwd: new URL("../..", import.meta.url),
        env: { DEBIAN_FRONTEND: "noninteractive" },
        stdin: "null",
        stdout: "inherit",
        stderr: "inherit",
      });
      return (await command.output()).code;
    },
    check: async (script) => {
      const path = new URL(script, import.meta.url).href;
      const args = ["run", "-A", "--quiet", path];
      return (await new Deno.Command(Deno.execPath(), { args, ...SILENT }).output()).code;
    },
    say: (text) => console.error(text),
  };
}
