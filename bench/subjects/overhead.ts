// What the runtime adds to the kernels: a dispatch inside a recorded plan, a submit, and reading results back.
import { accumulate } from "../../kernels/elementwise.ts";
import { Device } from "../../src/gpu/device.ts";
import { Plan } from "../../src/gpu/plan.ts";
import type { Tensor } from "../../src/gpu/tensor.ts";
import { checkElements, row, type Subject, wallTimes } from "../harness.ts";

/** Dispatches, submits or reads in one timing. */
const FEW = 100, MANY = 1100;
/** Awaited reads take 11 ms each in Deno. */
const READS = 50, AWAITED_READS = 5;
const LARGE = 2 ** 20;

/** Microseconds of a dispatch, a submit and a read. */
export const overhead: Subject = {
  about: "what a dispatch, a submit and a read-back cost besides the work",
  needsData: false,
  onlyByName: false,
  run: async function* ({ device, samples }) {
    using counter = new Counter(device);
    const few = await wallTimes(samples, () => counter.count(FEW, FEW));
    const many = await wallTimes(samples, () => counter.count(MANY, MANY));
    const submits = await wallTimes(samples, () => counter.count(FEW, 1));
    yield row(
      { case: "dispatch within a plan", metric: "time" },
      "us",
      many.map((ms, i) => microseconds(ms - few[i]!, MANY - FEW)), // as many as of `few`
      { note: "one workgroup" },
    );
    yield row(
      { case: "submit of one dispatch", metric: "time" },
      "us",
      submits.map((ms) => microseconds(ms, FEW)),
      { note: "recording and dispatch included" },
    );

    using awaiting = await Device.open({ synchronousReadBack: false });
    for (const [way, reader] of [["synchronous", device], ["awaited", awaiting]] as const) {
      for (const [size, label] of [[4, "16 B"], [LARGE, "4 MiB"]] as const) {
        const data = Float32Array.from({ length: size }, (_, i) => i);
        const tensor = reader.fromArray([size], data);
        checkElements("read-back", await reader.read(tensor), data.entries(), 0);
        const reads = reader.synchronousReadBack ? READS : AWAITED_READS;
        const times = await wallTimes(samples, async () => {
          for (let i = 0; i < reads; i++) await reader.readRaw(tensor);
        });
        yield row(
          { case: `read-back of ${label}, ${way}`, metric: "time" },
          "us",
          times.map((ms) => microseconds(ms, reads)),
        );
        reader.release(tensor);
      }
    }
  },
};

/** A plan of one tiny dispatch, y += 1, so that y tells how often it ran. */
class Counter implements Disposable {
  readonly #device: Device;
  readonly #plan: Plan;
  readonly #x: Tensor;
  readonly #y: Tensor;
  #expected = 0;

  constructor(device: Device) {
    this.#device = device;
    this.#x = device.fromArray([4], [1, 1, 1, 1]);
    this.#y = device.tensor([4]);
    this.#plan = new Plan(device);
    this.#plan.run(accumulate([4]), { x: this.#x, y: this.#y });
  }

  /** Runs the dispatch, waits, and checks that it ran as often as asked. */
  async count(times: number, timesPerSubmit: number): Promise<void> {
    this.#expected += times;
    this.#plan.replay(times, timesPerSubmit);
    const y = await this.#device.read(this.#y);
    checkElements("count of dispatches", y, [[0, this.#expected]], 0);
  }

  [Symbol.dispose](): void {
    this.#plan.dispose();
    this.#device.release(this.#x);
    this.#device.release(this.#y);
  }
}

function microseconds(ms: number, count: number): number {
  return 1000 * ms / count;
}
