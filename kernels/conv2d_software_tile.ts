// Which register tile a convolution takes on a CPU adapter: a model of the cycles on lavapipe.
import type { TapAxis, TapConvolution } from "./conv2d_plan.ts";
import { padded, range, type Target } from "./kernel.ts";
import { cheapestTiles } from "./tile_choice.ts";

/** Register tile of a lane. */
export interface SoftwareTile {
  /** Output channels, a multiple of 4. */
  readonly rows: number;
  /** Neighbouring pixels of a run. */
  readonly run: number;
  /** Runs of a lane. */
  readonly runs: number;
}

/** Workgroup size when the device has no subgroups and every lane loads its own weights. */
export const LANES_WITHOUT_SUBGROUPS = 8;

/** Products of a loop turn in units of 4 multiplications; the driver takes too long to compile larger bodies. */
const LARGEST_STEP = 500;

/**
 * Tiles worth measuring.
 *
 * @param convolution what they are for
 * @param target Subgroup size.
 * @returns the one with the lowest modelled cost first
 */
export function softwareTiles(convolution: TapConvolution, target: Target): SoftwareTile[] {
  const { columns } = convolution;
  const channels = padded(convolution.channels);
  const tiles: SoftwareTile[] = [];
  for (const limit of target.subgroupSize ? [32, 24, 16, 8, 4] : [8, 4]) {
    const rows = padded(Math.ceil(channels / Math.ceil(channels / limit)));
    if (tiles.some((tile) => tile.rows === rows)) continue;
    // Among equals the longest run wins: its addresses are cheaper.
    for (const run of range(Math.min(8, columns.positions)).map((i) => i + 1).reverse()) {
      for (const runs of [1, 2, 3, 4, 6, 8]) {
        const accumulators = rows * run * runs;
        const products = accumulators * columns.taps.count;
        if (accumulators > 128 || (products > LARGEST_STEP && accumulators > 16)) continue;
        tiles.push({ rows, run, runs });
      }
    }
  }
  return cheapestTiles(
    tiles,
    (tile) => modelledCost(convolution, target, tile),
    ({ run }) => run,
  );
}

/** Cycles of the whole convolution on lavapipe, roughly. */
function modelledCost(
  { batch, group, channels, rows, columns }: TapConvolution,
  target: Target,
  { rows: tileRows, run, runs }: SoftwareTile,
): number {
  const lanes = target.subgroupSize || LANES_WITHOUT_SUBGROUPS;
  const weightLoads = target.subgroupSize ? Math.ceil(tileRows / lanes) : tileRows;
  const loads = columns.taps.count * weightLoads + runs * windowOf(columns, run).length;
  const accumulators = tileRows * run * runs;
  // A vec4 load of 8 lanes takes about 65, a multiply and an add one, a loop turn blends every accumulator.
  const cycles = 65 * loads + 4 * accumulators * columns.taps.count + accumulators;
  const units = batch * rows.positions * Math.ceil(columns.positions / run);
  const workgroups = Math.ceil(units / (lanes * runs)) * group *
    Math.ceil(padded(channels) / tileRows);
  return cycles * workgroups * (workgroups < 32 ? 1.3 : 1);
}

/** Distinct input columns, relative to the first position's, that the taps of a run read. */
export function windowOf(axis: TapAxis, run: number): number[] {
  const offsets = new Set<number>();
  for (const position of range(run)) {
    for (const tap of range(axis.taps.count)) {
      offsets.add(
        position * axis.inputStep + axis.taps.offsetStart + tap * axis.taps.offsetStep,
      );
    }
  }
  return [...offsets].sort((a, b) => a - b);
}
