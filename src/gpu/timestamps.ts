// GPU timestamps: how long each dispatch of a list took on the device itself.
import type { Dispatch } from "./device.ts";
import type { ReadBack } from "./read_back.ts";

/** Two timestamps a dispatch; WebGPU's largest query set holds 4096. */
const MOST_DISPATCHES = 2048;

/** Submitted work whose timestamps can be taken once it is done. */
export interface TimedWork {
  /** Labels of the dispatches, in order. */
  readonly labels: readonly string[];
  readonly querySet: GPUQuerySet;
  /** Two 64-bit stamps a dispatch. */
  readonly stamps: GPUBuffer;
}

/**
 * Runs dispatches in order, each in a pass of its own between two timestamps.
 *
 * @param gpu a device with the feature `timestamp-query`
 * @param dispatches what to run
 * @returns what {@linkcode takeTimes} reads, in parts that fit a query set
 */
export function submitTimed(gpu: GPUDevice, dispatches: readonly Dispatch[]): TimedWork[] {
  const parts: TimedWork[] = [];
  for (let first = 0; first < dispatches.length; first += MOST_DISPATCHES) {
    const part = dispatches.slice(first, first + MOST_DISPATCHES);
    const count = 2 * part.length;
    const querySet = gpu.createQuerySet({ type: "timestamp", count });
    const usage = GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC;
    const stamps = gpu.createBuffer({ size: count * 8, usage, label: "timestamps" });
    const encoder = gpu.createCommandEncoder();
    part.forEach(({ pipeline, bindGroup, grid }, i) => {
      const pass = encoder.beginComputePass({
        timestampWrites: {
          querySet,
          beginningOfPassWriteIndex: 2 * i,
          endOfPassWriteIndex: 2 * i + 1,
        },
      });
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bindGroup);
      pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
      pass.end();
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
 * @returns nanoseconds of each dispatch
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
