// `deno task bench:peers [--data FOLDER] [--samples N] [--only PEERS] [--topics LIST] [--threads N] [--python FILE]
// [--out FILE]`: the same work in stilla and in PyTorch, jax-js, TensorFlow.js and ONNX Runtime, one after another on
// one machine, each in a process of its own and checked before it is timed. All of them run in this process's
// environment, so LP_NATIVE_VECTOR_WIDTH and the like hold for all who use WebGPU. Prints a table of ratios and merges
// the figures into bench/results.
import { parseArgs } from "node:util";
import { UsageError } from "../src/cli/flags.ts";
import { prepareEnvironment } from "../src/gpu/environment.ts";
import { makeJob, type Topic, TOPICS } from "./peers/job.ts";
import { listen, PEERS, type Said, STILLA } from "./peers/peers.ts";
import type { Job } from "./peers/protocol.ts";
import { missingLines, peerTable } from "./peers/table.ts";
import type { Row } from "./harness.ts";
import { type Machine, writeResults } from "./result_file.ts";

/** The command line. */
export interface Arguments {
  /** Folder of ResNet-20 and CIFAR-10. */
  readonly data: string | undefined;
  /** Timings of each figure. */
  readonly samples: number;
  /** Names of {@linkcode PEERS}. */
  readonly peers: readonly string[];
  readonly topics: readonly Topic[];
  /** Threads of peers that compute on the processor. */
  readonly threads: number;
  /** Interpreter that has PyTorch. */
  readonly python: string;
  /** File of results; by default one a day and adapter. */
  readonly out: string | undefined;
}

/**
 * Reads the command line.
 *
 * @param args words after the program's name
 * @returns the options
 * @throws UsageError for an unknown option or a value that does not fit
 */
export function parseArguments(args: readonly string[]): Arguments {
  const options = {
    data: { type: "string" },
    samples: { type: "string", default: "11" },
    only: { type: "string", default: Object.keys(PEERS).join() },
    topics: { type: "string", default: Object.keys(TOPICS).join() },
    threads: { type: "string", default: "2" },
    python: { type: "string", default: "/usr/bin/python3" },
    out: { type: "string" },
  } as const;
  const values = (() => {
    try {
      return parseArgs({ args: [...args], options }).values;
    } catch (error) {
      throw new UsageError((error as Error).message.split("\n")[0]!);
    }
  })();
  return {
    data: values.data,
    samples: positive("samples", values.samples),
    peers: listOf("only", values.only, Object.keys(PEERS)),
    topics: listOf("topics", values.topics, Object.keys(TOPICS) as Topic[]), // its keys are the topics
    threads: positive("threads", values.threads),
    python: values.python,
    out: values.out,
  };
}

function positive(option: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new UsageError(`--${option}: found "${text}", expected an integer of at least 1`);
}

function listOf<T extends string>(option: string, text: string, known: readonly T[]): T[] {
  return text.split(",").map((word) => {
    const name = known.find((candidate) => candidate === word);
    if (name !== undefined) return name;
    throw new UsageError(`--${option}: found "${word}", expected some of ${known.join(",")}`);
  });
}

/** Runnable processes beside this one from which on figures are not to be trusted. */
const MOST_LOAD = 0.5;

/** Runs everybody and prints what came of it. */
async function comparePeers({ peers, python, out, ...options }: Arguments): Promise<void> {
  const { data, topics } = options;
  const waiting = data === undefined ? topics.filter((topic) => TOPICS[topic]) : [];
  if (waiting.length > 0) {
    const files = "resnet20.onnx and the images of CIFAR-10";
    console.log(`skipped: ${waiting.join(", ")}: needs --data FOLDER with ${files}`);
    if (waiting.length === topics.length) return;
  }
  const load = Deno.loadavg()[0]!; // of the last minute
  if (load > MOST_LOAD) {
    console.log(`the machine is busy (load ${load.toFixed(1)}): ratios will be off`);
  }
  prepareEnvironment(); // the peers inherit it
  const folder = await Deno.makeTempDir({ prefix: "stilla-peers-" });
  try {
    const job = makeJob({ ...options, folder });
    const { own, machine } = await runStilla(job);
    console.log(`adapter: ${machine.adapter}; ${machine.cpu.model} x ${machine.cpu.count}`);
    const results: [Said, ...Said[]] = [own];
    const absent: string[] = [];
    for (const name of peers) {
      const peer = PEERS[name]!; // parseArguments() knows all of them
      try {
        for (const command of await peer.commands(python)) {
          results.push(await listen(command, { ...job, expected: own.expected }, showRow));
        }
      } catch (error) {
        const reason = (error as Error).message;
        absent.push(`${name}: not available (${reason}); to install: ${peer.install}`);
      }
    }
    console.log(`\n${peerTable(results)}\n`);
    for (const line of [...absent, ...missingLines(results)]) console.log(line);
    const measurements = results.flatMap(({ peer, rows }) =>
      rows.map((row) => ({ subject: `peers/${peer}`, ...row }))
    );
    console.log(`written: ${writeResults(measurements, machine, out)}`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** stilla goes first: the others are checked against it. A wrong answer of its own ends the comparison. */
async function runStilla(job: Job): Promise<{ own: Said; machine: Machine }> {
  const own = await listen(STILLA, job, showRow);
  for (const [name, reason] of own.missing) throw new Error(`stilla: ${name}: ${reason}`);
  if (own.machine === undefined) throw new Error("stilla did not say what it runs on");
  return { own, machine: own.machine };
}

function showRow(peer: string, { case: name, median, unit }: Row): void {
  console.log(`${peer}: ${name}: ${median.toPrecision(3)} ${unit}`);
}

if (import.meta.main) {
  try {
    await comparePeers(parseArguments(Deno.args));
  } catch (error) {
    console.error((error as Error).message);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}
