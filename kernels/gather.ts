// Mini-batches picked from a data set that lies on the GPU in one or more chunks (a binding is limited, 128 MiB on
// lavapipe): row b of the batch is row indices[step * batch + b] of the set; each chunk's kernel copies the rows it has.
import { declareBindings, flatIndex, grid1d, type Kernel } from "./kernel.ts";

/** A mini-batch and one chunk of the data set. */
export interface GatherSpec {
  /** Rows of a mini-batch. */
  readonly batch: number;
  /** vec4s of a row. */
  readonly rowSize: number;
  /** First row of the chunk in the set. */
  readonly firstRow: number;
  /** Rows of the chunk. */
  readonly rows: number;
  /** Mini-batches in the table; step t uses number t modulo this. */
  readonly steps: number;
}

/**
 * y[b] = x[indices[step * batch + b] - firstRow] where the chunk has that row.
 *
 * Bindings: x, indices (array<u32>), state (array<f32>, state[0] the step), y (read_write: other rows stay).
 */
export function gatherBatch(
  { batch, rowSize, firstRow, rows, steps }: GatherSpec,
): Kernel {
  const bindings = [
    { name: "x", access: "read" },
    { name: "indices", access: "read" },
    { name: "state", access: "read" },
    { name: "y", access: "read_write" },
  ] as const;
  const total = batch * rowSize;
  const code = /* wgsl */ `
${declareBindings(bindings, { indices: "u32", state: "f32" })}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let i = ${flatIndex(64)};
  if (i >= ${total}u) { return; }
  let step = u32(state[0]) % ${steps}u;
  let row = indices[step * ${batch}u + i / ${rowSize}u];
  if (row < ${firstRow}u || row >= ${firstRow + rows}u) { return; }
  y[i] = x[(row - ${firstRow}u) * ${rowSize}u + i % ${rowSize}u];
}`;
  return { label: `gather_batch ${batch}x${rowSize}`, code, bindings, grid: grid1d(total, 64) };
}
