import assert from "node:assert/strict";
import { join } from "node:path";
import { compare } from "../../src/cli/compare.ts";
import { parseCompareFlags } from "../../src/cli/compare_flags.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import { RECIPE_FIELDS } from "../../src/distill/recipe.ts";
import { flagOf } from "../../src/cli/flags.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import { fakeStudents, inFolder } from "../run/_fake_comparison.ts";
import { type Outcome, outcomeOf, tinyModel } from "./_fake_run.ts";

/** Runs the command in the given folder. */
function run(
  args: readonly string[],
  cwd: string,
  students = fakeStudents(),
  signal = new AbortController().signal,
): Promise<Outcome> {
  return outcomeOf((io) => compare(args, io, students), cwd, signal);
}

async function withFiles(body: (folder: string) => Promise<void>): Promise<void> {
  await inFolder(async (folder) => {
    const images = ndArray("uint8", [6, 4, 4, 3], new Uint8Array(6 * 48));
    const labels = ndArray("int64", [6], new BigInt64Array(6));
    await Deno.writeFile(join(folder, "m.onnx"), tinyModel());
    await Deno.writeFile(join(folder, "x.npy"), encodeNpy(images));
    await Deno.writeFile(join(folder, "y.npy"), encodeNpy(labels));
    await body(folder);
  });
}

const DATA = "--model m.onnx --calibration x.npy --evaluate x.npy --labels y.npy".split(" ");
const SMALL = [...DATA, "--methods", "ptq, gptq: ptq+weightRounding=gptq", "--bits", "8/8,4/4"];
const FLAGS = [...SMALL, "--seeds", "0,1", "--out", "a/b"];

Deno.test("parseCompareFlags() reads rows, columns and seeds", () => {
  const methods = "ptq, a row : ptq+weightRounding=gptq + samples=32, samples=5+augment.copies=1" +
    "+augment.flip=false";
  const args = ["--methods", methods, "--bits", "8/8,2/4", "--seeds=5,0", "--mean", "1,2"];
  const flags = parseCompareFlags(args);
  assert.deepEqual(flags.methods, [
    { name: "ptq", recipe: { method: "ptq" } },
    { name: "a row", recipe: { method: "ptq", weightRounding: "gptq", samples: 32 } },
    {
      name: "samples=5+augment.copies=1+augment.flip=false",
      recipe: { samples: 5, augment: { copies: 1, flip: false } },
    },
  ]);
  assert.deepEqual(flags.bits, [
    { weightBits: 8, activationBits: 8 },
    { weightBits: 2, activationBits: 4 },
  ]);
  assert.deepEqual([flags.seeds, flags.values.get("mean")], [[5, 0], [1, 2]]);
  const { methods: rows, bits, seeds, out } = parseCompareFlags([]);
  assert.deepEqual([rows.length, bits.length, seeds, out], [3, 6, [0, 1, 2], "runs/compare"]);
});

Deno.test("parseCompareFlags() says in one line what is wrong", () => {
  const cases: readonly (readonly [args: string[], message: string])[] = [
    [["--method", "ptq"], "--method: not taken here, use --methods"],
    [["--weight-bits", "4"], "--weight-bits: not taken here, use --bits"],
    [["--seed", "1"], "--seed: not taken here, use --seeds"],
    [["--methds", "ptq"], "--methds: unknown flag, did you mean --methods?"],
    [["--seeds", "1", "--seeds", "2"], "--seeds: given twice"],
    [["--bits"], "--bits: needs a value, --bits W/A,W/A,.."],
    [["--bits", "4"], '--bits: found "4", expected W/A such as 4/8, both from 2 to 8, or 4/32'],
    [
      ["--bits", "4/9"],
      '--bits: found "4/9", expected W/A such as 4/8, both from 2 to 8, or 4/32',
    ],
    [["--bits", "4/32,4/32"], '--bits: "W4A32" stands twice'],
    [["--bits", "4/4, 4/4"], '--bits: "W4A4" stands twice'],
    [["--seeds", "1,1"], '--seeds: "1" stands twice'],
    [["--seeds", "-1"], '--seeds: found "-1", expected an integer from 0 to 4294967295'],
    [["--rows", "r", "--methods", "ptq"], "--rows: given with --methods, expected one of the two"],
    [["--methods", "ptq,ptq"], '--methods: "ptq" stands twice'],
    [["--methods", "ptq+gptq"], '--methods: "ptq+gptq": found "gptq", expected key=value'],
    [
      ["--methods", "ptqq"],
      '--methods: "ptqq": method: found "ptqq", expected one of ptq, qat, layerwise, blockwise, joint',
    ],
    [
      ["--methods", "ptq+weightRoundin=gptq"],
      '--methods: "ptq+weightRoundin=gptq": weightRoundin: unknown key, did you mean "weightRounding"?',
    ],
    [
      ["--methods", "ptq+steps=x"],
      '--methods: "ptq+steps=x": steps: found "x", expected an integer of at least 0 or null',
    ],
    [["--methods", "ptq+steps=1+steps=2"], '--methods: "ptq+steps=1+steps=2": steps: stands twice'],
    [["--methods", "ptq+seed=2"], '--methods: "ptq+seed=2": seed: is set by --seeds'],
  ];
  for (const [args, message] of cases) {
    assert.throws(() => parseCompareFlags(args), (error: Error) => {
      assert.equal(error.name, "UsageError");
      assert.ok(error.message.startsWith(message), `${error.message}\n${message}`);
      return true;
    });
  }
});

Deno.test("compare() --help shows its own flags and those of the recipe that it takes", async () => {
  const { code, stdout } = await run(["--help"], "/");
  assert.equal(code, 0);
  const flags = stdout.split("\n").flatMap((line) => /^ {2}--([a-z-]+) /.exec(line)?.[1] ?? []);
  const taken = RECIPE_FIELDS.map(({ key }) => flagOf(key)).filter((flag) =>
    !["method", "weight-bits", "activation-bits", "seed", "out"].includes(flag)
  );
  const own = ["methods", "rows", "bits", "seeds", "out"];
  const shared = ["recipe", "help", "version", "json", "debug"];
  assert.deepEqual(flags, [...own, ...taken, ...shared]);
});

Deno.test("compare() makes the students, prints the table, and makes none the second time", () =>
  withFiles(async (folder) => {
    const students = fakeStudents();
    const { code, stdout, stderr } = await run(FLAGS, folder, students);
    assert.equal(code, 0, stderr);
    assert.equal(students.asked.length, 8);
    assert.match(stdout, /^Drop of top-1 in points on 6 inputs; .*\n/);
    assert.match(stdout, /\n\| gptq +\| \*\*0\.50 ± 0\.71\*\* †, 1\.5 s \| \*\*4\.50 ± 0\.71\*\* /);
    assert.match(stderr, /\n1\/8 ptq W8A8 seed 0: distil.*\n/);
    assert.match(stderr, /\n8\/8 gptq W4A4 seed 1: drop 5\.00, 2\.0 s\n/);
    const kept = join(folder, "a", "b");
    assert.equal(await Deno.readTextFile(join(kept, "table.md")), stdout);
    assert.match(await Deno.readTextFile(join(kept, "table.svg")), /^<svg /);
    const again = fakeStudents();
    const second = await run([...FLAGS, "--json"], folder, again);
    assert.equal(again.asked.length, 0);
    assert.equal(second.stdout, await Deno.readTextFile(join(kept, "table.json")));
  }));

Deno.test("compare() reads rows with names from a file", () =>
  withFiles(async (folder) => {
    const rows = [{ name: "a, b", recipe: { method: "ptq", weightObserver: "minmax" } }];
    await Deno.writeTextFile(join(folder, "rows.json"), JSON.stringify(rows));
    const students = fakeStudents();
    const args = [...DATA, "--rows", "rows.json", "--bits", "4/4", "--seeds", "7"];
    const { code, stdout, stderr } = await run(args, folder, students);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /; seed 7; .*\n[^]*\n\| a, b +\| \*\*15\.00\*\* †, 8\.0 s \|\n/);
    const { method, weightObserver, weightBits, seed } = students.asked[0]![2];
    assert.deepEqual([method, weightObserver, weightBits, seed], ["ptq", "minmax", 4, 7]);
    await Deno.stat(join(folder, "runs/compare/table.svg"));
    await Deno.writeTextFile(join(folder, "rows.json"), '[{"name": "a", "recipe": {"step": 1}}]');
    const wrong = await run(args, folder, students);
    assert.equal(wrong.code, 2);
    assert.match(wrong.stderr, /rows\.json: row "a": step: unknown key, did you mean "steps"\?\n$/);
  }));

Deno.test("compare() hands calibration labels to the rows that learn from them", () =>
  withFiles(async (folder) => {
    const students = fakeStudents();
    const rows = ["--methods", "ptq, qat", "--bits", "4/4", "--seeds", "0"];
    const without = await run([...DATA, ...rows], folder, students);
    assert.equal(without.code, 2);
    assert.match(without.stderr, /"qat W4A4 seed 0": calibrationLabels: /);
    const args = [...DATA, ...rows, "--calibration-labels", "y.npy"];
    assert.equal((await run(args, folder, students)).code, 0);
    const labels = students.asked.map(([, data]) => data.calibrationLabels?.length);
    assert.deepEqual(labels, [undefined, 6]);
  }));

Deno.test("compare() stopped by a signal ends with 130 and goes on the next time", () =>
  withFiles(async (folder) => {
    const controller = new AbortController();
    let left = 3;
    const before = () => {
      if (--left === 0) controller.abort("SIGINT");
    };
    const first = await run(FLAGS, folder, fakeStudents({ before }), controller.signal);
    assert.equal(first.code, 130);
    assert.match(first.stderr, /\nstilla: stopped by SIGINT\n$/);
    assert.equal(first.stdout, "");
    const students = fakeStudents();
    const second = await run(FLAGS, folder, students);
    assert.equal(second.code, 0);
    assert.equal(students.asked.length, 6);
    assert.match(second.stderr, /\n3\/8 ptq W4A4 seed 0: /);
  }));

Deno.test("compare() with a student that failed shows the others and ends with its code", () =>
  withFiles(async (folder) => {
    const before = ({ weightBits, seed }: { weightBits: number; seed: number }) => {
      if (weightBits !== 4 || seed !== 1) return;
      throw Object.assign(new Error("layer a: loss is NaN"), { name: "DivergedError" });
    };
    const { code, stdout, stderr } = await run(FLAGS, folder, fakeStudents({ before }));
    assert.equal(code, 4);
    assert.match(stderr, /\n2 of 8 students failed, the first of them:\nstilla: layer a: loss is/);
    assert.match(stdout, /\| \*\*4\.00\*\* † \(n = 1, 1 failed\), 1\.0 s \|\n/);
    assert.match(stdout, /\nFailed:\n\n- ptq W4A4 seed 1: layer a: loss is NaN\n- gptq W4A4 /);
  }));

Deno.test("compare() finds bad input before it makes anything", () =>
  withFiles(async (folder) => {
    const students = fakeStudents();
    const unlabelled = ["--model", "m.onnx", "--calibration", "x.npy", "--out", "o"];
    const { code, stderr } = await run(unlabelled, folder, students);
    assert.equal(code, 2);
    assert.match(stderr, /stilla: Cannot compare students without inputs .*\(--evaluate\)\n$/);
    assert.equal((await run([...FLAGS, "--mean", "1,2"], folder, students)).code, 2);
    assert.throws(() => Deno.statSync(join(folder, "o")), Deno.errors.NotFound);
    assert.equal(students.asked.length + students.opened(), 0);
  }));
