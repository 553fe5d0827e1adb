// A command line without a terminal and an engine without a GPU: what the tests of the command line run with.
import { ndArray } from "../../src/core/nd_array.ts";
import type { Engine } from "../../src/cli/distill_command.ts";
import type { Io } from "../../src/cli/io.ts";
import { main } from "../../src/cli/main.ts";
import { describeRun } from "../../src/distill/dry_run.ts";
import { plannedStages } from "../../src/distill/planned_stages.ts";
import { prepareRun } from "../../src/distill/prepare_run.ts";
import type { Report } from "../../src/distill/report.ts";
import { exportOnnx } from "../../src/formats/onnx_export.ts";
import type { Device } from "../../src/gpu/device.ts";
import type { Graph } from "../../src/graph/graph.ts";

/** What a run of the command line did. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a command without a terminal.
 *
 * @param command what to run
 * @param cwd its folder
 * @param signal stops it
 * @returns what it printed, and its exit code
 */
export async function outcomeOf(
  command: (io: Io) => Promise<number>,
  cwd: string,
  signal: AbortSignal,
): Promise<Outcome> {
  let [stdout, stderr] = ["", ""];
  const io: Io = {
    stdout: (text) => stdout += text,
    stderr: (text) => stderr += text,
    columns: null,
    now: () => 0,
    cwd,
    signal,
  };
  const code = await command(io);
  return { code, stdout, stderr };
}

/** Runs `main` in the given folder. */
export function runMain(
  args: readonly string[],
  cwd: string,
  options: { readonly engine?: Engine; readonly signal?: AbortSignal } = {},
): Promise<Outcome> {
  const { engine = fakeEngine(), signal = new AbortController().signal } = options;
  return outcomeOf((io) => main(args, io, engine), cwd, signal);
}

const TARGET = { family: "software", subgroupSize: 8 };

/** Gives the model back as its own student; `failure` is thrown instead where given. */
export function fakeEngine(
  options: {
    readonly failure?: unknown;
    readonly seen?: Parameters<Engine["distill"]>[];
    readonly planned?: Parameters<Engine["plan"]>[];
  } = {},
): Engine {
  const { failure, seen = [], planned = [] } = options;
  return {
    open: () => Promise.resolve(fakeDevice()),
    plan: (...parameters) => {
      planned.push(parameters);
      const [graph, data, recipe] = parameters;
      const device = {
        limits: { maxBufferSize: 2 ** 30 },
        maxTensorBytes: 2 ** 27,
        target: TARGET,
      };
      // What a device would give is made up: the rest is as it is.
      const prepared = prepareRun(
        device as unknown as Device,
        graph,
        data.calibration.count,
        recipe,
      );
      const stages = plannedStages(device, prepared, recipe);
      const measured = { adapter: "none", batch: 16, seconds: 0.016 };
      const evaluate = data.evaluation?.count ?? 0;
      return Promise.resolve(describeRun(recipe, prepared, stages, evaluate, measured));
    },
    distill: (...parameters) => {
      seen.push(parameters);
      const [graph, data, recipe, hooks] = parameters;
      hooks.onProgress?.({ stage: "distil", unit: "conv\x1b[31m", done: 1, total: 2, loss: 0.5 });
      if (failure !== undefined) return Promise.reject(failure);
      const empty = new Map<string, never>();
      const student = { graph, weights: empty, biases: empty, activations: empty };
      return Promise.resolve({ student, report: fakeReport(recipe, data.calibration.count) });
    },
  };
}

/** A device that the fake engine never computes on. */
export function fakeDevice(adapterName = "none"): Device {
  return { adapterName, trim: () => {}, [Symbol.dispose]: () => {} } as unknown as Device;
}

function fakeReport(
  recipe: Parameters<Engine["distill"]>[2],
  train: number,
): Report {
  const { method, weightBits, activationBits, activationRanges, seed } = recipe;
  return {
    stilla: "0.0.0",
    adapter: "none",
    tunedTiles: 0,
    method,
    weightBits,
    activationBits,
    activationRanges,
    activationExponent: null,
    seed,
    streamed: recipe.memoryBudget !== null,
    notEqualized: {},
    samples: { train, heldOut: 0 },
    layers: [],
    network: {
      evaluated: null,
      top1Teacher: 0.9,
      top1Student: 0.8,
      agreement: null,
      sizeBytes: null,
      weightBytes: 6,
    },
    seconds: { calibrate: 0, distill: 0, evaluate: 0, total: 1 },
  };
}

/** A network of one 1 x 1 convolution: x [N, 3, 4, 4], logits [N, 2]. */
export function tinyNetwork(changes: { readonly weight?: number } = {}): Graph {
  const weights = Float32Array.from([changes.weight ?? 1, 2, 3, -1, -2, -3]);
  return {
    name: "tiny",
    opset: 13,
    inputs: [{ name: "x", dtype: "float32", shape: ["N", 3, 4, 4] }],
    outputs: [{ name: "logits", dtype: "float32", shape: ["N", 2] }],
    nodes: [
      {
        name: "conv",
        opType: "Conv",
        inputs: ["x", "w"],
        outputs: ["c"],
        attributes: { kernel_shape: [1, 1] },
      },
      {
        name: "pool",
        opType: "GlobalAveragePool",
        inputs: ["c"],
        outputs: ["p"],
        attributes: {},
      },
      { name: "flat", opType: "Flatten", inputs: ["p"], outputs: ["logits"], attributes: {} },
    ],
    initializers: new Map([["w", ndArray("float32", [2, 3, 1, 1], weights)]]),
  };
}

/** {@linkcode tinyNetwork} as a file. */
export function tinyModel(changes: { readonly weight?: number } = {}): Uint8Array {
  return exportOnnx(tinyNetwork(changes));
}
