import assert from "node:assert/strict";
import { comparisonMarkdown } from "../../src/run/comparison_markdown.ts";
import type { ComparisonTable } from "../../src/run/comparison_table.ts";
import { exampleTable } from "./_example_table.ts";

const at = ({ rows }: ComparisonTable, row: number, column: number) => rows[row]!.cells[column]!;

Deno.test("comparisonTable() gives mean, sample deviation, mean times and largest memory", () => {
  const cell = at(exampleTable(), 2, 1);
  assert.ok(Math.abs(cell.mean! - 11) < 1e-9); // of float64 sums
  assert.ok(Math.abs(cell.deviation! - 1) < 1e-9);
  assert.deepEqual(cell.seconds, { calibrate: 1, distill: 10, evaluate: 3 });
  assert.deepEqual([cell.peakBytes, cell.weightBytes], [3 * 2 ** 20, 3072]);
  assert.deepEqual(at(exampleTable(), 1, 1).seeds, [0, 1]);
  const failed = at(exampleTable(), 3, 1);
  assert.deepEqual([failed.mean, failed.deviation, failed.failures.length], [null, null, 3]);
});

Deno.test("comparisonTable() marks the best, and what is within the best label-free row's deviation", () => {
  const marks = (table: ComparisonTable, column: number) =>
    table.rows.map(({ cells }) => {
      const { best, nearBest } = cells[column]!;
      return `${best ? "b" : ""}${nearBest ? "n" : ""}`;
    });
  // W8A8: 0 ± 0.1 is the best, 0.05 within it; 1 ± 0 is not. W2A4: 11 ± 1 is the best, 11.4 within it.
  assert.deepEqual(marks(exampleTable(), 0), ["bn", "n", "", ""]);
  assert.deepEqual(marks(exampleTable(), 1), ["", "n", "bn", ""]);
  // A row with labels may be the best, but is never the label-free best.
  const names = ["min-max", "labels"];
  const won = exampleTable({ names, drops: { labels: [[-1, -1, -1]] } });
  assert.deepEqual(marks(won, 0), ["n", "b"]);
  // By agreement more is better: the same order here.
  assert.deepEqual(marks(exampleTable({ measure: "agreement" }), 1), ["", "n", "bn", ""]);
});

Deno.test("comparisonMarkdown() shows drops, marks, counts, failures, times and memory", () => {
  const text = comparisonMarkdown(exampleTable());
  assert.match(text, /^Drop of top-1 in points on 1,000 inputs; the fp32 network has 90\.00 %; /);
  const line = (start: string) => {
    const found = text.split("\n").filter((each) => each.startsWith(`| ${start} `));
    return found.map((each) => each.replace(/ +/g, " "));
  };
  assert.deepEqual(line("student")[0], "| student | W8A8 | W2A4 |");
  assert.deepEqual(
    line("min-max")[0],
    [
      "| min-max | **0.00 ± 0.10** †, 11.0 s",
      "81.00 ± 1.41 (n = 2, 1 failed), 11.0 s |",
    ].join(" | "),
  );
  assert.deepEqual(
    line("A\\|B \\<&>")[0],
    "| A\\|B \\<&> | 0.05 ± 0.01 †, 11.0 s | 11.40 ± 1.41 † (n = 2), 6.0 s |",
  );
  assert.deepEqual(line("labels")[0], "| labels | 4.00 ± 1.00, 11.0 s | failed |");
  assert.match(text, /\n- min-max W2A4 seed 1: a \\\| b\n/);
  assert.match(text, /\nLearned from labels: labels\.\n/);
  assert.deepEqual(line("blockwise W2A4"), [
    "| blockwise W2A4 | 1.0 | 10.0 | 3.0 | 3 | 3.0 | 2.0 |",
  ]);
  assert.deepEqual(line("labels W2A4"), ["| labels W2A4 | - | - | - | - | - | - |"]);
  const agreement = comparisonMarkdown(
    exampleTable({ measure: "agreement", names: ["blockwise"] }),
  );
  assert.match(agreement, /^Agreement of student and teacher in percent/);
  assert.match(agreement, /\| blockwise \| \*\*99\.00 ± 0\.00\*\* †/);
  assert.doesNotMatch(agreement, /Failed|Learned/);
});
