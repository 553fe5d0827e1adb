// Matrix multiplication for GPUs: a workgroup of 64 invocations computes a square tile of y (64, or 32 when y is small)
// through workgroup memory. Both operands are kept there as [k][extent / 4] vec4; an operand whose vec4 run along k is
// transposed 4x4 in registers on its way. The next block is loaded into registers while this one is multiplied.
import type { GemmPlan, GemmSpec, GemmStore } from "./gemm_plan.ts";
import { COMPONENTS, declareBindings, grid1d, type Kernel, padded, range } from "./kernel.ts";
import { TILE_FORMS, type TileForm } from "./tile_storage.ts";

const INVOCATIONS = 64;
/** Workgroups wanted before splitting k: two for each multiprocessor of a large GPU. */
const WANTED_WORKGROUPS = 264;
/** Elements of k multiplied without a loop; divides every block. */
const UNROLLED = 8;
/** Elements of k below which a split does not pay. */
const LEAST_DEPTH = 256;

/** Tile of a workgroup, and how finely k is split. */
export interface GpuGemmTile {
  /** Rows and columns of y. */
  readonly side: 32 | 64;
  /** Workgroups to aim at by splitting k. */
  readonly workgroups: number;
}

/**
 * Multiplies with a tile, and splits k when there are too few tiles to fill a GPU.
 *
 * @param spec sizes
 * @param tile one of {@linkcode gpuGemmTiles}
 * @returns the plan: number of splits and the kernel
 */
export function planGpuGemm(spec: GemmSpec, { side, workgroups }: GpuGemmTile): GemmPlan {
  const wanted = Math.ceil(workgroups / tileCount(spec, side));
  const splits = Math.max(1, Math.min(wanted, 32, Math.floor(spec.k / LEAST_DEPTH)));
  const block = blockDepth(side);
  const chunk = Math.ceil(Math.ceil(spec.k / splits) / block) * block;
  return {
    splits: Math.ceil(spec.k / chunk),
    kernel: (store) => gpuGemm(spec, side, chunk, store),
  };
}

/**
 * Tiles worth measuring.
 *
 * @param spec sizes
 * @returns large tiles first where there are enough of them to fill a GPU
 */
export function gpuGemmTiles(spec: GemmSpec): GpuGemmTile[] {
  const large = tileCount(spec, 64) >= WANTED_WORKGROUPS;
  const sides = large ? [64, 32] as const : [32, 64] as const;
  const isSplit = spec.k >= 2 * LEAST_DEPTH;
  const workgroups = isSplit ? [WANTED_WORKGROUPS, WANTED_WORKGROUPS / 2] : [WANTED_WORKGROUPS];
  return sides.flatMap((side) => workgroups.map((wanted) => ({ side, workgroups: wanted })));
}

function tileCount({ m, n }: GemmSpec, side: number): number {
  return Math.ceil(m / side) * Math.ceil(n / side);
}

/** Elements of k in a block: each invocation loads one 4x4 square of each operand. */
function blockDepth(tile: number): number {
  return 4 * INVOCATIONS / (tile / 4);
}

// y[i, j] = sum_k a[i, k] b[k, j]
function gpuGemm(spec: GemmSpec, tile: number, chunk: number, store: GemmStore): Kernel {
  const { m, n, k, tileStorage = "float32" } = spec;
  const form = TILE_FORMS[tileStorage];
  const rowTiles = Math.ceil(m / tile), columnTiles = Math.ceil(n / tile);
  const splits = Math.ceil(k / chunk);
  const grid = grid1d(rowTiles * columnTiles, 1);
  const quarter = tile / 4, depth = blockDepth(tile);
  const blocks = tile / 32; // vec4 of each invocation along a side
  const sums = range(4 * blocks).flatMap((i) =>
    range(blocks).map((j) => `var sum_${i}_${j} = vec4f(0);`)
  );
  const code = /* wgsl */ `${form.enable}${declareBindings(store.bindings)}

var<workgroup> tileA: array<${form.type}, ${depth * quarter}>;
var<workgroup> tileB: array<${form.type}, ${depth * quarter}>;

@compute @workgroup_size(${INVOCATIONS})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let tile = workgroup.y * groups.x + workgroup.x;
  ${grid[1] > 1 ? `if (tile >= ${rowTiles * columnTiles}u) { return; }` : ""}
  let tileRow = tile / ${columnTiles}u * ${quarter}u; // in vec4
  let tileColumn = tile % ${columnTiles}u * ${quarter}u; // in vec4
  let loadOuter = local % ${quarter}u;
  let loadDepth = local / ${quarter}u;
  let slot = loadDepth * ${4 * quarter}u + loadOuter;
  let mineRow = local / 8u;
  let mineColumn = local % 8u;
  ${store.setup}
  ${sums.join(" ")}
  let outerA = tileRow + loadOuter;
  let outerB = tileColumn + loadOuter;
  let end = ${splits === 1 ? `${k}u` : `min(workgroup.z * ${chunk}u + ${chunk}u, ${k}u)`};
  var position = ${splits === 1 ? "" : `workgroup.z * ${chunk}u + `}loadDepth * 4u;
${range(4).map((u) => `  var a_${u} = vec4f(0); var b_${u} = vec4f(0);`).join("\n")}
${load("a", m, spec.k, !spec.transposeA)}
${load("b", n, spec.k, spec.transposeB)}
  for (var start = ${
    splits === 1 ? "0u" : `workgroup.z * ${chunk}u`
  }; start < end; start += ${depth}u) {
${keep(form, "a", quarter, !spec.transposeA)}
${keep(form, "b", quarter, spec.transposeB)}
    workgroupBarrier();
    position += ${depth}u;
${load("a", m, spec.k, !spec.transposeA)}
${load("b", n, spec.k, spec.transposeB)}
    for (var row = 0u; row < ${depth * quarter}u; row += ${UNROLLED * quarter}u) {
${range(UNROLLED).map((d) => multiply(form, d, quarter, blocks)).join("\n")}
    }
    workgroupBarrier();
  }
${stores(spec, tile, store)}
}
`;
  return {
    label: `gemm ${m}x${n}x${k}`,
    code,
    bindings: store.bindings,
    grid: [grid[0], grid[1], splits],
  };
}

/** Loads the invocation's 4x4 square at `position` along k; zeros outside the matrix. */
function load(name: "a" | "b", extent: number, k: number, alongK: boolean): string {
  const outer = name === "a" ? "outerA" : "outerB";
  const width = padded(extent) / 4, depth = padded(k) / 4;
  return range(4).map((u) => {
    const [inside, at] = alongK
      ? [
        `${outer} * 4u + ${u}u < ${extent}u && position < ${k}u`,
        `(${outer} * 4u + ${u}u) * ${depth}u + position / 4u`,
      ]
      : [
        `${outer} < ${width}u && position + ${u}u < ${k}u`,
        `(position + ${u}u) * ${width}u + ${outer}`,
      ];
    return `    ${name}_${u} = vec4f(0); if (${inside}) { ${name}_${u} = ${name}[${at}]; }`;
  }).join("\n");
}

/** Moves the square to workgroup memory as [k][extent / 4]. */
function keep(form: TileForm, name: "a" | "b", quarter: number, alongK: boolean): string {
  const tile = name === "a" ? "tileA" : "tileB";
  return range(4).map((u) => {
    const transposed = `vec4f(${range(4).map((i) => `${name}_${i}.${COMPONENTS[u]}`).join(", ")})`;
    return `    ${tile}[slot + ${u * quarter}u] = ${
      form.keep(alongK ? transposed : `${name}_${u}`)
    };`;
  }).join("\n");
}

/** One element of k of both tiles; `row` is where the unrolled block starts. */
function multiply(form: TileForm, depth: number, quarter: number, blocks: number): string {
  const lines: string[] = [];
  for (const i of range(blocks)) {
    const first = `row + ${depth * quarter + 8 * i}u`;
    lines.push(`let left_${i} = ${form.load(`tileA[${first} + mineRow]`)};`);
    lines.push(`let right_${i} = ${form.load(`tileB[${first} + mineColumn]`)};`);
  }
  for (const i of range(4 * blocks)) {
    for (const j of range(blocks)) {
      const left = `vec4f(left_${i >> 2}.${COMPONENTS[i & 3]})`;
      lines.push(`sum_${i}_${j} = fma(${left}, right_${j}, sum_${i}_${j});`);
    }
  }
  return `    { ${lines.join(" ")} }`;
}

function stores(spec: GemmSpec, tile: number, store: GemmStore): string {
  const blocks = tile / 32;
  return range(4 * blocks).flatMap((i) =>
    range(blocks).map((j) =>
      /* wgsl */ `  {
    let row = (tileRow + mineRow + ${8 * (i >> 2)}u) * 4u + ${i & 3}u;
    let column = tileColumn + mineColumn + ${8 * j}u;
    if (row < ${spec.m}u && column < ${padded(spec.n) / 4}u) { ${store.store(`sum_${i}_${j}`)} }
  }`
    )
  ).join("\n");
}
