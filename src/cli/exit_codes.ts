// What an error means for whoever started the program: one line and an exit code (the table of codes is in --help).
import { FormatError, GpuError, UnsupportedError } from "../core/errors.ts";
import { printable } from "../distill/report.ts";
import { UsageError } from "./flags.ts";

/** How a failed command ends. */
export interface Failure {
  readonly code: number;
  /** One line without control characters. */
  readonly line: string;
}

const BAD_INPUT = [
  UsageError,
  FormatError,
  UnsupportedError,
  RangeError,
  TypeError,
  SyntaxError,
  ...Object.values(Deno.errors),
];

/**
 * Turns an error into an exit code and one line.
 *
 * @param error what was thrown
 * @param signal the command's signal, whose reason names the signal that stopped it
 * @returns the code and the line
 */
export function failureOf(error: unknown, signal: AbortSignal): Failure {
  if (signal.aborted) {
    return signal.reason === "SIGTERM"
      ? { code: 143, line: "stopped by SIGTERM" }
      : { code: 130, line: "stopped by SIGINT" };
  }
  const message = error instanceof Error ? error.message : String(error);
  return { code: codeOf(error, message), line: printable(message.trim()) };
}

function codeOf(error: unknown, message: string): number {
  const { name, code } = error as { name?: string; code?: string };
  if (code === "ENOSPC" || code === "EDQUOT") return 5;
  if (error instanceof GpuError) return /out[- ]of[- ]memory/i.test(message) ? 5 : 3;
  // V8's words when memory for a typed array cannot be had.
  if (error instanceof RangeError && /allocation failed|Invalid typed array length/.test(message)) {
    return 5;
  }
  if (name === "DivergedError") return 4;
  return BAD_INPUT.some((type) => error instanceof type) ? 2 : 1;
}
