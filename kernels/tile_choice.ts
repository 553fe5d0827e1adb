// The choice of a kernel's tile. A cost model ranks the tiles; the first of its handful is taken unless the target's
// table names another of them, which the tuner found to be faster. Names outside the handful are ignored, so a table
// from elsewhere can make a kernel slower but never wrong.
import type { KernelSequence, Target, TileChoice } from "./kernel.ts";

/** What a choice is made for. */
export interface TiledWork<T extends object> {
  readonly key: TileChoice["key"];
  readonly shapes: TileChoice["shapes"];
  readonly integers?: NonNullable<TileChoice["integers"]>;
  /** Tiles worth measuring, the default first. */
  readonly tiles: readonly T[];
  /** The kernels with a tile, without an epilogue. */
  readonly build: (tile: T) => KernelSequence;
}

/** How many tiles of a kernel and shape are measured at most. */
const HANDFUL = 8;

/** Tiles of one kind among them: neighbours of a good tile are seldom much better. */
const SAME_KIND = 2;

/** Modelled cost, as a multiple of the lowest, from which a tile is not worth measuring. */
const HOPELESS = 1.6;

/**
 * Decides on a tile.
 *
 * @param work what the tile is for
 * @param target whose table may name a tile
 * @returns the tile, and the choice for the kernel to carry
 */
export function decideTile<T extends object>(
  { key, shapes, integers, tiles, build }: TiledWork<T>,
  target: Target,
): { readonly tile: T; readonly choice: TileChoice } {
  const names = tiles.map(tileName);
  const named = (name: string | undefined): T | undefined =>
    tiles.find((_, i) => names[i] === name);
  const choice: TileChoice = {
    key,
    shapes,
    ...(integers && { integers }),
    tiles: names,
    build: (name) => {
      const tile = named(name);
      if (tile === undefined) throw new RangeError(`"${key}" has no tile "${name}"`);
      return build(tile);
    },
  };
  return { tile: named(target.tiles?.get(key)) ?? tiles[0]!, choice }; // there is always a default
}

/**
 * Name of a tile, e.g. `rows 16, run 4, runs 2`.
 *
 * @param tile a flat record
 * @returns its fields
 */
export function tileName(tile: object): string {
  return Object.entries(tile).map(([field, value]) => `${field} ${value}`).join(", ");
}

/**
 * The tiles worth measuring: those with the lowest modelled cost, of different kinds.
 *
 * @param tiles all valid tiles; among equals the first wins
 * @param cost the cost model
 * @param kind what tiles of one kind have in common
 * @returns the cheapest first
 */
export function cheapestTiles<T>(
  tiles: readonly T[],
  cost: (tile: T) => number,
  kind: (tile: T) => string | number,
): T[] {
  const ranked = tiles.map((tile) => ({ tile, cost: cost(tile) }))
    .sort((a, b) => a.cost - b.cost);
  const counts = new Map<string | number, number>();
  const chosen: T[] = [];
  for (const { tile, cost } of ranked) {
    if (chosen.length === HANDFUL || cost > HOPELESS * ranked[0]!.cost) break;
    const count = counts.get(kind(tile)) ?? 0;
    if (count === SAME_KIND) continue;
    counts.set(kind(tile), count + 1);
    chosen.push(tile);
  }
  return chosen;
}
