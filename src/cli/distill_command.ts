// `deno task distill`: one network, or the built-in example with every method in one table.
import { basename, join, resolve } from "node:path";
import { describeImages } from "../data/image_set.ts";
import type { distill, DistillOptions, RecognisedData } from "../distill/distill.ts";
import type { planRun, RunPlan } from "../distill/dry_run.ts";
import { planText } from "../distill/plan_text.ts";
import type { Recipe } from "../distill/recipe.ts";
import { bitsName } from "../distill/report.ts";
import {
  layerTable,
  type NetworkRow,
  networkRows,
  networkTable,
  type Report,
  reportJson,
  VERSION,
} from "../distill/report.ts";
import type { Device } from "../gpu/device.ts";
import type { Graph } from "../graph/graph.ts";
import { readJson } from "../run/input_files.ts";
import { MNIST_EXAMPLE, mnistExample } from "../run/mnist_example.ts";
import { type EncodedRun, RUN_ENTRIES, runFiles } from "../run/run_files.ts";
import { checkRunFolder, writeRunFolder } from "../run/run_folder.ts";
import { readRunInputs, type RunInputs, usesLabels } from "../run/run_inputs.ts";
import { type Flags, recipeOf } from "./flags.ts";
import type { Io } from "./io.ts";
import { ProgressPrinter } from "./progress.ts";

/** The part of stilla that a test of the command line may stand in for. */
export interface Engine {
  /** {@linkcode distill}; the command line always hands it complete recipes and recognised data. */
  readonly distill: (
    model: Graph,
    data: RecognisedData,
    recipe: Recipe,
    options: DistillOptions,
  ) => ReturnType<typeof distill>;
  /** {@linkcode planRun}. */
  readonly plan: typeof planRun;
  /** Opens the GPU, once for all runs of a command. */
  readonly open: () => Promise<Device>;
}

/** The example's rows, in the order of the table. */
const EXAMPLE_ROWS: readonly Pick<Recipe, "method" | "weightBits" | "activationBits">[] = [8, 4]
  .flatMap((bits) =>
    (["ptq", "qat", "layerwise", "blockwise"] as const).map((method) => ({
      method,
      weightBits: bits,
      activationBits: bits,
    }))
  );

/** Flags that ask for one network instead of the example's table. */
const SINGLE_RUN_KEYS = ["model", "method", "weightBits", "activationBits", "calibration"];

/**
 * Runs the command.
 *
 * @param flags the command line
 * @param io where to print, and what may stop it
 * @param engine the engine
 */
export async function distillCommand(flags: Flags, io: Io, engine: Engine): Promise<void> {
  const recipe = recipeOf(await readLayers(flags, io), flags, io.cwd);
  const single = flags.recipe !== undefined || SINGLE_RUN_KEYS.some((key) => flags.values.has(key));
  if (flags.dryRun) {
    return await planOnly(single ? [recipe] : exampleRecipes(recipe), flags, io, engine);
  }
  await (single
    ? distillOne(recipe, flags, io, engine)
    : distillExample(recipe, flags, io, engine));
}

/**
 * The recipes that the flags override: the built-in example's, unless there is a network of the user's, and a file.
 *
 * @param flags the command line
 * @param io which folder relative paths start from
 * @returns for {@linkcode recipeOf}, the strongest last
 */
export async function readLayers(
  flags: Flags,
  io: Io,
): Promise<{ value: unknown; path: string }[]> {
  const layers: { value: unknown; path: string }[] = [];
  if (flags.recipe !== undefined) {
    const path = resolve(io.cwd, flags.recipe);
    layers.push({ value: await readJson(path), path });
  }
  const model = flags.values.get("model") ?? (layers[0]?.value as { model?: unknown })?.model;
  if (model === undefined || model === MNIST_EXAMPLE) {
    const path = mnistExample().recipe;
    layers.unshift({ value: await readJson(path), path });
  }
  return layers;
}

/** Prints what the runs would do; no folder is made. */
async function planOnly(
  recipes: readonly Recipe[],
  flags: Flags,
  io: Io,
  engine: Engine,
): Promise<void> {
  const printer = new ProgressPrinter(io);
  const onProgress = printer.update.bind(printer);
  const [first] = recipes;
  const { model, data } = await readRunInputs(first!); // the command has one recipe at least
  describeInputs(data, printer);
  using device = await engine.open();
  const plans: RunPlan[] = [];
  try {
    for (const recipe of recipes) {
      io.signal.throwIfAborted();
      plans.push(await engine.plan(model, data, recipe, { device, onProgress, signal: io.signal }));
    }
  } finally {
    printer.clear();
  }
  const json = plans.length === 1 ? plans[0] : plans;
  io.stdout(flags.json ? reportJson(json) : plans.map(planText).join("\n"));
}

async function distillOne(asked: Recipe, flags: Flags, io: Io, engine: Engine): Promise<void> {
  const recipe = { ...asked, out: asked.out ?? join(io.cwd, "runs", runName(asked)) };
  await checkRunFolder(recipe.out, RUN_ENTRIES);
  const printer = new ProgressPrinter(io);
  const inputs = await readRunInputs(recipe);
  describeInputs(inputs.data, printer);
  using device = await engine.open();
  const { files, report } = await run(recipe, inputs, { device, engine, printer, io });
  await writeRunFolder(recipe.out, files);
  printer.note(`wrote ${recipe.out}`);
  if (report.streamed) {
    printer.note(
      "the activations of all samples need more than --memory-budget: kept in host memory",
    );
  }
  if (flags.json) return io.stdout(reportJson(report));
  io.stdout(`${networkTable(networkRows(report))}\n`);
  if (report.network.agreement !== null) {
    const percent = (report.network.agreement * 100).toFixed(2);
    io.stdout(`\nteacher and student give the same class on ${percent} % of the inputs\n`);
  }
  if (report.layers.length > 0) io.stdout(`\nworst layers\n${layerTable(report)}\n`);
}

async function distillExample(asked: Recipe, flags: Flags, io: Io, engine: Engine): Promise<void> {
  const out = asked.out ?? join(io.cwd, "runs", MNIST_EXAMPLE);
  const recipes = exampleRecipes(asked);
  const names = recipes.map(rowName);
  await checkRunFolder(out, [...names, "report.json", "table.txt"]);
  const printer = new ProgressPrinter(io);
  const inputs = await readRunInputs({ ...asked, method: "qat" }); // labels included
  describeInputs(inputs.data, printer);
  const { calibrationLabels: _, ...unlabelled } = inputs.data;
  using device = await engine.open();
  const reports: Report[] = [];
  const folder = new Map<string, Uint8Array>();
  const teacherClasses: DistillOptions["teacherClasses"] = new WeakMap();
  for (const [index, recipe] of recipes.entries()) {
    const name = names[index]!;
    printer.prefix = `${index + 1}/${recipes.length} ${name}: `;
    const own = { ...recipe, out: join(out, name) };
    const data = usesLabels(recipe) ? inputs.data : unlabelled;
    const place = { device, engine, printer, io, teacherClasses };
    const { files, report } = await run(own, { ...inputs, data }, place);
    reports.push(report);
    for (const [path, bytes] of files) folder.set(`${name}/${path}`, bytes);
  }
  printer.prefix = "";
  const rows: NetworkRow[] = reports.flatMap((report, index) => {
    const [teacher, student] = networkRows(report);
    return index === 0 ? [teacher, student] : [student];
  });
  const note = exampleNote(asked, inputs.data);
  const summary = { stilla: VERSION, note, rows, runs: reports };
  const table = `${networkTable(rows)}\n\n${note}\n`;
  const text = new TextEncoder();
  folder.set("report.json", text.encode(reportJson(summary)));
  folder.set("table.txt", text.encode(table));
  await writeRunFolder(out, folder);
  printer.note(`wrote ${out}`);
  io.stdout(flags.json ? reportJson(summary) : table);
}

function exampleRecipes(asked: Recipe): Recipe[] {
  return EXAMPLE_ROWS.map((row) => ({ ...asked, ...row }));
}

/** What the table cannot say by itself. */
function exampleNote(
  { samples }: Recipe,
  { calibration, evaluation }: RecognisedData,
): string {
  const used = Math.min(samples, calibration.count).toLocaleString("en");
  const tested = evaluation?.count.toLocaleString("en") ?? "no";
  return `top-1 on ${tested} test images; all students from the same ${used} training images, qat also from their
labels; seconds include the evaluation, those of the first student also the fp32 network's`;
}

/** Distils and encodes the result; nothing is written. */
async function run(
  recipe: Recipe,
  { model, modelBytes, data }: RunInputs,
  { device, engine, printer, io, teacherClasses }: {
    readonly device: Device;
    readonly engine: Engine;
    readonly printer: ProgressPrinter;
    readonly io: Io;
    readonly teacherClasses?: DistillOptions["teacherClasses"];
  },
): Promise<EncodedRun> {
  const { signal } = io;
  const onProgress = printer.update.bind(printer);
  try {
    signal.throwIfAborted();
    const result = await engine.distill(model, data, recipe, {
      device,
      onProgress,
      signal,
      ...(teacherClasses && { teacherClasses }),
    });
    return runFiles({ recipe, modelBytes, ...result });
  } finally {
    printer.clear();
  }
}

/**
 * Says what the inputs were recognised as.
 *
 * @param data the inputs
 * @param printer where to say it
 */
export function describeInputs(data: RecognisedData, printer: ProgressPrinter): void {
  printer.note(`calibration: ${describeImages(data.calibration)}`);
  if (data.evaluation !== undefined) {
    printer.note(`evaluation: ${describeImages(data.evaluation)}`);
  }
}

function rowName(recipe: Recipe): string {
  return `${recipe.method}-${bitsName(recipe).toLowerCase()}`;
}

function runName(recipe: Recipe): string {
  return `${basename(recipe.model).replace(/\.onnx$/i, "")}-${rowName(recipe)}`;
}
