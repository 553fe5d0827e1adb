import assert from "node:assert/strict";
import { type Machine, setUp } from "../../src/cli/setup.ts";

/** A machine that records what is done to it. */
function machine(
  options: Partial<Pick<Machine, "os" | "isRoot">> & {
    readonly adapters: readonly boolean[]; // answers of one check after the other
    readonly apt?: boolean;
    readonly fails?: string;
  },
): { machine: Machine; ran: string[]; said: string[] } {
  const { os = "linux", isRoot = true, apt = true, fails, adapters } = options;
  const [ran, said, answers]: [string[], string[], boolean[]] = [[], [], [...adapters]];
  return {
    ran,
    said,
    machine: {
      os,
      isRoot,
      has: () => Promise.resolve(apt),
      run: (program, args) => {
        const line = [program, ...args].join(" ");
        ran.push(line);
        return Promise.resolve(fails !== undefined && line.startsWith(fails) ? 100 : 0);
      },
      check: () => Promise.resolve(answers.shift() === true ? 0 : 3),
      say: (text) => said.push(text),
    },
  };
}

Deno.test("setUp() installs nothing where an adapter answers", async () => {
  const { machine: there, ran, said } = machine({ adapters: [true] });
  assert.equal(await setUp(there), 0);
  assert.deepEqual(ran, ["deno ci --quiet"]);
  assert.deepEqual(said, []);
});

Deno.test("setUp() says what it installs, updates the lists first, and checks again", async () => {
  const { machine: bare, ran, said } = machine({ adapters: [false, true] });
  assert.equal(await setUp(bare), 0);
  assert.deepEqual(ran.slice(1), [
    "apt-get update",
    "apt-get install -y --no-install-recommends mesa-vulkan-drivers",
  ]);
  assert.match(said.join(), /installing mesa-vulkan-drivers/);
});

Deno.test("setUp() prints the one command where it may not install", async () => {
  const { machine: user, ran, said } = machine({ adapters: [false], isRoot: false });
  assert.equal(await setUp(user), 3);
  assert.equal(ran.length, 1);
  assert.match(said.join(), /sudo sh -c 'apt-get update && apt-get install -y .*drivers'$/);
});

Deno.test("setUp() never installs on macOS and Windows, or without apt", async () => {
  for (const os of ["darwin", "windows"] as const) {
    const { machine: other, ran } = machine({ adapters: [false], os });
    assert.equal(await setUp(other), 3);
    assert.equal(ran.length, 1);
  }
  const { machine: fedora, ran } = machine({ adapters: [false], apt: false });
  assert.equal(await setUp(fedora), 3);
  assert.equal(ran.length, 1);
});

Deno.test("setUp() tells what failed", async () => {
  const packages = machine({ adapters: [true], fails: "deno ci" });
  assert.equal(await setUp(packages.machine), 2);
  const lists = machine({ adapters: [false], fails: "apt-get update" });
  assert.equal(await setUp(lists.machine), 3);
  assert.match(lists.said.join(), /apt-get update failed \(100\)/);
  const useless = machine({ adapters: [false, false] });
  assert.equal(await setUp(useless.machine), 3);
  assert.match(useless.said.join(), /still no GPU adapter answers/);
});
