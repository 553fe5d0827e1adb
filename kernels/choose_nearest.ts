// AMCT's choice of a unit's input, for a whole mini-batch: the student's unless it is too far from the teacher's.
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  type KernelSequence,
  paddedSize,
  type Target,
} from "./kernel.ts";
import { forEachRow, planChunks, reductionKernel } from "./reduce_partials.ts";

/** Two tensors of a shape. */
export interface ChooseNearestSpec {
  readonly shape: readonly number[];
}

/** Difference from which the teacher's input is taken, over the smaller mean square of the two. */
const LIMIT = 0.5;

/**
 * y = b where mean((a - b)^2) > 0.5 min(mean(a^2), mean(b^2)), else a, with the means over all elements. Source:
 * `distill_interface` of AMCT (hicann/amct at 2be20da).
 *
 * Bindings: a, b (read), y (write).
 */
export function chooseNearest({ shape }: ChooseNearestSpec, target: Target): KernelSequence {
  const total = paddedSize(shape) / 4;
  const plan = planChunks(total, 1, target);
  const label = `choose_nearest [${shape.join(", ")}]`;
  const sums = [...reads("a", "b"), ...writes("partials")];
  const code = /* wgsl */ `${declareBindings(sums)}
${ENTRY_POINT} {
  let chunk = ${flatIndex(64)};
  if (chunk >= ${plan.chunks}u) { return; }
  var difference = vec4f(0.0);
  var square_a = vec4f(0.0);
  var square_b = vec4f(0.0);
  ${
    forEachRow(
      plan,
      `let d = a[row] - b[row];
    difference = fma(d, d, difference);
    square_a = fma(a[row], a[row], square_a);
    square_b = fma(b[row], b[row], square_b);`,
    )
  }
  partials[chunk * 3u] = difference;
  partials[chunk * 3u + 1u] = square_a;
  partials[chunk * 3u + 2u] = square_b;
}
`;
  const verdict = reductionKernel({
    label: `${label} verdict`,
    bindings: [...reads("partials"), ...writes("takes_b")],
    types: { takes_b: "f32" },
    chunks: plan.chunks,
    stride: 3,
    offsets: [0, 1, 2],
    size: 1,
    finish: `let ones = vec4f(1.0);
  let bound = ${LIMIT} * min(dot(value1, ones), dot(value2, ones));
  takes_b[0] = select(0.0, 1.0, dot(value0, ones) > bound);`,
  }, target);
  const choice = [...reads("a", "b", "takes_b"), ...writes("y")];
  const choose = /* wgsl */ `${declareBindings(choice, { takes_b: "f32" })}
${ENTRY_POINT} {
  let i = ${flatIndex(64)};
  if (i >= ${total}u) { return; }
  y[i] = select(a[i], b[i], takes_b[0] == 1.0);
}
`;
  const kernels: Kernel[] = [
    { label, code, bindings: sums, grid: grid1d(plan.chunks, 64) },
    verdict,
    { label: `${label} select`, code: choose, bindings: choice, grid: grid1d(total, 64) },
  ];
  return { kernels, temporaries: { partials: plan.chunks * 3 * 4, takes_b: 4 } };
}

const ENTRY_POINT = `@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32)`;

function reads(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read" }));
}

function writes(...names: readonly string[]): Binding[] {
  return names.map((name) => ({ name, access: "read_write" }));
}
