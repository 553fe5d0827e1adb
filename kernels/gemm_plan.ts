// What the matrix multiplications of both families have in common: sizes, and what the family files hand to gemm.ts.
import type { Binding, Kernel } from "./kernel.ts";
import type { TileStorage } from "./tile_storage.ts";

/** Sizes of a product; every matrix is row-major with padded rows. */
export interface GemmSpec {
  /** Rows of y. */
  readonly m: number;
  /** Columns of y. */
  readonly n: number;
  /** Length of the sums. */
  readonly k: number;
  /** Whether a is stored [k, m]. */
  readonly transposeA: boolean;
  /** Whether b is stored [n, k]. */
  readonly transposeB: boolean;
  /** Of the tiles of family "gpu", the only one that has them; default float32. */
  readonly tileStorage?: TileStorage | undefined;
}

/** How a family computes a product: in `splits` parts along k (workgroup_id.z), each storing by `GemmStore`. */
export interface GemmPlan {
  readonly splits: number;
  kernel(store: GemmStore): Kernel;
}

/** What a family's kernel does with its sums. */
export interface GemmStore {
  readonly bindings: readonly Binding[];
  /** Statements at the start of main. */
  readonly setup: string;
  /** Statements that store the vec4f variable `sum` at variables `row` and `column` (in vec4). */
  store(sum: string): string;
}
