import assert from "node:assert/strict";
import { join } from "node:path";
import type { Engine } from "../../src/cli/distill_command.ts";
import { importOnnx } from "../../src/formats/onnx_import.ts";
import { mnistExample } from "../../src/run/mnist_example.ts";
import { fakeEngine, runMain } from "./_fake_run.ts";

const STUDENTS = [8, 4].flatMap((bits) =>
  ["ptq", "qat", "layerwise", "blockwise"].map((method) => `${method}-w${bits}a${bits}`)
);

/** Runs the command without flags on an engine that gives the teacher back. */
async function withExample(
  test: (run: {
    readonly folder: string;
    readonly stdout: string;
    readonly stderr: string;
    readonly code: number;
    readonly seen: readonly Parameters<Engine["distill"]>[];
  }) => Promise<void> | void,
): Promise<void> {
  const cwd = await Deno.makeTempDir();
  try {
    const seen: Parameters<Engine["distill"]>[] = [];
    const outcome = await runMain([], cwd, { engine: fakeEngine({ seen }) });
    await test({ ...outcome, seen, folder: join(cwd, "runs", "mnist") });
  } finally {
    await Deno.remove(cwd, { recursive: true });
  }
}

Deno.test("distill without flags makes eight students of the built-in example", () =>
  withExample(({ code, stderr, seen }) => {
    assert.equal(code, 0, stderr);
    const names = seen.map(([, , { method, weightBits, activationBits }]) =>
      `${method}-w${weightBits}a${activationBits}`
    );
    assert.deepEqual(names, STUDENTS);
    for (const [, data, recipe] of seen) {
      assert.equal(data.calibration.count, 60000);
      assert.equal(data.evaluation?.count, 10000);
      assert.equal(data.evaluationLabels?.length, 10000);
      assert.equal(recipe.samples, 1024);
      assert.deepEqual([recipe.mean, recipe.std], [[0.1307], [0.3081]]);
    }
  }));

Deno.test("distill --dry-run plans the eight students, and makes no folder", async () => {
  const cwd = await Deno.makeTempDir();
  try {
    const { code, stdout, stderr } = await runMain(["--dry-run"], cwd);
    assert.equal(code, 0, stderr);
    const heads = stdout.split("\n").filter((line) => line.endsWith("nothing is made"));
    assert.deepEqual([heads.length, heads[0]], [8, "ptq W8A8, a dry run: nothing is made"]);
    assert.deepEqual([...Deno.readDirSync(cwd)], []);
  } finally {
    await Deno.remove(cwd, { recursive: true });
  }
});

Deno.test("distill without flags hands labels to qat only, and evaluates the teacher once", () =>
  withExample(({ seen }) => {
    for (const [, data, { method }] of seen) {
      assert.equal(data.calibrationLabels !== undefined, method === "qat", method);
    }
    const shared = seen[0]?.[3].teacherClasses;
    assert.ok(shared instanceof WeakMap);
    assert.ok(seen.every(([, , , options]) => options.teacherClasses === shared));
  }));

Deno.test("distill without flags leaves a folder with every student and the table it prints", () =>
  withExample(async ({ folder, stdout }) => {
    assert.equal(await Deno.readTextFile(join(folder, "table.txt")), stdout);
    const rows = stdout.split("\n\n")[0]!.split("\n");
    assert.equal(rows.length, 2 + STUDENTS.length); // heading, fp32, students
    assert.match(rows[1]!, /^fp32 +90\.00 +0\.00 +\d+\.\d +-$/);
    assert.match(rows[2]!, /^ptq W8A8 +80\.00 +10\.00 +\d+\.\d +1\.0$/);
    assert.match(stdout, /10,000 test images.* 1,024 training images, qat also from their\nlabels/);
    for (const name of STUDENTS) {
      const model = importOnnx(await Deno.readFile(join(folder, name, "student.onnx")));
      assert.equal(model.inputs[0]?.name, "x");
    }
    const report = JSON.parse(await Deno.readTextFile(join(folder, "report.json")));
    assert.equal(report.rows.length, 1 + STUDENTS.length);
    assert.equal(report.runs.length, STUDENTS.length);
  }));

Deno.test("mnistExample() names a teacher below 500 kB with batch norms and a dynamic batch", async () => {
  const bytes = await Deno.readFile(mnistExample().model);
  assert.ok(bytes.length < 500_000, `${bytes.length} bytes`);
  const { inputs, outputs, nodes } = importOnnx(bytes);
  assert.deepEqual(inputs.map(({ name, shape }) => [name, ...shape]), [["x", "N", 1, 28, 28]]);
  assert.deepEqual(outputs.map(({ name, shape }) => [name, ...shape]), [["logits", "N", 10]]);
  const used = new Set(nodes.map((node) => node.opType));
  for (const opType of ["BatchNormalization", "Add", "GlobalAveragePool", "Gemm"]) {
    assert.ok(used.has(opType), opType);
  }
  assert.ok(nodes.some(({ attributes }) => Number(attributes.group) > 1), "depthwise");
});
