// Matrix multiplication for CPU adapters. A workgroup is one subgroup: each lane owns columns (or rows) of the tile, loads
// them itself, and gets the other operand from its neighbours by subgroupShuffle with a constant, so that every element is
// loaded once a subgroup. No workgroup memory, no barriers: on lavapipe a load costs some 45 operations, a shuffle one.
// Without subgroups the same text is a register tile: every invocation loads all of its operands.
import { COMPONENTS, declareBindings, grid1d, padded, range, type Target } from "./kernel.ts";
import type { GemmPlan, GemmSpec, GemmStore } from "./gemm_plan.ts";
import { cheapestTiles } from "./tile_choice.ts";

/** Which part of y a workgroup computes. */
export interface SoftwareGemmTile {
  /** What the lanes divide among themselves; the other side is broadcast. */
  readonly lanesOwn: "rows" | "columns";
  /** Rows (or columns) that are broadcast. */
  readonly broadcast: number;
  /** Rows, or vec4 columns, of each lane. */
  readonly perLane: number;
}

/** A tile on an adapter. */
interface Tile extends SoftwareGemmTile {
  /** Lanes that share their loads; 1 without subgroups. */
  readonly shared: number;
  /** Invocations of a workgroup. */
  readonly lanes: number;
}

/** One operand, seen from its own side: A with extent m, B with extent n. */
interface Operand {
  readonly name: "a" | "b";
  readonly extent: number;
  /** Whether a vec4 runs along k; otherwise it runs along the extent. */
  readonly alongK: boolean;
}

/**
 * Multiplies with a tile, and splits k when there are too few tiles to share.
 *
 * @param spec sizes
 * @param target the adapter
 * @param tile one of {@linkcode softwareGemmTiles}
 * @returns the plan: number of splits and the kernel
 */
export function planSoftwareGemm(
  spec: GemmSpec,
  target: Target,
  tile: SoftwareGemmTile,
): GemmPlan {
  const own = { ...tile, ...lanesOf(target) };
  const splits = splitCount(spec, own);
  return { splits, kernel: (store) => softwareGemm(spec, own, splits, store) };
}

/**
 * Tiles worth measuring.
 *
 * @param spec sizes
 * @param target the adapter
 * @returns the one with the lowest modelled cost first
 */
export function softwareGemmTiles(spec: GemmSpec, target: Target): SoftwareGemmTile[] {
  const lanes = lanesOf(target);
  return cheapestTiles(
    candidates(spec, target),
    (tile) => {
      const own = { ...tile, ...lanes };
      return modelledCost(spec, own, splitCount(spec, own));
    },
    ({ lanesOwn, broadcast }) => `${lanesOwn} ${broadcast}`,
  );
}

// ---------------------------------------------------------------------------------------------------------------------
// y[i, j] = sum_k a[i, k] b[k, j]
// ---------------------------------------------------------------------------------------------------------------------

function softwareGemm(spec: GemmSpec, tile: Tile, splits: number, store: GemmStore) {
  const { m, n, k } = spec;
  const { lanes, lanesOwn } = tile;
  const depth = Math.floor(k / 4); // whole vec4 steps along k
  const chunk = Math.ceil(depth / splits);
  const [rowTiles, columnTiles] = tileCounts(spec, tile);
  const tiles = rowTiles * columnTiles;
  const grid = grid1d(tiles, 1);
  const a: Operand = { name: "a", extent: m, alongK: !spec.transposeA };
  const b: Operand = { name: "b", extent: n, alongK: spec.transposeB };
  const [mine, theirs] = lanesOwn === "columns" ? [b, a] : [a, b];
  const sums = range(rowsOf(tile)).flatMap((i) =>
    range(vectorsOf(tile)).map((j) => `var sum_${i}_${j} = vec4f(0);`)
  );
  const loop = depth === 0 ? "" : `
  for (var step = ${splits === 1 ? "0u" : `workgroup.z * ${chunk}u`}; step < ${
    splits === 1 ? `${depth}u` : `min(workgroup.z * ${chunk}u + ${chunk}u, ${depth}u)`
  }; step += 1u) {
${multiply(mine, theirs, tile, spec, 4)}
  }`;
  // The last 1-3 elements of k belong to the last split.
  const tail = k % 4 === 0 ? "" : `
  ${splits === 1 ? "" : `if (workgroup.z == ${splits - 1}u)`} {
    let step = ${depth}u;
${multiply(mine, theirs, tile, spec, k % 4)}
  }`;
  const code = /* wgsl */ `${declareBindings(store.bindings)}

@compute @workgroup_size(${lanes})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let tile = workgroup.y * groups.x + workgroup.x;
  ${grid[1] > 1 ? `if (tile >= ${tiles}u) { return; }` : ""}
  let tileRow = tile / ${columnTiles}u * ${rowTileSize(tile)}u;
  let tileColumn = tile % ${columnTiles}u * ${columnTileSize(tile) / 4}u; // in vec4
  ${store.setup}
${bases(theirs, tile, spec, "theirs")}
${bases(mine, tile, spec, "mine")}
  ${sums.join(" ")}
${loop}
${tail}
${stores(spec, tile, store)}
}
`;
  return {
    label: `gemm ${m}x${n}x${k}`,
    code,
    bindings: store.bindings,
    grid: [grid[0], grid[1], splits] as const,
  };
}

/** First vec4 index of every load, for step 0. Rows outside the matrix are clamped: what they give is never stored. */
function bases(operand: Operand, tile: Tile, spec: GemmSpec, side: "mine" | "theirs"): string {
  const depth = padded(spec.k) / 4, width = padded(operand.extent) / 4;
  const first = operand.name === "a" ? "tileRow" : "tileColumn * 4u";
  const first4 = operand.name === "a" ? "tileRow / 4u" : "tileColumn";
  const { lanes, shared } = tile;
  const lane = shared === 1 ? "0u" : "local";
  if (side === "theirs") {
    const quarter = tile.broadcast / 4;
    return range(tile.broadcast / shared).map((q) => {
      if (operand.alongK) {
        const row = `min(${first} + ${q * shared}u + ${lane}, ${operand.extent - 1}u)`;
        return `  let theirs_${q} = ${row} * ${depth}u;`;
      }
      // Element e of the (step u, vec4 j) table of the tile sits in lane e % shared.
      const e = `(${q * shared}u + ${lane})`;
      const column = `min(${first4} + ${e} % ${quarter}u, ${width - 1}u)`;
      return `  let step_${q} = ${e} / ${quarter}u; let theirs_${q} = ${column};`;
    }).join("\n");
  }
  return range(laneLoads(operand, tile)).map((i) => {
    if (!operand.alongK) {
      return `  let mine_${i} = min(${first4} + local + ${i * lanes}u, ${width - 1}u);`;
    }
    // Lanes own single rows, or the four columns of a vec4.
    const row = tile.lanesOwn === "rows"
      ? `${first} + local + ${i * lanes}u`
      : `(${first4} + local + ${(i >> 2) * lanes}u) * 4u + ${i & 3}u`;
    return `  let mine_${i} = min(${row}, ${operand.extent - 1}u) * ${depth}u;`;
  }).join("\n");
}

/** Distinct base addresses of a lane's own operand. */
function laneLoads(operand: Operand, { lanesOwn, perLane }: Tile): number {
  if (lanesOwn === "columns") return operand.alongK ? 4 * perLane : perLane;
  return operand.alongK ? perLane : perLane / 4;
}

/** Loads and multiplies `count` (1-4) consecutive elements of k, of vec4 step `step`. */
function multiply(
  mine: Operand,
  theirs: Operand,
  tile: Tile,
  spec: GemmSpec,
  count: number,
): string {
  const { broadcast, shared } = tile;
  const quarter = broadcast / 4;
  const lines: string[] = [];
  const theirWidth = padded(theirs.extent) / 4, myWidth = padded(mine.extent) / 4;
  for (const q of range(broadcast / shared)) {
    const at = theirs.alongK
      ? `theirs_${q} + step`
      : `min(step * 4u + step_${q}, ${spec.k - 1}u) * ${theirWidth}u + theirs_${q}`;
    lines.push(`let load_${q} = ${theirs.name}[${at}];`);
  }
  for (const i of range(laneLoads(mine, tile))) {
    if (mine.alongK) lines.push(`let own_${i} = ${mine.name}[mine_${i} + step];`);
    else {
      for (const u of range(count)) {
        lines.push(
          `let own_${i}_${u} = ${mine.name}[(step * 4u + ${u}u) * ${myWidth}u + mine_${i}];`,
        );
      }
    }
  }
  const shuffle = (e: number) =>
    shared === 1 ? `load_${e}` : `subgroupShuffle(load_${Math.floor(e / shared)}, ${e % shared}u)`;
  if (theirs.alongK) {
    for (const i of range(broadcast)) lines.push(`let all_${i} = ${shuffle(i)};`);
  } else {
    for (const u of range(count)) {
      for (const j of range(quarter)) {
        lines.push(`let all_${j}_${u} = ${shuffle(u * quarter + j)};`);
      }
    }
  }
  const scalar = (name: string, alongK: boolean, i: number, u: number) =>
    alongK ? `${name}_${i}.${COMPONENTS[u]}` : `${name}_${i >> 2}_${u}.${COMPONENTS[i & 3]}`;
  const vector = (name: string, alongK: boolean, j: number, u: number) =>
    alongK
      ? `vec4f(${range(4).map((c) => scalar(name, true, 4 * j + c, u)).join(", ")})`
      : `${name}_${j}_${u}`;
  for (const i of range(rowsOf(tile))) {
    for (const j of range(vectorsOf(tile))) {
      const sum = range(count).reduce((rest, u) => {
        const [row, column] = tile.lanesOwn === "columns"
          ? [scalar("all", theirs.alongK, i, u), vector("own", mine.alongK, j, u)]
          : [scalar("own", mine.alongK, i, u), vector("all", theirs.alongK, j, u)];
        return `fma(vec4f(${row}), ${column}, ${rest})`;
      }, `sum_${i}_${j}`);
      lines.push(`sum_${i}_${j} = ${sum};`);
    }
  }
  return lines.map((line) => `    ${line}`).join("\n");
}

function stores(spec: GemmSpec, tile: Tile, store: GemmStore): string {
  const width = padded(spec.n) / 4;
  const { lanes, lanesOwn } = tile;
  const guardRow = spec.m % rowTileSize(tile) !== 0;
  const guardColumn = (4 * width) % columnTileSize(tile) !== 0;
  const lines: string[] = [];
  for (const i of range(rowsOf(tile))) {
    for (const j of range(vectorsOf(tile))) {
      const ownRow = spec.transposeA
        ? `tileRow + (local + ${(i >> 2) * lanes}u) * 4u + ${i & 3}u`
        : `tileRow + local + ${i * lanes}u`;
      const row = lanesOwn === "columns" ? `tileRow + ${i}u` : ownRow;
      const column = lanesOwn === "columns"
        ? `tileColumn + local + ${j * lanes}u`
        : `tileColumn + ${j}u`;
      const guards = [
        ...(guardRow ? [`row < ${spec.m}u`] : []),
        ...(guardColumn ? [`column < ${width}u`] : []),
      ];
      const guard = guards.length === 0 ? "" : `if (${guards.join(" && ")}) `;
      lines.push(
        `  { let row = ${row}; let column = ${column}; ${guard}{ ${
          store.store(`sum_${i}_${j}`)
        } } }`,
      );
    }
  }
  return lines.join("\n");
}

// ---------------------------------------------------------------------------------------------------------------------
// Choosing a tile
// ---------------------------------------------------------------------------------------------------------------------

function rowsOf({ lanesOwn, broadcast, perLane }: Tile): number {
  return lanesOwn === "columns" ? broadcast : perLane;
}

function vectorsOf({ lanesOwn, broadcast, perLane }: Tile): number {
  return lanesOwn === "columns" ? perLane : broadcast / 4;
}

function rowTileSize({ lanesOwn, broadcast, perLane, lanes }: Tile): number {
  return lanesOwn === "columns" ? broadcast : perLane * lanes;
}

function columnTileSize({ lanesOwn, broadcast, perLane, lanes }: Tile): number {
  return lanesOwn === "columns" ? 4 * perLane * lanes : broadcast;
}

function tileCounts(spec: GemmSpec, tile: Tile): [number, number] {
  return [
    Math.ceil(spec.m / rowTileSize(tile)),
    Math.ceil(padded(spec.n) / columnTileSize(tile)),
  ];
}

/** Lanes of a workgroup, and how many of them share their loads. */
function lanesOf({ subgroupSize }: Target): Pick<Tile, "shared" | "lanes"> {
  return [4, 8, 16, 32].includes(subgroupSize)
    ? { shared: subgroupSize, lanes: subgroupSize }
    : { shared: 1, lanes: 16 };
}

function candidates(spec: GemmSpec, target: Target): SoftwareGemmTile[] {
  const { shared } = lanesOf(target);
  const subgroups = shared > 1;
  // Sums beyond the registers are spilled, which is cheap next to a load, but they take long to compile.
  const most = !subgroups ? 64 : spec.m * spec.n * spec.k < 1 << 24 ? 128 : 256;
  const tiles: SoftwareGemmTile[] = [];
  for (const broadcast of subgroups ? [4, 8, 16, 32, 64] : [4, 8]) {
    if (broadcast % shared !== 0) continue;
    for (const perLane of [1, 2]) {
      if (4 * perLane * broadcast > most) continue;
      tiles.push({ lanesOwn: "columns", broadcast, perLane });
    }
    for (const perLane of spec.transposeA ? [4, 8] : [1, 2, 4, 8]) {
      if (perLane * broadcast > most) continue;
      tiles.push({ lanesOwn: "rows", broadcast, perLane });
    }
  }
  return tiles;
}

/** Workgroups wanted at least, so that the threads of the driver share the work evenly. */
const WANTED_WORKGROUPS = 16;
/** vec4 steps along k below which a split does not pay. */
const LEAST_STEPS = 64;

function splitCount(spec: GemmSpec, tile: Tile): number {
  const [rows, columns] = tileCounts(spec, tile);
  const depth = Math.floor(spec.k / 4);
  const wanted = Math.ceil(WANTED_WORKGROUPS / (rows * columns));
  const splits = Math.max(1, Math.min(wanted, Math.floor(depth / LEAST_STEPS)));
  // No empty splits: the last one has to reach the end of k.
  return splits === 1 ? 1 : Math.ceil(depth / Math.ceil(depth / splits));
}

/** Cycles on lavapipe, roughly: a load 45, a vector operation 1, a workgroup 200. */
function modelledCost(spec: GemmSpec, tile: Tile, splits: number): number {
  const [rows, columns] = tileCounts(spec, tile);
  const workgroups = rows * columns * splits;
  const sums = rowsOf(tile) * vectorsOf(tile); // vec4
  const loads = tile.broadcast / tile.shared +
    (tile.lanesOwn === "columns" ? 4 * tile.perLane : tile.perLane);
  const shuffles = tile.shared === 1 ? 0 : 4 * tile.broadcast;
  const step = 45 * loads + shuffles + 16 * sums;
  const reduction = splits === 1 ? 0 : 45 * (splits + 1) * spec.m * padded(spec.n) / 4 / tile.lanes;
  const threads = Math.min(workgroups, WANTED_WORKGROUPS);
  return (workgroups * (200 + 45 * sums + step * spec.k / 4 / splits) + reduction) / threads;
}
