// Who is measured beside stilla, how each is started and listened to, and how to install what is missing.
import type { Row } from "../harness.ts";
import type { Machine } from "../result_file.ts";
import type { Job, Line } from "./protocol.ts";
import type { PeerResult } from "./table.ts";

/** A library to be compared with. */
export interface Peer {
  /** How to get it. */
  readonly install: string;
  /**
   * Command lines, to which the job's file is added; several where one library has several modes. `python` is the
   * interpreter that has PyTorch. Fails where the library is missing.
   */
  readonly commands: (python: string) => Promise<readonly Command[]>;
}

/** A program and its arguments. */
export type Command = readonly [program: string, ...args: string[]];

/** Everything that a peer said. */
export interface Said extends PeerResult {
  /** What stilla runs on; its peers do not say. */
  readonly machine: Machine | undefined;
  readonly expected: Job["expected"];
}

const here = (path: string) => new URL(path, import.meta.url).pathname;
const RUN = ["run", "--quiet", "--allow-all"] as const;
const npmPeer = (module: string): Peer => ({
  install: "run `deno ci` in bench/peers/npm",
  commands: () =>
    Promise.resolve([
      [Deno.execPath(), ...RUN, "--config", here("npm/deno.json"), here(`npm/${module}`)],
    ]),
});

/** stilla as a peer. */
export const STILLA: Command = [Deno.execPath(), ...RUN, here("stilla.ts")];

/** Every peer by the name it is asked for, in the order they run. */
export const PEERS: Readonly<Record<string, Peer>> = {
  torch: {
    install:
      "apt-get install python3-torch, or name an interpreter that has PyTorch by --python FILE",
    commands: async (python) => {
      // -B: no folders of compiled modules in the source tree.
      const command: Command = [python, "-B", here("pytorch/peer.py")];
      let modes = "[]";
      await run([...command, "modes"], (line) => modes = line);
      return (JSON.parse(modes) as string[]).map((mode) => [...command, mode]); // a list of names
    },
  },
  jax: npmPeer("jax.ts"),
  tfjs: npmPeer("tfjs.ts"),
  onnxruntime: {
    install: "deno task setup",
    commands: () => Promise.resolve([[Deno.execPath(), ...RUN, here("onnxruntime.ts")]]),
  },
};

/**
 * Has a peer do the job and collects what it says. What it said before it failed is kept.
 *
 * @param command its command line
 * @param job what to do
 * @param onRow called with every figure as it comes
 * @returns figures, gaps and expectations
 * @throws Error with the end of what it wrote to standard error when it did not even start
 */
export async function listen(
  command: Command,
  job: Job,
  onRow: (peer: string, row: Row) => void,
): Promise<Said> {
  let peer = "", machine: Machine | undefined;
  const rows: Row[] = [];
  const missing = new Map<string, string>();
  const expected: Record<string, readonly number[]> = {};
  const file = `${job.folder}/job.json`;
  await Deno.writeTextFile(file, JSON.stringify(job));
  try {
    await run([...command, file], (text) => {
      const line = JSON.parse(text) as Line;
      if ("peer" in line) peer = line.peer;
      if ("machine" in line) machine = line.machine;
      if ("expected" in line) Object.assign(expected, line.expected);
      if ("missing" in line) missing.set(line.case, line.missing);
      if (!("row" in line)) return;
      rows.push(line.row);
      onRow(peer, line.row);
    });
  } catch (error) {
    if (peer === "") throw error;
    missing.set("everything else", (error as Error).message);
  }
  return { peer, rows, missing, machine, expected };
}

/** Runs a command; the lines of JSON among those it prints go to `onLine` as they come. */
async function run([program, ...args]: Command, onLine: (line: string) => void): Promise<void> {
  const child = new Deno.Command(program, { args, stdout: "piped", stderr: "piped" }).spawn();
  const errors = new Response(child.stderr).text();
  let rest = "";
  for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() ?? "";
    // Whatever else a library prints is not ours to read.
    for (const line of lines) if (/^[[{]/.test(line)) onLine(line);
  }
  const { success, code } = await child.status;
  const lastLine = (await errors).trim().split("\n").at(-1);
  if (!success) throw new Error(lastLine || `${program} ended with code ${code}`);
}
