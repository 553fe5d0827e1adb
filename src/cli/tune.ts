// Entry of `deno task tune`: arguments in, exit code out.
import type { Io } from "./io.ts";
import { exitCodeOf, runProcess } from "./process.ts";
import { parseTuneFlags, tuneCommand, tuneHelp } from "./tune_command.ts";

/**
 * Runs the command line.
 *
 * @param args words after the program's name
 * @param io where to print, and what may stop it
 * @returns the exit code
 */
export function tune(args: readonly string[], io: Io): Promise<number> {
  return exitCodeOf(args, io, async () => {
    const flags = parseTuneFlags(args);
    if (flags.help) io.stdout(tuneHelp());
    else await tuneCommand(flags, io);
  });
}

if (import.meta.main) await runProcess(tune);
