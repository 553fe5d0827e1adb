// Histograms of a tensor x [rows, C]; padded channels are not counted. On a GPU all invocations share the counts through
// atomics. On a CPU adapter an atomic costs as much as forty additions: there every invocation counts for itself, and a
// second kernel adds the counts up.
import { literal } from "./activation.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import {
  type Binding,
  COMPONENTS,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  type KernelSequence,
  padded,
  range,
  type Target,
} from "./kernel.ts";
import type { ObserverSpec } from "./observer.ts";
import { type ChunkPlan, forEachRow, planChunks } from "./reduce_partials.ts";

/** A histogram of a tensor. */
export interface HistogramSpec extends ObserverSpec {
  readonly bins: number;
  /** True counts |x| over 0 .. max(|minimum|, |maximum|); default false. */
  readonly absolute?: boolean;
}

/** Invocations with counts of their own: some SIMD groups for each of a few cores. */
const COUNTERS = 64;

/**
 * Adds a batch to the counts of equal bins over range[0] .. range[1]; values outside count in the end bins.
 *
 * Bindings: x (read), range (read, f32), counts (read_write, u32, [bins]).
 */
export function histogram(spec: HistogramSpec, target: Target): KernelSequence {
  const vectors = spec.rows * padded(spec.channels) / 4;
  if (target.family === "gpu") {
    const plan = planChunks(vectors, 1, target);
    const counts = { name: "counts", type: "atomic<u32>", setup: "", workgroup: 64 };
    const kernel = countingKernel(spec, plan, counts, (bin) => `atomicAdd(&counts[${bin}], 1u);`);
    return { kernels: [kernel], temporaries: {} };
  }
  const { bins } = spec;
  const plan = { rows: vectors, chunks: Math.min(COUNTERS, vectors) };
  const counts = {
    name: "partials",
    type: "u32",
    workgroup: 8,
    setup: `let own = chunk * ${bins}u;
  for (var bin = 0u; bin < ${bins}u; bin++) { partials[own + bin] = 0u; }`,
  };
  const counting = countingKernel(spec, plan, counts, (bin) => `partials[own + ${bin}]++;`);
  return {
    kernels: [counting, sumOfCounts(bins, plan.chunks)],
    temporaries: { partials: bins * plan.chunks },
  };
}

/** Where a counting kernel counts. */
interface CountsBinding {
  readonly name: string;
  /** Element type of the binding. */
  readonly type: string;
  /** Statements before the first element. */
  readonly setup: string;
  /** Invocations of a workgroup. */
  readonly workgroup: number;
}

/** A kernel that goes through x and does `count` with the bin of every element. */
function countingKernel(
  { rows, channels, bins, absolute = false }: HistogramSpec,
  plan: ChunkPlan,
  counts: CountsBinding,
  count: (bin: string) => string,
): Kernel {
  const quads = padded(channels) / 4;
  const bindings: Binding[] = [
    { name: "x", access: "read" },
    { name: "range", access: "read" },
    { name: counts.name, access: "read_write" },
  ];
  const countLane = (lane: number) => {
    const statement = count(`bin.${COMPONENTS[lane]}`); // lane is 0 .. 3
    return lane < channels - 4 * (quads - 1)
      ? statement
      : `if (i % ${quads}u != ${quads - 1}u) { ${statement} }`;
  };
  const code = /* wgsl */ `${
    declareBindings(bindings, { range: "f32", [counts.name]: counts.type })
  }
@compute @workgroup_size(${counts.workgroup})
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let chunk = ${flatIndex(counts.workgroup)};
  if (chunk >= ${plan.chunks}u) { return; }
  let low = ${absolute ? "0.0" : "range[0]"};
  let high = ${absolute ? "max(abs(range[0]), abs(range[1]))" : "range[1]"};
  let bins_per_unit = select(0.0, ${literal(bins)} / (high - low), high > low);
  ${counts.setup}
  ${
    forEachRow(
      plan,
      `let i = row;
    let value = ${absolute ? "abs(x[i])" : "x[i]"};
    let bin = vec4u(clamp(floor((value - low) * bins_per_unit), vec4f(0.0), vec4f(${
        literal(bins - 1)
      })));
    ${range(4).map(countLane).join("\n    ")}`,
    )
  }
}
`;
  const label = `histogram ${rows}x${channels} in ${bins}`;
  return { label, code, bindings, grid: grid1d(plan.chunks, counts.workgroup) };
}

/** counts += the sum of all counters' partials. */
function sumOfCounts(bins: number, counters: number): Kernel {
  return flatKernel({
    label: `histogram sum ${bins}`,
    size: bins,
    bindings: [read("partials"), write("counts")],
    types: { partials: "u32", counts: "u32" },
    body: `var sum = counts[i];
  for (var counter = 0u; counter < ${counters}u; counter++) {
    sum += partials[counter * ${bins}u + i];
  }
  counts[i] = sum;`,
  });
}
