// How far a run is: one line that rewrites itself on a terminal, a plain line now and then elsewhere.
import type { Progress } from "../distill/distill.ts";
import { printable } from "../distill/report.ts";
import type { Io } from "./io.ts";

/** A terminal's line is rewritten at most this often. */
const TERMINAL_INTERVAL = 100;
/** Elsewhere a line comes when the stage changes, and this often in between. */
const PLAIN_INTERVAL = 5000;
const BAR_WIDTH = 20;

/** Shows the progress of one or several runs. */
export class ProgressPrinter {
  readonly #io: Io;
  #stage = "";
  #stageStart = 0;
  #done = 0;
  #lastPrint = -Infinity;
  #lineOpen = false;
  /** Put before every line: which of several runs this is. */
  prefix = "";

  /** @param io where to print */
  constructor(io: Io) {
    this.#io = io;
  }

  /**
   * Shows where the run is, unless something was shown a moment ago.
   *
   * @param progress stage, unit and steps done
   */
  update(progress: Progress): void {
    const now = this.#io.now();
    const stage = `${this.prefix}${progress.stage}`;
    // A method may train in two stages of its name: then the count begins anew.
    const changed = stage !== this.#stage || progress.done < this.#done;
    this.#done = progress.done;
    if (changed) [this.#stage, this.#stageStart] = [stage, now];
    const interval = this.#io.columns === null ? PLAIN_INTERVAL : TERMINAL_INTERVAL;
    if (!changed && now - this.#lastPrint < interval) return;
    this.#lastPrint = now;
    const line = this.#lineOf(progress, now - this.#stageStart);
    if (this.#io.columns === null) {
      this.#io.stderr(`${line}\n`);
    } else {
      this.#io.stderr(`\r\x1b[K${line.slice(0, Math.max(1, this.#io.columns - 1))}`);
      this.#lineOpen = true;
    }
  }

  /**
   * Prints a line that stays.
   *
   * @param text the line
   */
  note(text: string): void {
    this.clear();
    this.#io.stderr(`${printable(`${this.prefix}${text}`)}\n`);
  }

  /** Takes the rewriting line away. */
  clear(): void {
    if (this.#lineOpen) this.#io.stderr("\r\x1b[K");
    this.#lineOpen = false;
  }

  #lineOf({ stage, unit, done, total, loss }: Progress, elapsed: number): string {
    const part = total > 0 ? Math.min(1, Math.max(0, done / total)) : 0;
    const filled = Math.round(part * BAR_WIDTH);
    const bar = this.#io.columns === null
      ? ""
      : `${"█".repeat(filled)}${"░".repeat(BAR_WIDTH - filled)}`;
    const words = [
      `${this.prefix}${stage}`,
      bar,
      `${done}/${total}`,
      unit ?? "",
      loss === undefined ? "" : `loss ${loss.toPrecision(3)}`,
      done > 0 && done < total ? `${duration((elapsed * (total - done)) / done)} left` : "",
    ];
    return printable(words.filter((word) => word !== "").join("  "));
  }
}

/**
 * A span of time for people.
 *
 * @param milliseconds the span
 * @returns for example `2m05s`
 */
export function duration(milliseconds: number): string {
  const seconds = Math.ceil(milliseconds / 1000);
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${pad(seconds % 60)}s`;
  return `${Math.floor(seconds / 3600)}h${pad(Math.floor(seconds / 60) % 60)}m`;
}

function pad(value: number): string {
  return String(value).padStart(2, "0");
}
