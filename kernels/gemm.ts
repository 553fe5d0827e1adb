// Matrix multiplication y = op(a) op(b) with an epilogue (bias, residual, activation, fake quantization).
// Shapes: a: [m, k] (transposeA: [k, m]), b: [k, n] (transposeB: [n, k]), y: [m, n]. The two gradients of a product are
// products again: dL/da = dy op(b)^T and dL/db = op(a)^T dy, see gemmBackwardA() and gemmBackwardB().
// The family files hold the tiles; this file splits long sums over k when y is small (weight gradients).
import { type Epilogue, epilogueBindings, epilogueSetup, epilogueStore } from "./epilogue.ts";
import { gpuGemmTiles, planGpuGemm } from "./gemm_gpu.ts";
import type { GemmPlan, GemmSpec } from "./gemm_plan.ts";
import { planSoftwareGemm, softwareGemmTiles } from "./gemm_software.ts";
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
import { decideTile } from "./tile_choice.ts";

export type { GemmSpec } from "./gemm_plan.ts";

/**
 * y[i, j] = epilogue(sum_k op(a)[i, k] op(b)[k, j])
 *
 * @param spec sizes
 * @param epilogue what happens to each element before it is stored
 * @param target the adapter
 * @returns kernels with bindings a, b, those of the epilogue, y
 */
export function gemm(spec: GemmSpec, epilogue: Epilogue, target: Target): KernelSequence {
  return target.family === "software"
    ? tiledGemm(
      spec,
      epilogue,
      target,
      softwareGemmTiles(spec, target),
      (tile) => planSoftwareGemm(spec, target, tile),
    )
    : tiledGemm(spec, epilogue, target, gpuGemmTiles(spec), (tile) => planGpuGemm(spec, tile));
}

function tiledGemm<T extends object>(
  spec: GemmSpec,
  epilogue: Epilogue,
  target: Target,
  tiles: readonly T[],
  plan: (tile: T) => GemmPlan,
): KernelSequence {
  const { m, n, k, transposeA, transposeB } = spec;
  const { tile, choice } = decideTile({
    key: `gemm ${m}x${n}x${k}${transposeA ? " transposeA" : ""}${transposeB ? " transposeB" : ""}`,
    shapes: { a: transposeA ? [k, m] : [m, k], b: transposeB ? [n, k] : [k, n], y: [m, n] },
    tiles,
    build: (tile: T) => plannedGemm(spec, {}, plan(tile)),
  }, target);
  const { kernels: [first, ...rest], temporaries } = plannedGemm(spec, epilogue, plan(tile));
  return { kernels: [{ ...first!, choice }, ...rest], temporaries };
}

function plannedGemm(spec: GemmSpec, epilogue: Epilogue, plan: GemmPlan): KernelSequence {
  const operands: Binding[] = [{ name: "a", access: "read" }, { name: "b", access: "read" }];
  const last: Binding[] = [...epilogueBindings(epilogue), { name: "y", access: "read_write" }];
  const finish = finishStore(spec, epilogue);
  if (plan.splits === 1) {
    const kernel = plan.kernel({
      bindings: [...operands, ...last],
      setup: epilogueSetup(epilogue),
      store: finish,
    });
    return { kernels: [kernel], temporaries: {} };
  }
  const size = spec.m * padded(spec.n);
  const partial = plan.kernel({
    bindings: [...operands, { name: "partials", access: "read_write" }],
    setup: "",
    store: (sum) =>
      `partials[workgroup.z * ${size / 4}u + row * ${padded(spec.n) / 4}u + column] = ${sum};`,
  });
  return {
    kernels: [partial, sumSplits(spec, epilogue, plan.splits)],
    temporaries: { partials: plan.splits * size },
  };
}

/**
 * dL/da = dy op(b)^T (transposeA: its transpose, op(b) dy^T), as a product with bindings a = dy, b = b (transposeA: a = b,
 * b = dy).
 *
 * @param spec sizes of the forward product
 * @returns sizes of the gradient's product
 */
export function gemmBackwardA({ m, n, k, transposeA, transposeB }: GemmSpec): GemmSpec {
  if (!transposeA) return { m, n: k, k: n, transposeA: false, transposeB: !transposeB };
  return { m: k, n: m, k: n, transposeA: transposeB, transposeB: true };
}

/**
 * dL/db = op(a)^T dy (transposeB: its transpose, dy^T op(a)), as a product with bindings a = a, b = dy (transposeB: a = dy,
 * b = a).
 *
 * @param spec sizes of the forward product
 * @returns sizes of the gradient's product
 */
export function gemmBackwardB({ m, n, k, transposeA, transposeB }: GemmSpec): GemmSpec {
  if (!transposeB) return { m: k, n, k: m, transposeA: !transposeA, transposeB: false };
  return { m: n, n: k, k: m, transposeA: true, transposeB: transposeA };
}

/** Statements that put `sum` through the epilogue and into y. Products of clamped rows in padded columns become zeros. */
function finishStore(spec: GemmSpec, epilogue: Epilogue): (sum: string) => string {
  const width = padded(spec.n) / 4;
  const at = { output: "y", index: "index", channel: "column", channels: spec.n };
  return (sum) => {
    const kept = range(4).map((c) =>
      width * 4 - 4 + c < spec.n ? `${sum}.${COMPONENTS[c]}` : "0.0"
    );
    const masked = spec.n % 4 === 0
      ? sum
      : `select(${sum}, vec4f(${kept.join(", ")}), column == ${width - 1}u)`;
    const store = epilogueStore(epilogue, { value: masked, ...at });
    return `let index = row * ${width}u + column; ${store}`;
  };
}

/** y = epilogue(sum_z partials[z]), in the order of z. */
function sumSplits(spec: GemmSpec, epilogue: Epilogue, splits: number): Kernel {
  const width = padded(spec.n) / 4;
  const total = spec.m * width;
  const bindings: Binding[] = [
    { name: "partials", access: "read" },
    ...epilogueBindings(epilogue),
    { name: "y", access: "read_write" },
  ];
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = ${flatIndex(64)};
  if (i >= ${total}u) { return; }
  ${epilogueSetup(epilogue)}
  let row = i / ${width}u;
  let column = i % ${width}u;
  let sum = ${range(splits).map((z) => `partials[i + ${z * total}u]`).join(" + ")};
  ${finishStore(spec, epilogue)("sum")}
}
`;
  return {
    label: `gemm_sum_splits ${spec.m}x${spec.n} of ${splits}`,
    code,
    bindings,
    grid: grid1d(total, 64),
  };
}
