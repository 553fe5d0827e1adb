// The state that every training kernel reads, kept on the GPU so that a recorded step replays without uploads:
// state: array<f32, 16> = [0] step number, [1] learning-rate factor, [2] 1 - beta1^(t+1), [3] 1 - beta2^(t+1),
// [4] 1 while batch norm uses batch statistics, [5] exponent of the rounding regulariser, [6] 1 while it is on,
// [7] seed of random choices, 0 .. 2^24 - 1, which nothing here changes.
import { literal } from "./activation.ts";
import { declareBindings, type Kernel, type Target } from "./kernel.ts";

/** Floats of the state buffer. */
export const STATE_SIZE = 16;
/** Where the seed is in it. */
export const STATE_SEED = 7;

/**
 * Factor of the learning rates in step t: "cosine" (1 + cos(pi t / steps)) / 2; "step" 1, a tenth from half of the steps
 * on and a hundredth from three quarters on; "constant" 1.
 */
export type Schedule = "cosine" | "step" | "constant";

/** How the state follows from the step number t = 0 .. steps - 1. */
export interface ScheduleSpec {
  readonly steps: number;
  /** Steps of linear warm-up; 0 is as 1. */
  readonly warmupSteps: number;
  /** Factor after warm-up. */
  readonly schedule: Schedule;
  /** Decay of Adam's first moment. */
  readonly beta1: number;
  /** Decay of Adam's second moment. */
  readonly beta2: number;
  /** Batch norm uses batch statistics for t < batchNormLiveSteps. */
  readonly batchNormLiveSteps: number;
  /** Fraction of the steps before the rounding regulariser starts (AdaRound: 0.2). */
  readonly roundingWarmup: number;
  /** Its exponent at the start (AdaRound: 20). */
  readonly roundingBetaStart: number;
  /** Its exponent at the end (AdaRound: 2). */
  readonly roundingBetaEnd: number;
  /** How the exponent falls; default "linear". */
  readonly roundingBetaDecay?: "linear" | "cosine";
}

/**
 * Fills state[1..6] for step state[0]; run it at the start of a step.
 *
 * Bindings: state (read_write).
 */
export function advanceSchedule(spec: ScheduleSpec, _target: Target): Kernel {
  const { steps, schedule, batchNormLiveSteps, roundingBetaStart, roundingBetaEnd } = spec;
  const warmup = Math.max(1, spec.warmupSteps);
  const remaining = "clamp(1.0 - progress, 0.0, 1.0)";
  const betaFactor = spec.roundingBetaDecay === "cosine"
    ? `square(sine(${literal(Math.PI / 2)} * ${remaining}))`
    : remaining;
  const roundingStart = spec.roundingWarmup * steps;
  const roundingSteps = Math.max(1, steps - roundingStart);
  const after = (part: number, factor: string) =>
    `select(1.0, ${factor}, t >= ${literal(part * steps)})`;
  const factor = {
    constant: "1.0",
    step: `${after(0.5, "0.1")} * ${after(0.75, "0.1")}`,
    // (1 + cos(pi t / n)) / 2 = sin^2(pi (n - t) / 2n): no cancellation near the end.
    cosine: `square(sine(${literal(Math.PI / (2 * steps))} * max(0.0, ${literal(steps)} - t)))`,
  }[schedule];
  return {
    label: `advance_schedule ${schedule} ${steps}`,
    bindings: [{ name: "state", access: "read_write" }],
    grid: [1, 1, 1],
    code: /* wgsl */ `${STATE_DECLARATION}
fn square(x: f32) -> f32 { return x * x; }

// Taylor series of sine to x^11, for 0 <= x <= pi / 2: error below 6e-8 on every adapter.
fn sine(x: f32) -> f32 {
  let s = x * x;
  let tail = ((((-2.5052108e-8 * s + 2.7557319e-6) * s - 1.984127e-4) * s + 8.3333333e-3) * s
      - 1.6666667e-1) * s;
  return x + x * tail;
}

// 1 - exp(x) for x <= 0, by its series near 0 where the subtraction would cancel.
fn one_minus_exp(x: f32) -> f32 {
  let series = -x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0)))));
  return select(1.0 - exp(x), series, x > -0.1);
}

@compute @workgroup_size(1)
fn main() {
  let t = state[0];
  state[1] = min(1.0, (t + 1.0) / ${literal(warmup)}) * ${factor};
  state[2] = ${biasCorrection(spec.beta1)};
  state[3] = ${biasCorrection(spec.beta2)};
  state[4] = select(0.0, 1.0, t < ${literal(batchNormLiveSteps)});
  let progress = (t - ${literal(roundingStart)}) / ${literal(roundingSteps)};
  state[5] = ${literal(roundingBetaEnd)} + ${
      literal(roundingBetaStart - roundingBetaEnd)
    } * ${betaFactor};
  state[6] = select(0.0, 1.0, t > ${literal(roundingStart)});
}
`,
  };
}

/**
 * Counts the step: state[0] += 1; run it at the end of a step.
 *
 * Bindings: state (read_write).
 */
export function finishStep(_target: Target): Kernel {
  return {
    label: "finish_step",
    bindings: [{ name: "state", access: "read_write" }],
    grid: [1, 1, 1],
    code: /* wgsl */ `${STATE_DECLARATION}
@compute @workgroup_size(1)
fn main() {
  state[0] += 1.0;
}
`,
  };
}

const STATE_DECLARATION = declareBindings([{ name: "state", access: "read_write" }], {
  state: "f32",
});

/** 1 - beta^(t + 1) = 1 - exp((t + 1) ln beta), with the logarithm taken in float64. */
function biasCorrection(beta: number): string {
  return beta === 0 ? "1.0" : `one_minus_exp((t + 1.0) * ${literal(Math.log(beta))})`;
}
