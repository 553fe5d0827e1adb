import assert from "node:assert/strict";
import type { Measurement } from "../../bench/harness.ts";
import {
  type Machine,
  mergeMeasurements,
  readResults,
  tableHeading,
  tableRow,
  writeResults,
} from "../../bench/result_file.ts";

const MACHINE: Machine = {
  date: "2026-01-02",
  adapter: "llvmpipe (LLVM 15.0.6, 256 bits)",
  family: "software",
  subgroupSize: 8,
  deno: "2.9.6",
  cpu: { model: "some processor", count: 2 },
  stilla: "0.1.0",
};

function figure(subject: string, name: string, value: number): Measurement {
  const rest = { metric: "step", unit: "ms", median: value, best: value, samples: 1 };
  return { subject, case: name, ...rest };
}

Deno.test("mergeMeasurements() replaces figures of the same subject, case and metric in place", () => {
  const older = [figure("a", "x", 1), figure("a", "y", 2), figure("b", "x", 3)];
  const newer = [figure("b", "z", 4), figure("a", "y", 5)];
  assert.deepEqual(mergeMeasurements(older, newer), [
    figure("a", "x", 1),
    figure("a", "y", 5),
    figure("b", "x", 3),
    figure("b", "z", 4),
  ]);
});

Deno.test("writeResults() makes a file and merges into it", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const file = `${folder}/results.json`;
    assert.equal(readResults(file), undefined);
    writeResults([figure("a", "x", 1), figure("a", "y", 2)], MACHINE, file);
    writeResults([figure("a", "x", 3)], MACHINE, file);
    const measurements = [figure("a", "x", 3), figure("a", "y", 2)];
    assert.deepEqual(readResults(file), { ...MACHINE, measurements });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("tableRow() keeps the columns of tableHeading() and three significant digits", () => {
  const cells = (line: string) => line.split("|").map((cell) => cell.trim());
  const [heading, rule] = tableHeading().split("\n");
  assert.equal(cells(heading!).length, cells(rule!).length);
  const line = tableRow({ ...figure("a", "x", 0.012345), median: 1234.5, share: 0.256 });
  assert.equal(line.indexOf("ms"), heading!.indexOf("unit"));
  assert.deepEqual(cells(line), ["", "x", "step", "1235", "0.0123", "ms", "26 %", "", ""]);
});
