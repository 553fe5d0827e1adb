// `deno task tune`: measures the tiles of a network's kernels on this machine, shows them and keeps them for later runs.
import { resolve } from "node:path";
import { VERSION } from "../distill/report.ts";
import { Device } from "../gpu/device.ts";
import { type TunedTile, tuneTiles } from "../gpu/tuner.ts";
import { cacheFolder, cacheOwner, clearCache, type ReadVariable } from "../run/cache_files.ts";
import { readModel } from "../run/input_files.ts";
import { mnistExample } from "../run/mnist_example.ts";
import { integerTiles } from "../run/integer_tiles.ts";
import { networkTiles } from "../run/network_tiles.ts";
import { addTuning } from "../run/tuning_cache.ts";
import { UsageError } from "./flags.ts";
import type { Io } from "./io.ts";
import { prepareVectorWidth, type VectorWidth } from "./vector_width.ts";

/** Flags as given. */
export interface TuneFlags {
  readonly help: boolean;
  readonly clear: boolean;
  readonly integers: boolean;
  readonly debug: boolean;
  readonly model: string | undefined;
  readonly batchSize: number;
}

const DEFAULT_BATCH = 64;
const LARGEST_BATCH = 4096;

/** Flag, placeholder of its value, and what it does. */
const FLAGS: readonly (readonly [name: string, value: string | null, about: string])[] = [
  ["model", "FILE", "ONNX network whose kernels are tuned (default the built-in example)"],
  ["batch-size", "N", `inputs of a training step (default ${DEFAULT_BATCH})`],
  ["integers", null, "tune the kernels of the student's IntegerNetwork too"],
  ["clear", null, "forget everything that was measured, and stop"],
  ["help", null, "show this and stop"],
  ["debug", null, "show the stack trace of an error"],
];

/**
 * Reads the command line.
 *
 * @param args words after the program's name
 * @returns the flags
 * @throws UsageError for an unknown flag, a missing value or a value of the wrong kind
 */
export function parseTuneFlags(args: readonly string[]): TuneFlags {
  const given = new Map<string, string>();
  for (let i = 0; i < args.length; i++) {
    const [, word = "", inline] = /^--([a-z-]+)(?:=(.*))?$/s.exec(args[i]!) ?? [];
    const name = args[i] === "-h" ? "help" : word;
    const flag = FLAGS.find(([known]) => known === name);
    if (flag === undefined) throw new UsageError(`${args[i]}: unknown flag, --help shows them all`);
    const [, placeholder] = flag;
    if (given.has(name)) throw new UsageError(`--${name}: given twice`);
    if (placeholder === null) {
      if (inline !== undefined) throw new UsageError(`--${name}: takes no value`);
      given.set(name, "");
      continue;
    }
    const value = inline ?? args[++i];
    if (value === undefined || (inline === undefined && value.startsWith("--"))) {
      throw new UsageError(`--${name}: needs a value, --${name} ${placeholder}`);
    }
    given.set(name, value);
  }
  return {
    help: given.has("help"),
    clear: given.has("clear"),
    integers: given.has("integers"),
    debug: given.has("debug"),
    model: given.get("model"),
    batchSize: batchSize(given.get("batch-size") ?? String(DEFAULT_BATCH)),
  };
}

function batchSize(word: string): number {
  const value = /^\d+$/.test(word) ? Number(word) : NaN;
  if (value >= 1 && value <= LARGEST_BATCH) return value;
  throw new UsageError(
    `--batch-size: found ${JSON.stringify(word)}, expected an integer from 1 to ${LARGEST_BATCH}`,
  );
}

/** @returns the text of `--help` */
export function tuneHelp(): string {
  const rows = FLAGS.map(([name, value, about]) => [`--${name} ${value ?? ""}`.trim(), about]);
  return [
    `stilla ${VERSION}: measures which tiles of its kernels are the fastest on this machine.`,
    "",
    "usage: deno task tune [flags]",
    "What it finds is kept in the user's cache folder; deno task distill uses it.",
    "Run it while the machine is idle: a busy one hides small gains.",
    "",
    ...rows.map(([flag, about]) => `  ${flag!.padEnd(16)}${about}`),
    "",
  ].join("\n");
}

/**
 * Runs the command.
 *
 * @param flags the command line
 * @param io where to print, and what may stop it
 * @param variable reads an environment variable
 */
export async function tuneCommand(
  flags: TuneFlags,
  io: Io,
  variable: ReadVariable = (name) => Deno.env.get(name),
): Promise<void> {
  const folder = cacheFolder(variable);
  const tell = (line: string) => io.stderr(`${line}\n`);
  if (flags.clear) {
    const removed = folder === undefined ? [] : await clearCache(folder);
    for (const path of removed) tell(`removed ${path}`);
    if (removed.length === 0) tell("nothing was kept");
    return;
  }
  const path = flags.model === undefined ? mnistExample().model : resolve(io.cwd, flags.model);
  const { graph } = await readModel(path);
  const owner = await cacheOwner();
  if (folder !== undefined) {
    const width = await prepareVectorWidth({ folder, owner, tell });
    if (width?.ratio) io.stdout(`${vectorWidthLine(width.ratio, width.width)}\n\n`);
  }
  using device = await Device.open();
  const { adapterName: name, target: { family, subgroupSize } } = device;
  const choices = [
    ...networkTiles(device, graph, flags.batchSize),
    ...flags.integers ? integerTiles(device, graph) : [],
  ];
  tell(`${name}: ${choices.length} kernels of ${path} at batch size ${flags.batchSize}`);
  const tiles = await tuneTiles(device, choices, {
    signal: io.signal,
    onTuned: ({ key }, done) => tell(`${done}/${choices.length} ${key}`),
  });
  io.stdout(`${tuningTable(tiles)}\n`);
  if (folder === undefined) return tell("not kept: there is no cache folder (HOME is not set)");
  const adapter = { name, family, subgroupSize };
  tell(`wrote ${await addTuning(folder, { ...owner, adapter, tiles })}`);
}

function vectorWidthLine(ratio: number, width: VectorWidth["width"]): string {
  return `vector width: 512 bits take ${
    ratio.toFixed(2)
  } of the time of 256 bits; ${width} is used`;
}

/** A line for each kernel and the sum of all. */
function tuningTable(tiles: readonly TunedTile[]): string {
  const microseconds = (nanoseconds: number) => (nanoseconds / 1000).toFixed(0);
  const sum = (time: (tile: TunedTile) => number) =>
    tiles.reduce((total, tile) => total + time(tile), 0);
  const row = (
    name: string,
    [usual, best]: readonly [string, string],
    [before, after]: readonly [number, number],
  ) => [
    name,
    usual,
    microseconds(before),
    best,
    microseconds(after),
    `${(100 * (1 - after / Math.max(before, 1))).toFixed(1)} %`,
  ];
  const rows = [
    ["kernel", "default tile", "us", "best tile", "us", "gain"],
    ...tiles.map((tile) =>
      row(
        tile.key,
        [tile.defaultTile, tile.tile === tile.defaultTile ? "the same" : tile.tile],
        [tile.defaultNanoseconds, tile.nanoseconds],
      )
    ),
    row("all", ["", ""], [sum((tile) => tile.defaultNanoseconds), sum((tile) => tile.nanoseconds)]),
  ];
  const widths = rows[0]!.map((_, column) =>
    Math.max(...rows.map((cells) => cells[column]!.length))
  );
  const isText = (column: number) => column === 0 || column === 1 || column === 3;
  const refused = tiles.flatMap(({ key, refused }) =>
    refused.map((tile) => `\nrefused, wrong on this adapter: ${key}, ${tile}`)
  );
  return rows.map((cells) =>
    cells.map((cell, column) =>
      isText(column) ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)
    ).join("  ").trimEnd()
  ).join("\n") + refused.join("");
}
