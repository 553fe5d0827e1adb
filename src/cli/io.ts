// The outside world of the command line, so that tests can stand in for it.

/** Where a command prints, what it runs in, and what stops it. */
export interface Io {
  /** Results: the table, or JSON. */
  readonly stdout: (text: string) => void;
  /** Progress, notes and errors. */
  readonly stderr: (text: string) => void;
  /** Width of the terminal that `stderr` writes to, `null` where it is a file or a pipe. */
  readonly columns: number | null;
  /** Milliseconds of a clock that only goes forward. */
  readonly now: () => number;
  /** Folder that relative paths start from. */
  readonly cwd: string;
  /** Aborted by the first signal, with the signal's name as the reason. */
  readonly signal: AbortSignal;
}
