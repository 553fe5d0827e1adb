// Mean squared error between a student's tensor y and its teacher's, both [rows, C]: as a training loss with its
// gradient, and as sums for an evaluation (signal-to-noise ratio, cosine similarity).
import { literal } from "./activation.ts";
import { maskPadding } from "./epilogue.ts";
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  type KernelSequence,
  padded,
  type Target,
} from "./kernel.ts";
import { forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** A mean squared error among the terms of a loss. */
export interface SquaredErrorTerm {
  /** Constant factor of the term. */
  readonly scale: number;
  /** Steps that `losses` remembers; step t writes at t modulo this. */
  readonly historySize: number;
  /** Terms remembered per step; default 1. */
  readonly terms?: number;
  /** Which of them this is; default 0. */
  readonly term?: number;
}

/** Tensors whose mean squared error is a term of the loss. */
export interface MeanSquaredErrorSpec extends SquaredErrorTerm {
  /** Product of all axes but the last. */
  readonly rows: number;
  readonly channels: number;
  /** p of the error |y - teacher|^p; default 2. */
  readonly exponent?: number;
  /**
   * Errors count by the binding `importance`: one of each element, [rows, channels], or one of so many rows in
   * succession, [rows / importance, 1].
   */
  readonly importance?: "element" | number;
}

/**
 * loss = scale * weight * mean(importance * |y - teacher|^p) over count = rows * channels elements,
 * dy = p scale weight importance |y - teacher|^(p - 1) sign(y - teacher) / count.
 *
 * Bindings: y, teacher, weight ([1], e.g. 1 / variance of the teacher's), importance if there is one, state (read), dy
 * (write), losses (write, f32, [historySize * terms]; element (t % historySize) * terms + term).
 */
export function meanSquaredError(spec: MeanSquaredErrorSpec, target: Target): KernelSequence {
  const { rows, channels, scale, exponent = 2, importance } = spec;
  const quads = padded(channels) / 4, total = rows * quads;
  const plan = planChunks(total, 1, target);
  const weighted = importance !== undefined;
  const bindings: Binding[] = [
    ...reads("y", "teacher", "weight", ...(weighted ? ["importance"] : [])),
    ...writes("dy", "partials"),
  ];
  const counted = importance === "element"
    ? "importance[row]"
    : `importance[row / ${quads * (importance ?? 1)}u].x`;
  const code = /* wgsl */ `${declareBindings(bindings, { weight: "f32" })}
${ENTRY_POINT} {
  let chunk = ${flatIndex(64)};
  if (chunk >= ${plan.chunks}u) { return; }
  let factor = weight[0] * ${literal(exponent * scale / (rows * channels))};
  var sum = vec4f(0.0);
  ${
    forEachRow(
      plan,
      `let error = y[row] - teacher[row];
    ${weighted ? `let counted = ${counted} * error;` : "let counted = error;"}
    ${powerTerms(exponent)}`,
    )
  }
  partials[chunk] = sum;
}
`;
  const label = `mean_squared_error ${rows}x${channels}`;
  return {
    kernels: [
      { label, code, bindings, grid: grid1d(plan.chunks, 64) },
      rememberSquaredError(spec, plan.chunks, target),
    ],
    temporaries: { partials: plan.chunks * 4 },
  };
}

/** WGSL of |error|^p added to `sum` and its derivative over p stored; without a branch, |0|^x is 0. */
function powerTerms(exponent: number): string {
  if (exponent === 2) {
    return `sum = fma(counted, error, sum);
    dy[row] = factor * counted;`;
  }
  return `let power = pow(abs(error), vec4f(${literal(exponent - 2)}));
    let slope = select(counted * power, vec4f(0.0), error == vec4f(0.0));
    sum = fma(slope, error, sum);
    dy[row] = factor * slope;`;
}

/**
 * Sums errors and keeps scale * weight * mean in the loss history.
 *
 * @param spec the tensors and the term
 * @param chunks vec4s to sum
 * @param target the adapter
 * @returns bindings: partials ([chunks] vec4), weight, state (read), losses (write, as of {@linkcode meanSquaredError})
 */
export function rememberSquaredError(
  spec: MeanSquaredErrorSpec,
  chunks: number,
  target: Target,
): Kernel {
  const { rows, channels, scale, historySize, terms = 1, term = 0 } = spec;
  return reductionKernel({
    label: `remember_squared_error ${rows}x${channels}`,
    bindings: [...reads("partials", "weight", "state"), ...writes("losses")],
    types: { weight: "f32", state: "f32", losses: "f32" },
    chunks,
    stride: 1,
    offsets: [0],
    size: 1,
    finish: `let loss = dot(value0, vec4f(1.0)) * weight[0] * ${literal(scale / (rows * channels))};
  losses[(u32(state[0]) % ${historySize}u) * ${terms}u + ${term}u] = loss;`,
  }, target);
}

/** Tensors to compare. */
export interface ErrorSumsSpec {
  /** Product of all axes but the last. */
  readonly rows: number;
  readonly channels: number;
}

/**
 * Adds a batch to sums over all elements. The sums stand in two parts, to be added by the host in float64, so that a
 * small batch is not lost beside a large total (drivers simplify compensated sums away).
 *
 * Bindings: y, teacher (read), sums (read_write, [16], zero at first): total and recent sums of (y - t)^2, t^2, y * t,
 * t (the teacher's), y^2, y, 1 (the elements), and the number of batches.
 */
export function errorSums(spec: ErrorSumsSpec, target: Target): KernelSequence {
  const { rows, channels } = spec;
  const quads = padded(channels) / 4;
  const plan = planChunks(rows * quads, 1, target);
  const names = ["error", "teacher_square", "product", "teacher", "y_square", "y"];
  const bindings = [...reads("y", "teacher"), ...writes("partials")];
  const code = /* wgsl */ `${declareBindings(bindings)}
${ENTRY_POINT} {
  let chunk = ${flatIndex(64)};
  if (chunk >= ${plan.chunks}u) { return; }
  ${names.map((name) => `var sum_${name} = vec4f(0.0);`).join("\n  ")}
  ${
    forEachRow(
      plan,
      `let channel = row % ${quads}u;
    let a = ${maskPadding("y[row]", "channel", channels)};
    let b = ${maskPadding("teacher[row]", "channel", channels)};
    let error = a - b;
    sum_error = fma(error, error, sum_error);
    sum_teacher_square = fma(b, b, sum_teacher_square);
    sum_product = fma(a, b, sum_product);
    sum_teacher += b;
    sum_y_square = fma(a, a, sum_y_square);
    sum_y += a;`,
    )
  }
  ${names.map((name, i) => `partials[chunk * 6u + ${i}u] = sum_${name};`).join("\n  ")}
}
`;
  const label = `error_sums ${rows}x${channels}`;
  const total = (value: number) => `dot(value${value}, vec4f(1.0))`;
  const reduce = reductionKernel({
    label: `${label} reduce`,
    bindings: [...reads("partials"), ...writes("sums")],
    chunks: plan.chunks,
    stride: 6,
    offsets: [0, 1, 2, 3, 4, 5],
    size: 1,
    finish: `let first = sums[2] + vec4f(${[0, 1, 2, 3].map(total).join(", ")});
  let second = sums[3] + vec4f(${total(4)}, ${total(5)}, ${literal(rows * channels)}, 1.0);
  if (second.w == ${RECENT_BATCHES}.0) {
    sums[0] += first;
    sums[1] += second;
    sums[2] = vec4f(0.0);
    sums[3] = vec4f(0.0);
  } else {
    sums[2] = first;
    sums[3] = second;
  }`,
  }, target);
  return {
    kernels: [{ label, code, bindings, grid: grid1d(plan.chunks, 64) }, reduce],
    temporaries: { partials: plan.chunks * 6 * 4 },
  };
}

/** Batches whose sums are kept apart before they join the total. */
const RECENT_BATCHES = 64;

const ENTRY_POINT = `@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32)`;

function reads(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read" }));
}

function writes(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read_write" }));
}
