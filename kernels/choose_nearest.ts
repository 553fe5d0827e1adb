// AMCT's choice of a unit's input, for a whole mini-batch: the student's unless it is too far from the teacher's.
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type KernelSequence, paddedSize, type Target } from "./kernel.ts";
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
  const sums = flatKernel({
    label,
    size: plan.chunks,
    bindings: [read("a"), read("b"), write("partials")],
    body: `let chunk = i;
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
  partials[chunk * 3u + 2u] = square_b;`,
  });
  const verdict = reductionKernel({
    label: `${label} verdict`,
    bindings: [read("partials"), write("takes_b")],
    types: { takes_b: "f32" },
    chunks: plan.chunks,
    stride: 3,
    offsets: [0, 1, 2],
    size: 1,
    finish: `let ones = vec4f(1.0);
  let bound = ${LIMIT} * min(dot(value1, ones), dot(value2, ones));
  takes_b[0] = select(0.0, 1.0, dot(value0, ones) > bound);`,
  }, target);
  const choose = flatKernel({
    label: `${label} select`,
    size: total,
    bindings: [read("a"), read("b"), read("takes_b"), write("y")],
    types: { takes_b: "f32" },
    body: "y[i] = select(a[i], b[i], takes_b[0] == 1.0);",
  });
  return {
    kernels: [sums, verdict, choose],
    temporaries: { partials: plan.chunks * 3 * 4, takes_b: 4 },
  };
}
