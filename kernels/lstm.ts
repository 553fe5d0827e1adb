// The recurrence of an LSTM (Hochreiter & Schmidhuber 1997, with a forget gate) as ONNX LSTM computes it, without
// peepholes: the products with its inputs are already in p, bias included, and one workgroup follows one sample through
// all steps.
//   i, o, f = sigmoid(p + r h') of their rows, g = tanh(p + r h')      h', c': of the step before, 0 at the first
//   c = f c' + i g,  y = h = o tanh(c)
// p: [samples, steps, 4 hidden], rows i, o, f, g; y, cells: [samples, steps, hidden]; gates as p, after their functions.
// Going back, with dh = dy + r^T dp of the step after and dc = o (1 - tanh(c)^2) dh + f dc of the step after:
//   dp = [dc g i (1 - i), dh tanh(c) o (1 - o), dc c' f (1 - f), dc i (1 - g^2)]
import { read, write } from "./flat_kernel.ts";
import {
  type Binding,
  declareBindings,
  grid1d,
  type Kernel,
  type KernelSequence,
  padded,
} from "./kernel.ts";

/** Sizes of a recurrence. */
export interface LstmSpec {
  readonly samples: number;
  readonly steps: number;
  readonly hidden: number;
  /** Goes from the last step to the first. */
  readonly reverse: boolean;
}

/** More units do not fit the workgroup's memory, of which every adapter has 16 KiB. */
export const MOST_HIDDEN = 4096;

/** Highest code of a state that is quantized at run time: uint8. */
const HIGHEST = 255;

/**
 * All steps of a recurrence.
 *
 * Bindings: p, r ([hidden, 4 hidden], the recurrent weights transposed), y, cells, and with `keepsGates` gates.
 *
 * @param spec sizes; at most {@linkcode MOST_HIDDEN} units
 * @param options whether the gates are kept for going back, and whether each h' is quantized to 8 bits with its own
 * range in each sample, as ONNX DynamicQuantizeLinear does
 * @returns the kernel
 */
export function lstmForward(
  spec: LstmSpec,
  { keepsGates = false, quantizesState = false }: {
    readonly keepsGates?: boolean;
    readonly quantizesState?: boolean;
  } = {},
): Kernel {
  const { samples, steps, hidden } = spec;
  const { type, width, units, rows, size } = lanesOf(hidden);
  const bindings = [read("p"), read("r"), write("y"), write("cells")];
  if (keepsGates) bindings.push(write("gates"));
  const gate = (g: number) => `(at * ${4 * rows}u + ${g * rows}u + j)`;
  const weight = (g: number) => `r[k * ${4 * rows}u + ${g * rows}u + j]`;
  const remember = width === 1 ? "state[j] = y[at * UNITSu + j];" : `let h = y[at * UNITSu + j];
      ${[0, 1, 2, 3].map((c) => `state[4u * j + ${c}u] = h[${c}];`).join("\n      ")}`;
  const body = `
    for (var j = local; j < ${rows}u; j += ${size}u) {
      var i = p[${gate(0)}];
      var o = p[${gate(1)}];
      var f = p[${gate(2)}];
      var g = p[${gate(3)}];
      var before = ${type}(0.0);
      if (step > 0u) {
        for (var k = 0u; k < ${hidden}u; k++) {
          let h = state[k];
          i += h * ${weight(0)};
          o += h * ${weight(1)};
          f += h * ${weight(2)};
          g += h * ${weight(3)};
        }
        before = cells[last * ${units}u + j];
      }
      i = 1.0 / (1.0 + exp(-i));
      o = 1.0 / (1.0 + exp(-o));
      f = 1.0 / (1.0 + exp(-f));
      g = ${tanh("g", type)};
      let cell = f * before + i * g;
      cells[at * ${units}u + j] = cell;
      y[at * ${units}u + j] = o * ${tanh("cell", type)};
      ${
    keepsGates
      ? ["i", "o", "f", "g"].map((name, g) => `gates[${gate(g)}] = ${name};`).join("\n      ")
      : ""
  }
    }
    for (var j = ${rows}u + local; j < ${units}u; j += ${size}u) {
      cells[at * ${units}u + j] = ${type}(0.0);
      y[at * ${units}u + j] = ${type}(0.0);
    }
    workgroupBarrier();
    for (var j = local; j < ${rows}u; j += ${size}u) {
      ${remember.replaceAll("UNITS", `${units}`)}
    }
    workgroupBarrier();${quantizesState ? quantizeState(hidden, size) : ""}`;
  const label = `lstm_forward ${samples}x${steps}x${hidden}`;
  return overSteps({ label, bindings, spec, type, size, state: hidden }, {
    first: "",
    step: "turn",
    body,
  });
}

/**
 * The gradient of a recurrence with respect to p.
 *
 * Bindings: dy, gates, cells, r ([4 hidden, hidden], the recurrent weights as they are), dp.
 *
 * @param spec sizes
 * @returns kernels
 */
export function lstmBackward(spec: LstmSpec): KernelSequence {
  const { samples, steps, hidden } = spec;
  const { type, width, units, rows, size } = lanesOf(hidden);
  const bindings = [
    read("dy"),
    read("gates"),
    read("cells"),
    read("r"),
    write("dp"),
    // The two gradients that the step before gets, one after the other.
    write("carried"),
  ];
  const gate = (g: number) => `gates[at * ${4 * rows}u + ${g * rows}u + j]`;
  const put = (g: number, name: string) =>
    width === 1
      ? `dp[at * ${4 * hidden}u + ${g * hidden}u + j] = ${name};`
      : [0, 1, 2, 3].map((c) =>
        `dp[at * ${4 * hidden}u + ${g * hidden}u + 4u * j + ${c}u] = ${name}[${c}];`
      ).join("\n      ");
  const carriedH = `carried[n * ${2 * units}u + j]`;
  const carriedC = `carried[n * ${2 * units}u + ${units}u + j]`;
  const body = `
    for (var j = local; j < ${rows}u; j += ${size}u) {
      let i = ${gate(0)};
      let o = ${gate(1)};
      let f = ${gate(2)};
      let g = ${gate(3)};
      var before = ${type}(0.0);
      if (step > 0u) { before = cells[last * ${units}u + j]; }
      let cell = cells[at * ${units}u + j];
      let t = ${tanh("cell", type)};
      let dh = dy[at * ${units}u + j] + ${carriedH};
      let dc = dh * o * (1.0 - t * t) + ${carriedC};
      ${carriedC} = dc * f;
      let dpi = dc * g * i * (1.0 - i);
      let dpo = dh * t * o * (1.0 - o);
      let dpf = dc * before * f * (1.0 - f);
      let dpg = dc * i * (1.0 - g * g);
      ${["dpi", "dpo", "dpf", "dpg"].map((name, g) => put(g, name)).join("\n      ")}
    }
    storageBarrier();
    workgroupBarrier();
    for (var j = local; j < ${rows}u; j += ${size}u) {
      var sum = ${type}(0.0);
      for (var k = 0u; k < ${4 * hidden}u; k++) {
        sum += dp[at * ${4 * hidden}u + k] * r[k * ${units}u + j];
      }
      ${carriedH} = sum;
    }
    workgroupBarrier();`;
  const label = `lstm_backward ${samples}x${steps}x${hidden}`;
  const kernel = overSteps({ label, bindings, spec, type, size, types: { dp: "f32" } }, {
    first: `for (var j = local; j < ${units}u; j += ${size}u) {
    ${carriedH} = ${type}(0.0);
    ${carriedC} = ${type}(0.0);
  }`,
    step: `${steps - 1}u - turn`,
    body,
  });
  return { kernels: [kernel], temporaries: { carried: samples * 2 * padded(hidden) } };
}

/** How the units lie in registers: four to a lane where no gate ends within a vec4. */
function lanesOf(hidden: number): {
  readonly type: "f32" | "vec4f";
  readonly width: 1 | 4;
  /** Of a row of y, padding included, in lanes. */
  readonly units: number;
  /** Of a gate, in lanes. */
  readonly rows: number;
  /** Of the workgroup. */
  readonly size: number;
} {
  const width = hidden % 4 === 0 ? 4 : 1;
  const rows = hidden / width;
  const size = Math.min(256, Math.ceil(rows / 8) * 8);
  return { type: width === 4 ? "vec4f" : "f32", width, units: padded(hidden) / width, rows, size };
}

/** The state on the grid of its range, which 0 belongs to. */
function quantizeState(hidden: number, size: number): string {
  return `
    var lowest = 0.0;
    var highest = 0.0;
    for (var k = 0u; k < ${hidden}u; k++) {
      lowest = min(lowest, state[k]);
      highest = max(highest, state[k]);
    }
    workgroupBarrier();
    let range = (highest - lowest) / ${HIGHEST}.0;
    let scale = select(range, 1.0, range == 0.0);
    let zero = round(clamp(-lowest / scale, 0.0, ${HIGHEST}.0));
    for (var k = local; k < ${hidden}u; k += ${size}u) {
      state[k] = (clamp(round(state[k] / scale) + zero, 0.0, ${HIGHEST}.0) - zero) * scale;
    }
    workgroupBarrier();`;
}

/** Clamped, because exp inside some drivers' tanh overflows. */
function tanh(x: string, type: string): string {
  return `tanh(clamp(${x}, ${type}(-10.0), ${type}(10.0)))`;
}

/** A workgroup a sample `n`, and `body` once a step: `step` counts as time goes, `at` is its row, `last` that before. */
function overSteps(
  { label, bindings, spec, type, size, state, types = {} }: {
    readonly label: string;
    readonly bindings: readonly Binding[];
    readonly spec: LstmSpec;
    readonly type: string;
    readonly size: number;
    readonly state?: number;
    readonly types?: Readonly<Record<string, string>>;
  },
  { first, step, body }: {
    readonly first: string;
    /** Which step comes at `turn`. */
    readonly step: string;
    readonly body: string;
  },
): Kernel {
  const { samples, steps, reverse } = spec;
  const all = Object.fromEntries(bindings.map(({ name }) => [name, type]));
  const code = /* wgsl */ `${declareBindings(bindings, { ...all, ...types })}
${state === undefined ? "" : `var<workgroup> state: array<f32, ${state}>;`}
@compute @workgroup_size(${size})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let n = workgroup.y * groups.x + workgroup.x;
  if (n >= ${samples}u) { return; }
  ${first}
  for (var turn = 0u; turn < ${steps}u; turn++) {
    let step = ${step};
    let at = n * ${steps}u + ${reverse ? `${steps - 1}u - step` : "step"};
    let last = ${reverse ? "at + 1u" : "at - 1u"};
${body}
  }
}
`;
  return { label, code, bindings, grid: grid1d(samples, 1) };
}
