// GPU timestamps: how long each dispatch or copy of a list took on the device itself.
import { type Command, encodeCopies, encodeDispatch } from "./commands.ts";
import type { ReadBack } from "./read_back.ts";

/** Two timestamps a command; WebGPU's largest query set holds 4096. */
const MOST_COMMANDS = 2048;

/** Submitted work whose timestamps can be taken once it is done. */
export interface TimedWork {
  /** Labels of the commands, in order. */
  readonly labels: readonly string[];
  readonly querySet: GPUQuerySet;
  /** Two 64-bit stamps a command. */
  readonly stamps: GPUBuffer;
}

/**
 * Runs work in order, each dispatch in a pass of its own between two timestamps, copies between two empty passes.
 *
 * @param gpu a device with the feature `timestamp-query`
 * @param commands what to run
 * @returns what {@linkcode takeTimes} reads, in parts that fit a query set
 */
export function submitTimed(gpu: GPUDevice, commands: readonly Command[]): TimedWork[] {
  const parts: TimedWork[] = [];
  for (let first = 0; first < commands.length; first += MOST_COMMANDS) {
    const part = commands.slice(first, first + MOST_COMMANDS);
    const count = 2 * part.length;
    const querySet = gpu.createQuerySet({ type: "timestamp", count });
    const usage = GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC;
    const stamps = gpu.createBuffer({ size: count * 8, usage, label: "timestamps" });
    const encoder = gpu.createCommandEncoder();
    part.forEach((command, i) => {
      const first = 2 * i, second = first + 1;
      const pass = (timestampWrites: object) =>
        encoder.beginComputePass({ timestampWrites: { querySet, ...timestampWrites } });
      if ("ranges" in command) {
        pass({ endOfPassWriteIndex: first }).end();
        encodeCopies(encoder, command);
        pass({ beginningOfPassWriteIndex: second }).end();
        return;
      }
      const timed = pass({ beginningOfPassWriteIndex: first, endOfPassWriteIndex: second });
      encodeDispatch(timed, command);
      timed.end();
    });
    encoder.resolveQuerySet(querySet, 0, count, stamps, 0);
    gpu.queue.submit([encoder.finish()]);
    parts.push({ labels: part.map(({ label }) => label), querySet, stamps });
  }
  return parts;
}

/**
 * Waits for timed work and gives its memory back.
 *
 * @param work of {@linkcode submitTimed}
 * @param readBack of the same device
 * @returns nanoseconds of each command
 */
export async function takeTimes(
  { labels, querySet, stamps }: TimedWork,
  readBack: ReadBack,
): Promise<number[]> {
  const times = new BigUint64Array(await readBack.read(stamps, 0, labels.length * 16));
  querySet.destroy();
  stamps.destroy();
  return labels.map((_, i) => Number(times[2 * i + 1]! - times[2 * i]!));
}
