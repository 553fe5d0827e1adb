import assert from "node:assert/strict";
import { join } from "node:path";
import { GpuError } from "../../src/core/errors.ts";
import { ndArray } from "../../src/core/nd_array.ts";
import type { Engine } from "../../src/cli/distill_command.ts";
import { RECIPE_FIELDS } from "../../src/distill/recipe.ts";
import { flagOf } from "../../src/cli/flags.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import { fakeEngine, runMain, tinyModel } from "./_fake_run.ts";

async function withFiles(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    const images = ndArray("uint8", [6, 4, 4, 3], new Uint8Array(6 * 48));
    const labels = ndArray("int64", [6], new BigInt64Array(6));
    await Deno.writeFile(join(folder, "m.onnx"), tinyModel());
    await Deno.writeFile(join(folder, "x.npy"), encodeNpy(images));
    await Deno.writeFile(join(folder, "y.npy"), encodeNpy(labels));
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const FLAGS = ["--model", "m.onnx", "--calibration", "x.npy", "--out", "runs/a"];

Deno.test("main() --help shows every flag of the recipe with its default", async () => {
  const { code, stdout } = await runMain(["--help"], "/");
  assert.equal(code, 0);
  for (const { key } of RECIPE_FIELDS) {
    const line = stdout.split("\n").find((text) => text.startsWith(`  --${flagOf(key)} `));
    assert.match(line ?? `no line for ${key}`, /\(default .+\)$/);
  }
});

Deno.test("main() distils, writes the run folder and prints the table", () =>
  withFiles(async (folder) => {
    const seen: Parameters<Engine["distill"]>[] = [];
    const args = [...FLAGS, "--evaluate", "x.npy", "--labels", "y.npy", "--weight-bits", "4"];
    const { code, stdout, stderr } = await runMain(args, folder, { engine: fakeEngine({ seen }) });
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^network .*\nfp32 +90\.00.*\nblockwise W4A8 +80\.00 +10\.00 /);
    assert.match(stderr, /6 inputs of 3 x 4 x 4, uint8, channels last \(NHWC\)/);
    assert.match(stderr, /conv\\u\{1b\}\[31m/);
    const [graph, data, recipe] = seen[0]!;
    assert.equal(graph.nodes.length, 3);
    assert.deepEqual([data.calibration.count, data.evaluationLabels?.length], [6, 6]);
    assert.equal(data.calibrationLabels, undefined);
    assert.equal(recipe.weightBits, 4);
    const names = (at: string) => [...Deno.readDirSync(join(folder, at))].map(({ name }) => name);
    const written = ["recipe.json", "report.json", "student.onnx", "weights"];
    assert.deepEqual(names("runs/a").sort(), written);
    assert.ok(names("runs/a/weights").includes("manifest.json"));
    const report = JSON.parse(await Deno.readTextFile(join(folder, "runs/a/report.json")));
    const onnx = await Deno.stat(join(folder, "runs/a/student.onnx"));
    assert.equal(report.network.sizeBytes.int8, onnx.size);
  }));

Deno.test("main() says in one line when activations were kept in host memory", () =>
  withFiles(async (folder) => {
    const line = /\nthe activations .* need more than --memory-budget: kept in host memory\n/;
    const streamed = await runMain([...FLAGS, "--memory-budget", "1"], folder);
    assert.match(streamed.stderr, line);
    const resident = await runMain(FLAGS, folder);
    assert.equal(resident.code, 0, resident.stderr);
    assert.doesNotMatch(resident.stderr, line);
  }));

Deno.test("main() repeats a run from its recipe.json alone, from any folder; flags override it", () =>
  withFiles(async (folder) => {
    await runMain([...FLAGS, "--seed", "5", "--augment-copies", "3"], folder);
    const seen: Parameters<Engine["distill"]>[] = [];
    const engine = fakeEngine({ seen });
    const recipe = join(folder, "runs/a/recipe.json");
    const first = await Deno.readTextFile(recipe);
    const again = await runMain(["--recipe", recipe], "/", { engine });
    assert.equal(again.code, 0, again.stderr);
    assert.equal(await Deno.readTextFile(recipe), first);
    assert.deepEqual(seen[0]![2], JSON.parse(first));
    const other = ["--recipe", recipe, "--seed", "6", "--augment-shift=1", "--out", "b"];
    assert.equal((await runMain(other, folder, { engine })).code, 0);
    const { seed, augment, out } = seen[1]![2];
    assert.deepEqual([seed, augment], [6, { copies: 3, shift: 1, flip: true }]);
    assert.equal(out, join(folder, "b"));
  }));

Deno.test("main() --dry-run prints the plan of the recipe, and writes nothing", () =>
  withFiles(async (folder) => {
    const seen: Parameters<Engine["distill"]>[] = [];
    const planned: Parameters<Engine["plan"]>[] = [];
    const engine = fakeEngine({ seen, planned });
    const args = [...FLAGS, "--dry-run", "--weight-bits", "4", "--override", "co*=weightBits:3"];
    const { code, stdout, stderr } = await runMain(args, folder, { engine });
    assert.equal(code, 0, stderr);
    assert.deepEqual([seen.length, planned.length], [0, 1]);
    assert.match(stdout, /^blockwise W4A8, a dry run: nothing is made\nnetwork +1 layer, 96 mult/);
    assert.match(stdout, /\nconv +Conv +conv +96 +6 +3 +8\n/);
    assert.match(
      stdout,
      /\nconv +blockwise +1 +96 +300 +300 +10 +weights, weight scales, activation scales, biases\n/,
    );
    assert.match(stdout, /\ntime +about 13 s: calibration 1 s, training 13 s, evaluation 0 s\n/);
    assert.throws(() => Deno.statSync(join(folder, "runs")), Deno.errors.NotFound);
    const json = await runMain([...args, "--json"], folder, { engine });
    assert.equal(
      JSON.parse(json.stdout).units[0].trains,
      "weights, weight scales, activation scales, biases",
    );
    const wrong = await runMain([...FLAGS, "--dry-run", "--skip-layers", "conf"], folder, {
      engine,
    });
    assert.equal(wrong.code, 2);
    assert.match(
      wrong.stderr,
      /stilla: skipLayers\[0\]: "conf" matches no layer, the nearest is "conv"\n$/,
    );
  }));

Deno.test("main() repeats overrides and skip lists from recipe.json; --override is added, the last wins", () =>
  withFiles(async (folder) => {
    const seen: Parameters<Engine["distill"]>[] = [];
    const engine = fakeEngine({ seen });
    const args = ["--override", "conv=weightBits:3,weightGrid:offset", "--skip-operators", "Gemm"];
    await runMain([...FLAGS, ...args], folder, { engine });
    const recipe = join(folder, "runs/a/recipe.json");
    await runMain(["--recipe", recipe], "/", { engine });
    assert.deepEqual(seen[1]![2], seen[0]![2]);
    const more = ["--override", "operators:Conv=quantize:true", "--override=c*=weightBits:5"];
    await runMain(["--recipe", recipe, ...more], "/", { engine });
    assert.deepEqual(seen[2]![2].overrides, [
      { layers: "conv", weightBits: 3, weightGrid: "offset" },
      { operators: "Conv", quantize: true },
      { layers: "c*", weightBits: 5 },
    ]);
    assert.deepEqual(seen[2]![2].skipOperators, ["Gemm"]);
  }));

Deno.test("main() --json prints the report alone on standard output", () =>
  withFiles(async (folder) => {
    const { stdout, stderr } = await runMain([...FLAGS, "--json"], folder);
    assert.equal(JSON.parse(stdout).method, "blockwise");
    assert.match(stderr, /distil {2}1\/2/);
  }));

Deno.test("main() hands labels of the calibration inputs to QAT only", () =>
  withFiles(async (folder) => {
    const seen: Parameters<Engine["distill"]>[] = [];
    const engine = fakeEngine({ seen });
    const labels = [...FLAGS, "--calibration-labels", "y.npy"];
    await runMain([...labels, "--method", "qat"], folder, { engine });
    await runMain([...labels, "--method", "joint"], folder, { engine });
    assert.deepEqual(seen.map(([, data]) => data.calibrationLabels?.length), [6, undefined]);
  }));

Deno.test("main() says what went wrong by its exit code, and writes nothing", () =>
  withFiles(async (folder) => {
    const named = (name: string, message: string) => Object.assign(new Error(message), { name });
    const full = Object.assign(new Error("No space left on device"), { code: "ENOSPC" });
    const cases: readonly (readonly [failure: unknown, code: number])[] = [
      [new RangeError("Cannot"), 2],
      [new Deno.errors.PermissionDenied("x"), 2],
      [new GpuError("No WebGPU adapter"), 3],
      [named("DivergedError", "layer a: loss is NaN"), 4],
      [new GpuError('kernel "a": out-of-memory error: x'), 5],
      [new RangeError("Array buffer allocation failed"), 5],
      [full, 5],
      [new Error("a bug"), 1],
    ];
    for (const [failure, expected] of cases) {
      const engine = fakeEngine({ failure });
      const { code, stderr, stdout } = await runMain(FLAGS, folder, { engine });
      assert.equal(code, expected, String(failure));
      assert.equal(stdout, "");
      assert.match(stderr, /\nstilla: [^\n]+\n$/);
      assert.doesNotMatch(stderr, /\n {4}at /);
      assert.throws(() => Deno.statSync(join(folder, "runs")), Deno.errors.NotFound);
    }
    const engine = fakeEngine({ failure: new RangeError("Cannot") });
    const { stderr } = await runMain([...FLAGS, "--debug"], folder, { engine });
    assert.match(stderr, /\n {4}at /);
  }));

Deno.test("main() ends with 130 or 143 when a signal stops it", () =>
  withFiles(async (folder) => {
    for (const [name, expected] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
      const signal = AbortSignal.abort(name);
      const { code, stderr } = await runMain(FLAGS, folder, { signal });
      assert.equal(code, expected);
      assert.match(stderr, new RegExp(`stilla: stopped by ${name}\n$`));
    }
  }));
