// Entry of `deno task distill`: arguments in, exit code out. Nothing but this room prints or exits.
import { distill } from "../distill/distill.ts";
import { VERSION } from "../distill/report.ts";
import { Device } from "../gpu/device.ts";
import { distillCommand, type Engine } from "./distill_command.ts";
import { failureOf } from "./exit_codes.ts";
import { helpText, parseFlags } from "./flags.ts";
import type { Io } from "./io.ts";

const ENGINE: Engine = { distill, open: () => Device.open() };

/**
 * Runs the command line.
 *
 * @param args words after the program's name
 * @param io where to print, and what may stop it
 * @param engine the engine, for tests
 * @returns the exit code
 */
export async function main(
  args: readonly string[],
  io: Io,
  engine: Engine = ENGINE,
): Promise<number> {
  try {
    const flags = parseFlags(args);
    if (flags.help) io.stdout(helpText());
    else if (flags.version) io.stdout(`${VERSION}\n`);
    else await distillCommand(flags, io, engine);
    return 0;
  } catch (error) {
    const { code, line } = failureOf(error, io.signal);
    io.stderr(`stilla: ${line}\n`);
    if (args.includes("--debug") && error instanceof Error) io.stderr(`${error.stack}\n`);
    return code;
  }
}

if (import.meta.main) {
  const controller = new AbortController();
  const stop = (signal: Deno.Signal, code: number) =>
    Deno.addSignalListener(signal, () => {
      if (controller.signal.aborted) Deno.exit(code); // the second time: at once
      controller.abort(signal);
    });
  stop("SIGINT", 130);
  if (Deno.build.os !== "windows") stop("SIGTERM", 143);
  const code = await main(Deno.args, processIo(controller.signal));
  Deno.exit(code);
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
