// What every command of stilla shares as a process: where it prints, how signals stop it, how errors end it.
import { failureOf } from "./exit_codes.ts";
import type { Io } from "./io.ts";

/**
 * Runs a command; an error becomes one line and an exit code.
 *
 * @param args words after the program's name; with `--debug` an error shows its stack trace
 * @param io where to print, and what may stop the command
 * @param command what to run
 * @returns the exit code
 */
export async function exitCodeOf(
  args: readonly string[],
  io: Io,
  command: () => Promise<void>,
): Promise<number> {
  try {
    await command();
    return 0;
  } catch (error) {
    const { code, line } = failureOf(error, io.signal);
    io.stderr(`stilla: ${line}\n`);
    if (args.includes("--debug") && error instanceof Error) io.stderr(`${error.stack}\n`);
    return code;
  }
}

/**
 * Runs a command as this process, with its arguments, and ends the process.
 *
 * @param main the command
 */
export async function runProcess(
  main: (args: readonly string[], io: Io) => Promise<number>,
): Promise<never> {
  const controller = new AbortController();
  const stop = (signal: Deno.Signal, code: number) =>
    Deno.addSignalListener(signal, () => {
      if (controller.signal.aborted) Deno.exit(code); // the second time: at once
      controller.abort(signal);
    });
  stop("SIGINT", 130);
  if (Deno.build.os !== "windows") stop("SIGTERM", 143);
  Deno.exit(await main(Deno.args, processIo(controller.signal)));
}

function processIo(signal: AbortSignal): Io {
  const encoder = new TextEncoder();
  const writeAll = (stream: typeof Deno.stdout | typeof Deno.stderr) => (text: string) => {
    const bytes = encoder.encode(text);
    for (let at = 0; at < bytes.length;) at += stream.writeSync(bytes.subarray(at));
  };
  return {
    stdout: writeAll(Deno.stdout),
    stderr: writeAll(Deno.stderr),
    columns: Deno.stderr.isTerminal() ? Deno.consoleSize().columns || 80 : null,
    now: () => performance.now(),
    // `deno task` runs in the project's folder and keeps the user's own here.
    cwd: Deno.env.get("INIT_CWD") ?? Deno.cwd(),
    signal,
  };
}
