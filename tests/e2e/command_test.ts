// The command line as a user starts it: real processes, a real network, real data.
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { encode as encodePng } from "fast-png";
import { gzipSync, zipSync } from "fflate";
import { type NdArray, ndArray } from "../../src/core/nd_array.ts";
import type { ImageSet } from "../../src/data/image_set.ts";
import { distill } from "../../src/distill/distill.ts";
import { planRun } from "../../src/distill/dry_run.ts";
import { encodeNpy } from "../../src/formats/npy.ts";
import { decodeWeightBundle } from "../../src/formats/weight_bundle.ts";
import type { Device } from "../../src/gpu/device.ts";
import { runMain } from "../cli/_fake_run.ts";
import { testDevice } from "../_gpu.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { type NetworkName, type RealNetwork, realNetwork } from "./_networks.ts";

const CONFIG = fileURLToPath(new URL("../../deno.json", import.meta.url));
const MAIN = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A process of its own; `task` takes the whole way by `deno task`, set-up included. */
async function start(
  args: readonly string[],
  cwd: string,
  { task = false }: { readonly task?: boolean } = {},
): Promise<Outcome> {
  const before = task
    ? ["task", "--quiet", "--config", CONFIG, "distill"]
    : ["run", "-A", "--no-check", "--config", CONFIG, MAIN];
  // `deno task test` has set it, and `deno task` would keep it.
  const { INIT_CWD: _, ...environment } = Deno.env.toObject();
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...before, ...args],
    cwd,
    clearEnv: true,
    // Set, though empty: no vector widths are tried.
    env: { LP_NATIVE_VECTOR_WIDTH: "", ...environment, ...(!task && { INIT_CWD: cwd }) },
    stdin: "null",
  }).output();
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

/** A folder with a network, 16 of its inputs and their labels as files. */
async function withNetwork(
  name: NetworkName,
  body: (folder: string, real: RealNetwork, flags: readonly string[]) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    const real = realNetwork(name, 16);
    const { scale, mean, std } = real.preprocessing;
    await Deno.writeFile(join(folder, "model.onnx"), real.bytes);
    await Deno.writeFile(join(folder, "x.npy"), encodeNpy(arrayOf(real.images)));
    await Deno.writeFile(
      join(folder, "y.npy"),
      encodeNpy(ndArray("uint8", [16], Uint8Array.from(real.labels))),
    );
    const numbers = [`--scale=${scale}`, `--mean=${mean.join()}`, `--std=${std.join()}`];
    await body(folder, real, ["--model", "model.onnx", ...numbers]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function arrayOf({ count, channels, height, width, dtype, data }: ImageSet): NdArray {
  return ndArray(dtype, [count, channels, height, width], data);
}

/** Contents by path of everything in a folder. */
function filesIn(folder: string): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (isDirectory) {
      for (const [path, bytes] of filesIn(join(folder, name))) files.set(`${name}/${path}`, bytes);
    } else {
      files.set(name, Deno.readFileSync(join(folder, name)));
    }
  }
  return new Map([...files].sort(([a], [b]) => a < b ? -1 : 1));
}

function processTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ignore: sharedDataMissing, fn });
}

processTest(
  "deno task distill leaves a complete run folder, and its recipe repeats it",
  () =>
    withNetwork("dscnn", async (folder, _, flags) => {
      const args = [...flags, "--calibration", "x.npy", "--evaluate", "x.npy", "--labels", "y.npy"];
      const width = ["--weight-bits", "4", "--activation-bits=6", "--method", "ptq"];
      const first = await start([...args, ...width, "--out", "runs/a"], folder, { task: true });
      assert.equal(first.code, 0, first.stderr);
      assert.match(first.stdout, /^network .*\nfp32 +\d+\.\d\d.*\nptq W4A6 +\d+\.\d\d /);
      assert.match(first.stderr, /16 inputs of 1 x 49 x 10, int8, channels first \(NCHW\)/);
      assert.match(first.stderr, /wrote .*a\n$/);
      const run = join(folder, "runs/a");
      const files = filesIn(run);
      const weights = new Map(
        [...files].filter(([path]) => path.startsWith("weights/"))
          .map(([path, bytes]) => [path.slice("weights/".length), bytes]),
      );
      const others = [...files.keys()].filter((path) => !path.startsWith("weights/"));
      assert.deepEqual(others, ["recipe.json", "report.json", "student.onnx"]);
      assert.equal(decodeWeightBundle(weights).weights.size, 10);
      const report = JSON.parse(new TextDecoder().decode(files.get("report.json")));
      assert.equal(report.layers.length, 10);
      assert.equal(report.network.evaluated, 16);
      assert.ok(report.network.top1Teacher > 0.5 && report.adapter !== "");
      assert.equal(report.network.sizeBytes.int8, files.get("student.onnx")!.length);

      const again = await start(["--recipe", "runs/a/recipe.json", "--json"], folder);
      assert.equal(again.code, 0, again.stderr);
      const { seconds: _seconds, ...printed } = JSON.parse(again.stdout);
      const { seconds: _before, ...earlier } = report;
      assert.deepEqual(printed, earlier);
      const repeated = filesIn(run);
      files.delete("report.json");
      repeated.delete("report.json");
      assert.deepEqual(repeated, files);
      assert.deepEqual([...Deno.readDirSync(join(folder, "runs"))].map(({ name }) => name), ["a"]);
    }),
);

processTest(
  "distill stopped by SIGINT ends with 130 and leaves nothing",
  () =>
    withNetwork("dscnn", async (folder, _, flags) => {
      const before = [...filesIn(folder).keys()];
      const args = [...flags, "--calibration", "x.npy", "--steps", "100000", "--out", "runs/a"];
      const child = new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--no-check", "--config", CONFIG, MAIN, ...args],
        cwd: folder,
        env: { INIT_CWD: folder },
        stdin: "null",
        stdout: "piped",
        stderr: "piped",
      }).spawn();
      const giveUp = setTimeout(() => child.kill("SIGKILL"), 120_000); // code 137 instead of a test that hangs
      const stdout = new Response(child.stdout).text();
      let stderr = "";
      for await (const chunk of child.stderr.pipeThrough(new TextDecoderStream())) {
        // It is in the middle of the first unit.
        if (!stderr.includes("blockwise") && (stderr + chunk).includes("blockwise")) {
          child.kill("SIGINT");
        }
        stderr += chunk;
      }
      const { code } = await child.status;
      clearTimeout(giveUp);
      assert.equal(code, 130, stderr);
      assert.match(stderr, /\nstilla: stopped by SIGINT\n$/);
      assert.equal(await stdout, "");
      assert.deepEqual([...filesIn(folder).keys()], before);
      assert.throws(() => Deno.statSync(join(folder, "runs")), Deno.errors.NotFound);
    }),
);

processTest(
  "distill gives the same student from .npy in both layouts, .npz, IDX and PNG files",
  () =>
    withNetwork("resnet8", async (folder, real, flags) => {
      const device = await testDevice();
      const engine = {
        plan: planRun,
        distill: (...[model, data, recipe, options]: Parameters<typeof distill>) =>
          distill(model, data, recipe, { ...options, device }),
        // The test's own device is used, and stays open.
        open: () => Promise.resolve({ [Symbol.dispose]: () => {} } as unknown as Device),
      };
      const { images } = real;
      const array = arrayOf(images);
      const last = channelsLast(images);
      const write = (name: string, bytes: Uint8Array) => Deno.writeFile(join(folder, name), bytes);
      await write("last.npy", encodeNpy(ndArray("uint8", [16, 32, 32, 3], last)));
      await write("x.npz", zipSync({ "x.npy": encodeNpy(array) }));
      const header = [0, 0, 8, 4, 0, 0, 0, 16, 0, 0, 0, 3, 0, 0, 0, 32, 0, 0, 0, 32]; // uint8, 4 axes
      await write("x.idx.gz", gzipSync(Uint8Array.from([...header, ...images.data as Uint8Array])));
      await Deno.mkdir(join(folder, "png"));
      for (let i = 0; i < 16; i++) {
        const data = last.slice(i * 3072, (i + 1) * 3072);
        const name = `png/${String(i).padStart(2, "0")}.png`;
        await write(name, encodePng({ width: 32, height: 32, channels: 3, data }));
      }
      const students: Uint8Array[] = [];
      for (const input of ["x.npy", "last.npy", "x.npz", "x.idx.gz", "png"]) {
        const args = [...flags, "--calibration", input, "--method", "ptq", "--out", "run"];
        const { code, stderr } = await runMain(args, folder, { engine });
        assert.equal(code, 0, stderr);
        students.push(Deno.readFileSync(join(folder, "run/student.onnx")));
      }
      for (const student of students) assert.deepEqual(student, students[0]);
    }),
);

function channelsLast({ count, channels, height, width, data }: ImageSet): Uint8Array<ArrayBuffer> {
  const pixels = height * width;
  return Uint8Array.from(data, (_, i) => {
    const image = Math.floor(i / (pixels * channels));
    const pixel = Math.floor(i / channels) % pixels;
    return data[(image * channels + i % channels) * pixels + pixel]!;
  }).subarray(0, count * pixels * channels);
}
