// Reads every import of the library and fails on an edge that the plan of rooms does not allow, and on the few global
// things that belong to one room only: the GPU, and printing and exiting.
import assert from "node:assert/strict";
import { relative } from "node:path";
import { fileURLToPath } from "node:url";

/** A room may import itself and rooms of a lower row. */
const ROWS: Readonly<Record<string, number>> = {
  kernels: 0,
  core: 0,
  gpu: 1,
  graph: 1,
  autograd: 1.5,
  formats: 1.5,
  ops: 2,
  optim: 2,
  data: 2,
  quant: 3,
  compress: 4,
  distill: 5,
  search: 5,
  run: 6,
  cli: 7,
};

const ROOT = new URL("..", import.meta.url);
const TEST_ONLY = ["onnxruntime-node"];

/** What is wrong with one file of the library; `path` is relative to the project. */
function violations(path: string, source: string): string[] {
  const room = roomOf(path);
  const found: string[] = [];
  const code = source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/(^|[^:])\/\/.*$/gm, "$1");
  for (const target of importsOf(code)) {
    if (!target.startsWith(".")) {
      if (/^(jsr|https?|npm):/.test(target)) found.push(`${path} imports ${target} directly`);
      if (TEST_ONLY.includes(target)) found.push(`${path} imports ${target}, which is for tests`);
      continue;
    }
    const file = relativePath(new URL(target, new URL(path, ROOT)));
    if (file === "deno.json") continue;
    const other = roomOf(file);
    const isBelow = other !== undefined && room !== undefined && ROWS[other]! < ROWS[room]!;
    if (other !== room && !isBelow) found.push(`${path} imports ${file}`);
    if (other !== room && file.endsWith("_private.ts")) found.push(`${path} imports ${file}`);
  }
  if (/\bimport\((?!\s*["'])/.test(code)) found.push(`${path} imports what it computes`);
  if (room !== "gpu" && /\bnavigator\.gpu\b/.test(code)) found.push(`${path} uses navigator.gpu`);
  if (room !== "cli" && /\bconsole\.|\bDeno\.(exit|args|stdout|stderr)\b/.test(code)) {
    found.push(`${path} prints, reads arguments or exits`);
  }
  // The run room compares the age of files; what is computed never depends on the time.
  if (
    room !== "cli" && room !== "run" && /\bDate\.now\b|\bMath\.random\b|\bnew Date\(\)/.test(code)
  ) {
    found.push(`${path} reads the clock or draws unseeded numbers`);
  }
  return found;
}

Deno.test("layering: imports point down, and the GPU, the clock and the terminal stay in their rooms", async () => {
  const files = [...await sources("kernels/"), ...await sources("src/")];
  assert.ok(files.length > 20, `found only ${files.length} files`);
  const found: string[] = [];
  for (const path of files) {
    found.push(...violations(path, await Deno.readTextFile(new URL(path, ROOT))));
  }
  assert.deepEqual(found, []);
});

Deno.test("layering: every room has its row", async () => {
  const rooms = ["kernels"];
  for await (const entry of Deno.readDir(new URL("src", ROOT))) rooms.push(entry.name);
  assert.deepEqual(rooms.filter((room) => ROWS[room] === undefined), []);
});

Deno.test("layering: violations() sees every kind of forbidden line", () => {
  const cases: readonly (readonly [path: string, source: string, forbidden: boolean])[] = [
    ["src/core/a.ts", 'import { x } from "../gpu/device.ts";', true],
    ["src/gpu/a.ts", 'import type {\n  Graph,\n} from "../graph/graph.ts";', true],
    ["src/ops/a.ts", 'export * from "../data/labels.ts";', true],
    ["src/ops/a.ts", 'const m = await import("../distill/recipe.ts");', true],
    ["kernels/a.ts", 'import { x } from "../src/core/errors.ts";', true],
    ["src/quant/a.ts", 'import "../ops/conv_private.ts";', true],
    ["src/formats/a.ts", 'import { x } from "jsr:@std/assert";', true],
    ["src/formats/a.ts", 'import * as ort from "onnxruntime-node";', true],
    ["src/ops/a.ts", "await import(path);", true],
    ["src/ops/a.ts", "navigator.gpu.requestAdapter();", true],
    ["src/run/a.ts", 'console.log("x");', true],
    ["src/run/a.ts", "Deno.exit(1);", true],
    ["src/data/a.ts", "Math.random();", true],
    ["src/gpu/a.ts", "navigator.gpu.requestAdapter();", false],
    ["src/cli/a.ts", 'import { x } from "../gpu/device.ts"; console.log(x);', false],
    ["src/formats/a.ts", 'import { x } from "../graph/graph.ts"; // console.log', false],
    ["src/distill/report.ts", 'import c from "../../deno.json" with { type: "json" };', false],
    ["src/ops/a.ts", ' * import { x } from "../cli/main.ts";\n', false],
  ];
  for (const [path, source, forbidden] of cases) {
    assert.equal(violations(path, source).length > 0, forbidden, `${path}: ${source}`);
  }
});

function importsOf(code: string): string[] {
  const statements = /^\s*(?:import|export)\b[^;"'`]*?\bfrom\s*["']([^"']+)["']/gm;
  const bare = /^\s*import\s*["']([^"']+)["']/gm;
  const dynamic = /\bimport\(\s*["']([^"']+)["']/g;
  return [statements, bare, dynamic].flatMap((pattern) =>
    [...code.matchAll(pattern)].map((match) => match[1]!)
  );
}

function roomOf(path: string): string | undefined {
  const [top, next] = path.split("/");
  return top === "src" ? next : top === "kernels" ? "kernels" : undefined;
}

function relativePath(url: URL): string {
  return relative(fileURLToPath(ROOT), fileURLToPath(url)).replaceAll("\\", "/");
}

async function sources(folder: string): Promise<string[]> {
  const found: string[] = [];
  for await (const entry of Deno.readDir(new URL(folder, ROOT))) {
    if (entry.isDirectory) found.push(...await sources(`${folder}${entry.name}/`));
    else if (entry.name.endsWith(".ts")) found.push(folder + entry.name);
  }
  return found;
}
