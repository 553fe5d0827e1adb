// Where the time of a device goes, kernel by kernel. A device that is opened with a profiler times every dispatch; each
// runs in a pass of its own then, so a profiled run is slower than a plain one, its kernels are not.
import type { Command } from "./commands.ts";
import type { ReadBack } from "./read_back.ts";
import { submitTimed, takeTimes, type TimedWork } from "./timestamps.ts";

/** Time of all dispatches with one label. */
export interface KernelTime {
  /** The profiler's stage when the dispatches were submitted. */
  readonly stage: string;
  /** The kernel's label. */
  readonly label: string;
  /** How many there were. */
  readonly dispatches: number;
  /** All of them together. */
  readonly nanoseconds: number;
}

/** Adds up the device time of kernels by stage and label. */
export class Profiler {
  /** Name under which the work submitted from now on is counted. */
  stage: string = "";
  readonly #pending: { stage: string; work: TimedWork }[] = [];
  readonly #times = new Map<string, KernelTime>();

  /** What was collected so far, in the order in which the kernels first ran. */
  get times(): readonly KernelTime[] {
    return [...this.#times.values()];
  }

  /**
   * Runs and times work. Called by the device.
   *
   * @internal
   */
  submit(gpu: GPUDevice, commands: readonly Command[]): void {
    for (const work of submitTimed(gpu, commands)) {
      this.#pending.push({ stage: this.stage, work });
    }
  }

  /**
   * Adds the times of everything submitted. Called by the device whenever it has waited for its work.
   *
   * @internal
   */
  async collect(readBack: ReadBack): Promise<void> {
    for (const { stage, work } of this.#pending.splice(0)) {
      const times = await takeTimes(work, readBack);
      work.labels.forEach((label, i) => {
        const key = `${stage}\n${label}`;
        const { dispatches, nanoseconds } = this.#times.get(key) ??
          { dispatches: 0, nanoseconds: 0 };
        this.#times.set(key, {
          stage,
          label,
          dispatches: dispatches + 1,
          nanoseconds: nanoseconds + times[i]!,
        });
      });
    }
  }
}
