import assert from "node:assert/strict";
import { join } from "node:path";
import { GpuError } from "../../src/core/errors.ts";
import { compare } from "../../src/run/compare.ts";
import type { StudentResult } from "../../src/run/comparison_results.ts";
import type { ComparisonTable } from "../../src/run/comparison_table.ts";
import { type dropOf, fakeInputs, fakeStudents, inFolder, PLAN } from "./_fake_comparison.ts";

const NAMES = [0, 1].flatMap((seed) =>
  [8, 4].flatMap((bits) => ["nearest", "gptq"].map((rounding) => `${rounding} W${bits} ${seed}`))
);

function namesOf({ asked }: ReturnType<typeof fakeStudents>): string[] {
  return asked.map(([, , { weightRounding, weightBits, seed }]) =>
    `${weightRounding} W${weightBits} ${seed}`
  );
}

/** Names of the students that a call makes. */
async function made(
  folder: string,
  { plan = PLAN, inputs = fakeInputs(), adapter = "none" } = {},
): Promise<string[]> {
  const students = fakeStudents({ adapter });
  await compare(plan, inputs, { folder, ...students });
  return namesOf(students);
}

type Kept = { recipe: Record<string, unknown>; result?: StudentResult; error?: string };

function studentsIn(folder: string): Kept[] {
  return JSON.parse(Deno.readTextFileSync(join(folder, "results.json"))).students;
}

function tableIn(folder: string): ComparisonTable {
  return JSON.parse(Deno.readTextFileSync(join(folder, "table.json")));
}

Deno.test("compare() makes every student once, a whole table for each seed, on one device", () =>
  inFolder(async (folder) => {
    const students = fakeStudents();
    const { table, failures } = await compare(PLAN, fakeInputs(), { folder, ...students });
    assert.deepEqual(namesOf(students), NAMES);
    assert.deepEqual(failures, []);
    assert.equal(students.opened(), 1);
    const shared = students.asked[0]![3];
    for (const [, data, recipe, { device, teacherClasses }] of students.asked) {
      assert.equal(device, shared.device);
      assert.ok(teacherClasses instanceof WeakMap && teacherClasses === shared.teacherClasses);
      assert.equal(data.calibrationLabels, undefined, "labels are for qat only");
      assert.equal(recipe.activationBits, recipe.weightBits);
    }
    const [nearest, gptq] = table.rows.map(({ cells }) => cells.map(({ mean }) => mean));
    assert.deepEqual(nearest!.map((mean) => mean!.toFixed(6)), ["0.500000", "8.500000"]);
    assert.deepEqual(gptq!.map((mean) => mean!.toFixed(6)), ["0.500000", "4.500000"]);
    const names = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
    assert.deepEqual(names, ["results.json", "table.json", "table.md", "table.svg"]);
    assert.deepEqual(tableIn(folder).rows[1]!.cells[1]!.seeds, [0, 1]);
  }));

Deno.test("compare() keeps time, sizes and the largest resident memory it saw", () =>
  inFolder(async (folder) => {
    const readings = [5, 9, 7];
    const memory = () => readings.length > 1 ? readings.shift()! : readings[0]!;
    const plan = { ...PLAN, rows: [PLAN.rows[0]!], bits: [PLAN.bits[0]!], seeds: [1] };
    await compare(plan, fakeInputs(), { folder, ...fakeStudents(), memory });
    const [{ result, recipe }] = studentsIn(folder) as [Required<Kept>];
    assert.equal(result.peakBytes, 9);
    assert.deepEqual(result.seconds, { calibrate: 1, distill: 1, evaluate: 2 });
    assert.equal(result.weightBytes, 6);
    assert.equal(result.sizeBytes.float32, 2048);
    assert.ok(result.sizeBytes.int8 > 0);
    assert.deepEqual([recipe.method, recipe.seed, recipe.calibration], ["ptq", 1, undefined]);
  }));

Deno.test("compare() goes on where a stopped call was, and the file was whole all the time", () =>
  inFolder(async (folder) => {
    const controller = new AbortController();
    const kept: number[] = [];
    const first = fakeStudents({
      before: () => {
        kept.push(studentsIn(folder).length);
        if (kept.length === 4) controller.abort("SIGINT");
      },
    });
    const { signal } = controller;
    const stopped = compare(PLAN, fakeInputs(), { folder, signal, ...first });
    await assert.rejects(stopped, (reason) => reason === "SIGINT");
    assert.deepEqual(kept, [0, 1, 2, 3]);
    assert.equal(studentsIn(folder).length, 3);
    assert.deepEqual(tableIn(folder).rows[1]!.cells[0]!.seeds, [0]);
    assert.deepEqual(await made(folder), NAMES.slice(3));
    assert.deepEqual(await made(folder), []);
  }));

Deno.test("compare() makes a student anew when anything that decides it has changed", () =>
  inFolder(async (folder) => {
    const plan = { ...PLAN, bits: [PLAN.bits[1]!], seeds: [0] };
    const all = ["nearest W4 0", "gptq W4 0"];
    assert.deepEqual(await made(folder, { plan }), all);
    const [nearest, gptq] = plan.rows;
    const recipe = { ...gptq!.recipe, samples: 512 };
    const changed = { ...plan, rows: [nearest!, { ...gptq!, recipe }] };
    assert.deepEqual(await made(folder, { plan: changed }), ["gptq W4 0"]);
    assert.deepEqual(await made(folder, { plan: changed }), []);
    assert.deepEqual(await made(folder, { plan }), [], "what was made before is still there");
    const base = { ...plan.base, augment: { ...plan.base.augment, shift: 1 } };
    assert.deepEqual(await made(folder, { plan: { ...plan, base } }), all);
    for (const other of [{ pixel: 1 }, { labels: false }, { modelDigest: "n" }]) {
      const inputs = { ...fakeInputs(other), ..."modelDigest" in other && other };
      assert.deepEqual(await made(folder, { plan, inputs }), all, Object.keys(other)[0]);
    }
    assert.deepEqual(await made(folder, { plan, adapter: "another" }), all);
  }));

Deno.test("compare() knows a student by its recipe: not by its row's name, its paths or new keys", () =>
  inFolder(async (folder) => {
    await made(folder);
    const renamed = PLAN.rows.map((row) => ({ ...row, name: `the ${row.name}` }));
    assert.deepEqual(await made(folder, { plan: { ...PLAN, rows: renamed } }), []);
    const moved = { ...PLAN.base, model: "elsewhere.onnx", calibration: "x.npy" };
    assert.deepEqual(await made(folder, { plan: { ...PLAN, base: moved } }), []);
    // As written before the key `heldOut` was there, at its default or at another value.
    const file = join(folder, "results.json");
    const students = studentsIn(folder);
    for (const { recipe } of students) delete recipe.heldOut;
    await Deno.writeTextFile(file, JSON.stringify({ students }));
    assert.deepEqual(await made(folder), []);
    const other = { ...PLAN.base, heldOut: 0.25 };
    assert.deepEqual(await made(folder, { plan: { ...PLAN, base: other } }), NAMES);
  }));

Deno.test("compare() makes a student once when two rows have the same recipe", () =>
  inFolder(async (folder) => {
    const plan = { ...PLAN, rows: [PLAN.rows[0]!, { name: "twin", recipe: { method: "ptq" } }] };
    assert.equal((await made(folder, { plan })).length, 4);
    const [, twin] = tableIn(folder).rows;
    assert.deepEqual(twin!.cells.map(({ seeds }) => seeds), [[0, 1], [0, 1]]);
  }));

Deno.test("compare() notes what failed, goes on, and tries it again the next time", () =>
  inFolder(async (folder) => {
    const before = ({ weightRounding, weightBits, seed }: Parameters<typeof dropOf>[0]) => {
      if (weightRounding === "gptq" && weightBits === 4 && seed === 0) {
        throw new GpuError('kernel "a":\nout of memory');
      }
    };
    const first = fakeStudents({ before });
    const { failures, table } = await compare(PLAN, fakeInputs(), { folder, ...first });
    assert.equal(first.asked.length, 8);
    assert.equal(first.opened(), 2, "a device that failed is opened anew");
    assert.deepEqual(failures.map(({ cell }) => cell.name), ["gptq W4A4 seed 0"]);
    assert.ok(failures[0]!.error instanceof GpuError);
    const [, failed] = table.rows[1]!.cells;
    const error = 'kernel "a":\\u{a}out of memory';
    assert.deepEqual(failed!.failures, [{ seed: 0, error }]);
    assert.deepEqual(failed!.seeds, [1]);
    const records = studentsIn(folder);
    assert.equal(records.filter((record) => "error" in record).length, 1);
    assert.deepEqual(await made(folder), ["gptq W4 0"]);
    const again = studentsIn(folder);
    assert.ok(again.length === 8 && again.every((record) => "result" in record));
  }));

Deno.test("compare() without labels measures agreement with the teacher", () =>
  inFolder(async (folder) => {
    const inputs = fakeInputs({ labels: false });
    const { table } = await compare(PLAN, inputs, { folder, ...fakeStudents() });
    assert.deepEqual([table.measure, table.top1Teacher], ["agreement", null]);
    assert.deepEqual(table.rows[0]!.cells[1]!.values.map((value) => value.toFixed(3)), [
      "92.000",
      "91.000",
    ]);
    assert.deepEqual(table.rows.map(({ cells }) => cells[1]!.best), [false, true]);
  }));

Deno.test("compare() hands labels to rows that learn from them, and only those depend on them", () =>
  inFolder(async (folder) => {
    const rows = [PLAN.rows[0]!, { name: "qat", recipe: { method: "qat" } }];
    const plan = { ...PLAN, rows, seeds: [0] };
    const students = fakeStudents();
    await compare(plan, fakeInputs(), { folder, ...students });
    const labels = students.asked.map(([, data]) => data.calibrationLabels?.length);
    assert.deepEqual(labels, [undefined, 2, undefined, 2]);
    const other = fakeInputs();
    const data = { ...other.data, calibrationLabels: Uint32Array.of(1, 1) };
    const again = fakeStudents();
    await compare(plan, { ...other, data }, { folder, ...again });
    assert.deepEqual(again.asked.map(([, , { method }]) => method), ["qat", "qat"]);
  }));

Deno.test("compare() leaves other people's files alone", () =>
  inFolder(async (folder) => {
    const table = join(folder, "table.md");
    await Deno.writeTextFile(table, "mine");
    await assert.rejects(made(folder), /^FormatError: .*table\.md: is in the way/);
    assert.equal(await Deno.readTextFile(table), "mine");
    await Deno.remove(table);
    const results = join(folder, "results.json");
    await Deno.writeTextFile(results, '{"students": [{"stilla": "0"}]}');
    await assert.rejects(made(folder), /results\.json: students\.0: expected the results of/);
    assert.deepEqual([...Deno.readDirSync(folder)].length, 1);
    await assert.rejects(made(results), /^FormatError: /);
    await Deno.writeTextFile(join(folder, "notes.txt"), "mine");
    await Deno.remove(results);
    await made(folder);
    assert.equal(await Deno.readTextFile(join(folder, "notes.txt")), "mine");
  }));

Deno.test("compare() asks for inputs to evaluate on before anything else", () =>
  inFolder(async (folder) => {
    const { evaluation: _, ...data } = fakeInputs().data;
    const students = fakeStudents();
    const outcome = compare(PLAN, { ...fakeInputs(), data }, { folder, ...students });
    await assert.rejects(outcome, /^RangeError: Cannot compare students without inputs/);
    assert.equal(students.opened(), 0);
  }));
