import assert from "node:assert/strict";
import type { Io } from "../../src/cli/io.ts";
import { duration, ProgressPrinter } from "../../src/cli/progress.ts";

function recorder(columns: number | null): { io: Io; clock: { now: number }; lines: string[] } {
  const lines: string[] = [];
  const clock = { now: 0 };
  const io: Io = {
    stdout: () => assert.fail("progress belongs on standard error"),
    stderr: (text) => lines.push(text),
    columns,
    now: () => clock.now,
    cwd: "/",
    signal: new AbortController().signal,
  };
  return { io, clock, lines };
}

Deno.test("ProgressPrinter prints plain lines at a change of stage and every five seconds", () => {
  const { io, clock, lines } = recorder(null);
  const printer = new ProgressPrinter(io);
  for (let step = 0; step <= 100; step++) {
    clock.now = step * 100;
    printer.update({ stage: "distil", unit: "conv1", done: step, total: 200, loss: 0.25 });
  }
  printer.update({ stage: "evaluate", done: 0, total: 10 });
  assert.deepEqual(lines, [
    "distil  0/200  conv1  loss 0.250\n",
    "distil  50/200  conv1  loss 0.250  15s left\n",
    "distil  100/200  conv1  loss 0.250  10s left\n",
    "evaluate  0/10\n",
  ]);
});

Deno.test("ProgressPrinter counts the time of a second stage of the same name by itself", () => {
  const { io, clock, lines } = recorder(null);
  const printer = new ProgressPrinter(io);
  for (const [now, done] of [[0, 0], [90_000, 9], [90_000, 0], [95_000, 5]] as const) {
    clock.now = now;
    printer.update({ stage: "brecq", done, total: 10 });
  }
  assert.deepEqual(lines, [
    "brecq  0/10\n",
    "brecq  9/10  10s left\n",
    "brecq  0/10\n",
    "brecq  5/10  5s left\n",
  ]);
});

Deno.test("ProgressPrinter rewrites one line on a terminal, never wider than it", () => {
  const { io, clock, lines } = recorder(30);
  const printer = new ProgressPrinter(io);
  printer.update({ stage: "distil", unit: "a".repeat(99), done: 5, total: 10 });
  clock.now = 50;
  printer.update({ stage: "distil", done: 6, total: 10 }); // too soon
  printer.note("done");
  assert.equal(lines.length, 3);
  const rewritten = `\r\x1b[Kdistil  ${"█".repeat(10)}${"░".repeat(10)}`;
  assert.ok(lines[0]!.startsWith(rewritten), lines[0]);
  assert.equal(lines[0]!.length, "\r\x1b[K".length + 29);
  assert.deepEqual(lines.slice(1), ["\r\x1b[K", "done\n"]);
});

Deno.test("ProgressPrinter escapes names from files", () => {
  const { io, lines } = recorder(null);
  new ProgressPrinter(io).update({ stage: "distil", unit: "a\n\x1b[2J", done: 0, total: 1 });
  assert.deepEqual(lines, ["distil  0/1  a\\u{a}\\u{1b}[2J\n"]);
});

Deno.test("duration() rounds up to seconds and shortens long spans", () => {
  assert.deepEqual([1, 59_000, 125_000, 7_260_000].map(duration), ["1s", "59s", "2m05s", "2h01m"]);
});
