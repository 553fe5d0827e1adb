// Entry of `deno task compare`: arguments in, exit code out.
import { distill } from "../distill/distill.ts";
import { VERSION } from "../distill/report.ts";
import { compareCommand } from "./compare_command.ts";
import { compareHelp, parseCompareFlags } from "./compare_flags.ts";
import type { Engine } from "./distill_command.ts";
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
export function compare(
  args: readonly string[],
  io: Io,
  engine: Omit<Engine, "plan"> = { distill, open: () => openDevice(io) },
): Promise<number> {
  return exitCodeOf(args, io, async () => {
    const flags = parseCompareFlags(args);
    if (flags.help) io.stdout(compareHelp());
    else if (flags.version) io.stdout(`${VERSION}\n`);
    else await compareCommand(flags, io, engine);
  });
}

if (import.meta.main) await runProcess(compare);
