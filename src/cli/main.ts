// Entry of `deno task distill`: arguments in, exit code out. Nothing but this room prints or exits.
import { distill } from "../distill/distill.ts";
import { planRun } from "../distill/dry_run.ts";
import { VERSION } from "../distill/report.ts";
import { distillCommand, type Engine } from "./distill_command.ts";
import { helpText, parseFlags } from "./flags.ts";
import type { Io } from "./io.ts";
import { openDevice } from "./open_device.ts";
import { exitCodeOf, runProcess } from "./process.ts";

/**
 * Runs the command line.
 *
 * @param args words after the program's name
 * @param io where to print, and what may stop it
 * @param engine the engine, for tests
 * @returns the exit code
 */
export function main(
  args: readonly string[],
  io: Io,
  engine: Engine = { distill, plan: planRun, open: () => openDevice(io) },
): Promise<number> {
  return exitCodeOf(args, io, async () => {
    const flags = parseFlags(args);
    if (flags.help) io.stdout(helpText());
    else if (flags.version) io.stdout(`${VERSION}\n`);
    else await distillCommand(flags, io, engine);
  });
}

if (import.meta.main) await runProcess(main);
