import assert from "node:assert/strict";
import { parseArguments } from "../../bench/main.ts";
import { UsageError } from "../../src/cli/flags.ts";

Deno.test("parseArguments() has defaults for everything", () => {
  assert.deepEqual(parseArguments([]), {
    data: undefined,
    samples: 11,
    seeds: [0, 1, 2],
    out: undefined,
    subjects: [],
  });
});

Deno.test("parseArguments() takes options and subjects in any order", () => {
  const words = "kernels --samples 3 --data folder block-step --seeds 4,5 --out file.json";
  assert.deepEqual(parseArguments(words.split(" ")), {
    data: "folder",
    samples: 3,
    seeds: [4, 5],
    out: "file.json",
    subjects: ["kernels", "block-step"],
  });
});

Deno.test("parseArguments() refuses what it does not know, in one line", () => {
  const cases = [
    ["kernel", /Unknown subject "kernel": expected one of kernels, /],
    ["toString", /Unknown subject "toString"/],
    ["--sample 3", /Unknown option "--sample": expected one of --data, /],
    ["--data", /--data needs a value: FOLDER/],
    ["--samples 0", /--samples: found "0", expected an integer of at least 1/],
    ["--samples 1.5", /--samples: found "1.5"/],
    ["--seeds 1,,2", /--seeds: found ""/],
  ] as const;
  for (const [words, message] of cases) {
    assert.throws(
      () => parseArguments(words.split(" ")),
      (error) =>
        error instanceof UsageError && message.test(error.message) && !error.message.includes("\n"),
    );
  }
});
