// `deno task bench [--data FOLDER] [--samples N] [--seeds LIST] [--out FILE] [SUBJECT...]`: times the library subject by
// subject, each after its answer was checked, and merges the figures into bench/results.
import { UsageError } from "../src/cli/flags.ts";
import { Device } from "../src/gpu/device.ts";
import type { Measurement, Subject } from "./harness.ts";
import { describeMachine, tableHeading, tableRow, writeResults } from "./result_file.ts";
import { blockStep } from "./subjects/block_step.ts";
import { distillation } from "./subjects/distillation.ts";
import { inference } from "./subjects/inference.ts";
import { kernels } from "./subjects/kernels.ts";
import { networkStep } from "./subjects/network_step.ts";
import { overhead } from "./subjects/overhead.ts";
import { scaling } from "./subjects/scaling.ts";
import { startUp } from "./subjects/start_up.ts";

/** Every subject by the name it is asked for. */
export const SUBJECTS: Readonly<Record<string, Subject>> = {
  "kernels": kernels,
  "overhead": overhead,
  "block-step": blockStep,
  "network-step": networkStep,
  "inference": inference,
  "start-up": startUp,
  "scaling": scaling,
  "distillation": distillation,
};

/** The command line. */
export interface Arguments {
  /** Folder of ResNet-20 and CIFAR-10. */
  readonly data: string | undefined;
  /** Timings of each figure. */
  readonly samples: number;
  readonly seeds: readonly number[];
  /** File of results; by default one a day and adapter. */
  readonly out: string | undefined;
  /** Names of subjects; none stands for all that do not run by name only. */
  readonly subjects: readonly string[];
}

const OPTIONS: Readonly<Record<string, string>> = {
  data: "FOLDER",
  samples: "N",
  seeds: "LIST",
  out: "FILE",
};

/**
 * Reads the command line.
 *
 * @param args words after the program's name
 * @returns options and subjects
 * @throws UsageError for an unknown option or subject, or a value that does not fit
 */
export function parseArguments(args: readonly string[]): Arguments {
  const values = new Map<string, string>();
  const subjects: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const word = args[i]!; // i is below the length
    if (!word.startsWith("--")) {
      if (!Object.hasOwn(SUBJECTS, word)) {
        const known = Object.keys(SUBJECTS).join(", ");
        throw new UsageError(`Unknown subject "${word}": expected one of ${known}`);
      }
      subjects.push(word);
      continue;
    }
    const option = word.slice(2);
    if (!Object.hasOwn(OPTIONS, option)) {
      const known = Object.keys(OPTIONS).map((name) => `--${name}`).join(", ");
      throw new UsageError(`Unknown option "${word}": expected one of ${known}`);
    }
    const value = args[++i];
    if (value === undefined) throw new UsageError(`${word} needs a value: ${OPTIONS[option]}`);
    values.set(option, value);
  }
  return {
    data: values.get("data"),
    samples: integer("samples", values.get("samples") ?? "11", 1),
    seeds: (values.get("seeds") ?? "0,1,2").split(",").map((seed) => integer("seeds", seed, 0)),
    out: values.get("out"),
    subjects,
  };
}

function integer(option: string, text: string, least: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= least && text.trim() !== "") return value;
  throw new UsageError(`--${option}: found "${text}", expected an integer of at least ${least}`);
}

/** Runs the subjects; the result is the exit code. */
async function main({ data, samples, seeds, out, subjects }: Arguments): Promise<number> {
  using device = await Device.open();
  const machine = describeMachine(device);
  const { adapter, family, subgroupSize, cpu, deno } = machine;
  console.log(
    `adapter: ${adapter}, kernels: ${family}, subgroup: ${subgroupSize}; ${cpu.model} x ${cpu.count}, Deno ${deno}`,
  );
  const chosen = subjects.length > 0
    ? subjects
    : Object.keys(SUBJECTS).filter((name) => !SUBJECTS[name]!.onlyByName);
  let code = 0;
  for (const name of chosen) {
    const subject = SUBJECTS[name]!; // parseArguments() knows all of them
    console.log(`\n## ${name}: ${subject.about}\n`);
    if (subject.needsData && data === undefined) {
      console.log("skipped: needs --data FOLDER with resnet20.onnx and the images of CIFAR-10");
      continue;
    }
    const measurements: Measurement[] = [];
    console.log(tableHeading());
    try {
      for await (const row of subject.run({ device, samples, data: data ?? "", seeds })) {
        measurements.push({ subject: name, ...row });
        console.log(tableRow(row));
      }
    } catch (error) {
      console.error(`${name}: ${(error as Error).message}`);
      code = 1;
    }
    writeResults(measurements, machine, out);
    device.trim();
  }
  return code;
}

if (import.meta.main) {
  try {
    Deno.exit(await main(parseArguments(Deno.args)));
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(error.message);
    Deno.exit(2);
  }
}
