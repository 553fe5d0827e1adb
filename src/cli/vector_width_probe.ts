// Times a few convolutions and prints them as JSON: a process of its own for each vector width, because Mesa's lavapipe
// reads LP_NATIVE_VECTOR_WIDTH once. Each kernel counts with its best time, which noise disturbs least.
import { conv2dBackwardWeight, conv2dForward, type Conv2dSpec } from "../../kernels/conv2d.ts";
import { Device } from "../gpu/device.ts";
import { Plan } from "../gpu/plan.ts";

/** What the probe prints. */
export interface ProbeResult {
  readonly adapter: string;
  /** All kernels together; null where the adapter has no timestamps. */
  readonly nanoseconds: number | null;
}

const BATCH = 16;
const ROUNDS = 40;
/** The three stages of a ResNet-20. */
const STAGES = [[16, 32], [32, 16], [64, 8]] as const;

if (import.meta.main) {
  using device = await Device.open();
  using plan = new Plan(device);
  for (const [channels, size] of STAGES) recordStage(plan, channels, size);
  plan.replay(); // compiles
  await device.synchronize();
  let best: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const times = await device.time(plan.commands) ?? [];
    best = times.map((time, i) => Math.min(time, best[i] ?? Infinity));
  }
  const result: ProbeResult = {
    adapter: device.adapterName,
    nanoseconds: best.length === 0 ? null : best.reduce((sum, time) => sum + time, 0),
  };
  console.log(JSON.stringify(result));
}

/** A 3x3 convolution and its weight gradient. */
function recordStage(plan: Plan, channels: number, size: number): void {
  const { target } = plan.device;
  const spec: Conv2dSpec = {
    batch: BATCH,
    inHeight: size,
    inWidth: size,
    inChannels: channels,
    outHeight: size,
    outWidth: size,
    outChannels: channels,
    kernelHeight: 3,
    kernelWidth: 3,
    strideHeight: 1,
    strideWidth: 1,
    padTop: 1,
    padLeft: 1,
    dilationHeight: 1,
    dilationWidth: 1,
    group: 1,
  };
  const image = (label: string) => plan.tensor([BATCH, size, size, channels], label);
  const filter = (label: string) => plan.tensor([channels, 3, 3, channels], label);
  const x = image("x"), y = image("y"), w = filter("w"), dw = filter("dw");
  plan.run(conv2dForward(spec, {}, target), { x, w, y });
  plan.run(conv2dBackwardWeight(spec, target), { x, dy: y, dw });
}
