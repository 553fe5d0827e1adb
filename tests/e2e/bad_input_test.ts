// Bad input ends in one line on standard error that names the culprit, exit code 2, and nothing left behind. Most cases
// run through main() in this process; the last test runs real processes, which is what a user starts.
import assert from "node:assert/strict";
import { join } from "node:path";
import { encode as encodePng } from "fast-png";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import type { Graph } from "../../src/graph/graph.ts";
import { runMain, tinyModel, tinyNetwork } from "../cli/_fake_run.ts";

/** The files all cases pick from. */
async function writeFiles(folder: string): Promise<void> {
  const write = (name: string, bytes: Uint8Array | string) =>
    typeof bytes === "string"
      ? Deno.writeTextFile(join(folder, name), bytes)
      : Deno.writeFile(join(folder, name), bytes);
  const npy = (name: string, array: NdArray) => write(name, encodeNpy(array));
  const model = tinyModel();
  await write("m.onnx", model);
  await write("empty.onnx", "");
  await write("text.onnx", "this is not a network");
  await write("cut.onnx", model.subarray(0, Math.floor(model.length * 0.6)));
  await write("nan.onnx", tinyModel({ weight: NaN }));
  await write("unknown.onnx", withOperator("Frobnicate"));
  await write("two_inputs.onnx", withTwoInputs());
  const x = encodeNpy(ndArray("uint8", [6, 3, 4, 4], new Uint8Array(288)));
  await write("x.npy", x);
  await write("cut.npy", x.subarray(0, x.length - 1));
  await npy("rank.npy", ndArray("uint8", [288], new Uint8Array(288)));
  await npy("dtype.npy", ndArray("float64", [6, 3, 4, 4], new Float64Array(288)));
  await npy("size.npy", ndArray("uint8", [6, 3, 5, 4], new Uint8Array(360)));
  await npy("none.npy", ndArray("uint8", [0, 3, 4, 4], new Uint8Array(0)));
  await npy("nan.npy", ndArray("float32", [1, 3, 4, 4], new Float32Array(48).fill(NaN)));
  await npy("y.npy", ndArray("uint8", [6], new Uint8Array(6)));
  await npy("y5.npy", ndArray("uint8", [5], new Uint8Array(5)));
  await npy("y_class.npy", ndArray("uint8", [6], new Uint8Array(6).fill(2)));
  await write("key.json", '{"weightBit": 4}');
  await write("twice.json", '{"seed": 1, "seed": 2}');
  await write("broken.json", '{"seed": 1');
  await write("range.json", '{"activationBits": 12}');
  await Deno.mkdir(join(folder, "no_images"));
  await Deno.mkdir(join(folder, "mixed"));
  const png = (height: number) =>
    encodePng({ width: 4, height, channels: 3, data: new Uint8Array(12 * height) });
  await write("mixed/a.png", png(4));
  await write("mixed/b.png", png(5));
  await Deno.mkdir(join(folder, "cut_image"));
  await write("cut_image/a.png", png(4).subarray(0, 40));
  await Deno.mkdir(join(folder, "mine"));
  await write("mine/thesis.txt", "keep");
}

function withOperator(opType: string): Uint8Array {
  // Renamed in the bytes, length kept: the exporter itself refuses operators it does not know.
  const bytes = tinyModel();
  const text = new TextDecoder("latin1").decode(bytes);
  const from = "GlobalAveragePool";
  const at = text.indexOf(from);
  assert.ok(at > 0);
  bytes.set(new TextEncoder().encode(opType.padEnd(from.length, "_")), at);
  return bytes;
}

function withTwoInputs(): Uint8Array {
  const graph = tinyNetwork();
  const second = { name: "x2", dtype: "float32", shape: ["N", 3, 4, 4] } as const;
  const changed: Graph = { ...graph, inputs: [...graph.inputs, second] };
  return exportOnnx(changed);
}

const DATA = ["--calibration", "x.npy"];
const MODEL = ["--model", "m.onnx"];
const BOTH = [...MODEL, ...DATA];
const EVALUATED = [...BOTH, "--evaluate", "x.npy"];

/** Arguments, and what the one line must say. */
const CASES: readonly (readonly [args: readonly string[], line: RegExp])[] = [
  [["--frobnicate"], /--frobnicate: unknown flag/],
  [[...BOTH, "--weight-bits", "9"], /--weight-bits: found 9, expected an integer from 2 to 8/],
  [[...BOTH, "--activation-bits", "1"], /--activation-bits: found 1, /],
  [[...BOTH, "--method", "magic"], /--method: found "magic", expected one of ptq, /],
  [[...BOTH, "--method", "qat"], /--calibration-labels: method "qat" trains with labels/],
  [MODEL, /calibration: found null, expected a file of inputs/],
  [[...DATA, "--model", "missing.onnx"], /missing\.onnx: no such file or folder/],
  [[...DATA, "--model", "mine"], /mine: is a folder, expected a file/],
  [[...DATA, "--model", "empty.onnx"], /empty\.onnx: /],
  [[...DATA, "--model", "text.onnx"], /text\.onnx: /],
  [[...DATA, "--model", "cut.onnx"], /cut\.onnx: /],
  [[...DATA, "--model", "nan.onnx"], /nan\.onnx: .*"?w"?.*NaN/],
  [[...DATA, "--model", "unknown.onnx"], /"pool" \(Frobnicate_*\)/],
  [[...DATA, "--model", "two_inputs.onnx"], /found 2 network inputs, expected 1/],
  [[...MODEL, "--calibration", "missing.npy"], /missing\.npy: no such file or folder/],
  [[...MODEL, "--calibration", "cut.npy"], /cut\.npy: /],
  [[...MODEL, "--calibration", "rank.npy"], /rank\.npy: shape: found \[288\], expected \[N, 3, /],
  [[...MODEL, "--calibration", "dtype.npy"], /dtype\.npy: dtype: found float64, expected uint8/],
  [[...MODEL, "--calibration", "size.npy"], /size\.npy: shape: found \[6, 3, 5, 4\]/],
  [[...MODEL, "--calibration", "none.npy"], /none\.npy: shape: .* expected at least 1 input/],
  [[...MODEL, "--calibration", "nan.npy"], /nan\.npy: input 0: found NaN/],
  [[...MODEL, "--calibration", "key.json"], /key\.json: byte 0: is no \.npy, \.npz or IDX file/],
  [[...MODEL, "--calibration", "no_images"], /no_images: found no \.png, \.jpg or \.jpeg file/],
  [[...MODEL, "--calibration", "mixed"], /b\.png: found 5 x 4 x 3, expected 4 x 4 x 3/],
  [[...MODEL, "--calibration", "cut_image"], /a\.png: /],
  [[...BOTH, "--mean", "0.5,0.5"], /mean: found 2 numbers, expected 1 or one for each of the 3/],
  [[...BOTH, "--std", "0"], /--std: found 0, expected numbers above 0/],
  [[...BOTH, "--labels", "y.npy"], /--labels: labels were given but nothing to evaluate/],
  [[...EVALUATED, "--labels", "y5.npy"], /y5\.npy: shape: found 5 labels, expected 6/],
  [[...EVALUATED, "--labels", "y_class.npy"], /label 0: found 2, expected a class number from 0/],
  [[...BOTH, "--recipe", "key.json"], /key\.json: weightBit: unknown key, did you mean "weightB/],
  [[...BOTH, "--recipe", "twice.json"], /twice\.json: .*"seed" is there twice/],
  [[...BOTH, "--recipe", "broken.json"], /broken\.json: /],
  [[...BOTH, "--recipe", "range.json"], /range\.json: activationBits: found 12, expected an integ/],
  [[...BOTH, "--out", "mine"], /mine: holds "thesis\.txt", expected an empty folder/],
  [[...BOTH, "--out", "m.onnx/run"], /m\.onnx: is a file, expected a folder/],
];

/** Every path in a folder. */
function pathsIn(folder: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) =>
    isDirectory ? [name, ...pathsIn(join(folder, name)).map((path) => join(name, path))] : [name]
  ).sort();
}

async function withFiles(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await writeFiles(folder);
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("bad input: one line, exit code 2, nothing left behind", () =>
  withFiles(async (folder) => {
    const before = pathsIn(folder);
    const good = await runMain([...EVALUATED, "--labels", "y.npy", "--out", "good"], folder);
    assert.equal(good.code, 0, good.stderr); // the files are wrong only where a case says so
    await Deno.remove(join(folder, "good"), { recursive: true });
    for (const [args, line] of CASES) {
      const out = args.includes("--out") ? [] : ["--out", "runs/out"];
      const { code, stdout, stderr } = await runMain([...args, ...out], folder);
      assert.equal(code, 2, `${args.join(" ")}: ${stderr}`);
      assert.equal(stdout, "");
      const lines = stderr.trimEnd().split("\n").filter((text) => !/^\w+: 6 inputs of/.test(text));
      assert.equal(lines.length, 1, stderr);
      assert.match(lines[0]!, /^stilla: /);
      assert.match(lines[0]!, line);
      assert.deepEqual(pathsIn(folder), before, args.join(" "));
    }
  }));

Deno.test("bad input in a process of its own: exit code 2 and one line, without a stack", () =>
  withFiles(async (folder) => {
    const before = pathsIn(folder);
    const main = new URL("../../src/cli/main.ts", import.meta.url).href;
    const words = ["--frobnicate", "cut.onnx", "unknown.onnx", "nan.npy", "mixed", "twice.json"];
    const chosen = CASES.filter(([args]) => args.some((word) => words.includes(word)));
    assert.equal(chosen.length, words.length);
    for (const [args, line] of chosen) {
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--quiet", "--no-check", main, ...args, "--out", "runs/out"],
        cwd: folder,
        env: { INIT_CWD: folder },
        stdin: "null",
      }).output();
      const text = new TextDecoder().decode(stderr);
      assert.equal(code, 2, text);
      assert.equal(stdout.length, 0);
      assert.match(text, line);
      assert.match(text, /^stilla: [^\n]+\n$/);
      assert.deepEqual(pathsIn(folder), before);
    }
  }));
