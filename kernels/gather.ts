// Mini-batches picked from a data set that lies on the GPU in one or more chunks (a binding is limited, 128 MiB on
// lavapipe): row b of the batch is row indices[step * batch + b] of the set; each chunk's kernel copies the rows it has,
// decoding them where they are stored in fewer bits.
import { declareBindings, grid1d, type Kernel, range } from "./kernel.ts";
import { type RowFormat, storedForm } from "./row_codes.ts";

/** A mini-batch and one chunk of the data set. */
export interface GatherSpec {
  /** Rows of a mini-batch. */
  readonly batch: number;
  /** vec4s of a row. */
  readonly rowSize: number;
  /** Mini-batches in the table; step t uses number t modulo this. */
  readonly steps: number;
  /** How the chunk is stored. */
  readonly format: RowFormat;
}

/**
 * y[b] = x[indices[step * batch + b] - place[0]] where the chunk has that row: place = [its first row in the set, rows].
 *
 * Bindings: x (as storedForm() says), qparams (codes only: array<f32>), place (array<u32>), indices (array<u32>),
 * state (array<f32>, state[0] the step), y (read_write: other rows stay).
 */
export function gatherBatch({ batch, rowSize, steps, format }: GatherSpec): Kernel {
  const form = storedForm(format);
  const bindings = [
    { name: "x", access: "read" },
    ...form.bindings,
    { name: "place", access: "read" },
    { name: "indices", access: "read" },
    { name: "state", access: "read" },
    { name: "y", access: "read_write" },
  ] as const;
  const types = {
    x: form.type,
    qparams: "f32",
    place: "u32",
    indices: "u32",
    state: "f32",
  };
  // An invocation copies up to 8 vec4s of one row, a workgroup's width apart: the index is looked up once for all.
  const run = Math.min(8, Math.ceil(rowSize / 64));
  const parts = Math.ceil(rowSize / (64 * run));
  const copies = range(run).map((r) => {
    const guard = rowSize % (64 * run) === 0 ? "" : `if (begin + ${64 * r}u < ${rowSize}u) `;
    const stored = `let stored = x[first + begin + ${64 * r}u];`;
    return `${guard}{ ${stored} y[to + begin + ${64 * r}u] = ${form.decoded}; }`;
  });
  const code = /* wgsl */ `
${declareBindings(bindings, types)}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let id = workgroup.y * groups.x + workgroup.x;
  if (id >= ${batch * parts}u) { return; }
  let b = id / ${parts}u;
  let begin = (id % ${parts}u) * ${64 * run}u + local;
  let row = indices[(u32(state[0]) % ${steps}u) * ${batch}u + b] - place[0];
  if (row >= place[1]) { return; }
  let first = row * ${rowSize}u;
  let to = b * ${rowSize}u;
  ${form.setup}
  ${copies.join("\n  ")}
}`;
  const grid = grid1d(batch * parts, 1);
  return { label: `gather_batch ${batch}x${rowSize} ${format}`, code, bindings, grid };
}

/** Words of a table that belong to a step. */
export interface GatherWordsSpec {
  /** Words of a step. */
  readonly batch: number;
  /** Steps in the table; step t uses number t modulo this. */
  readonly steps: number;
}

/**
 * y[b] = words[step * batch + b], for labels.
 *
 * Bindings: words (array<u32>), state (array<f32>, state[0] the step), y (array<u32>, write).
 */
export function gatherWords({ batch, steps }: GatherWordsSpec): Kernel {
  const bindings = [
    { name: "words", access: "read" },
    { name: "state", access: "read" },
    { name: "y", access: "read_write" },
  ] as const;
  const code = /* wgsl */ `
${declareBindings(bindings, { words: "u32", state: "f32", y: "u32" })}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= ${batch}u) { return; }
  y[id.x] = words[(u32(state[0]) % ${steps}u) * ${batch}u + id.x];
}`;
  return {
    label: `gather_words ${batch}`,
    code,
    bindings,
    grid: [Math.ceil(batch / 64), 1, 1],
  };
}

/** A loss with one value for each row of a mini-batch. */
export interface RowLossSpec {
  readonly rows: number;
  /** Steps that `losses` remembers. */
  readonly historySize: number;
  /** Terms remembered per step. */
  readonly terms: number;
  /** Which of them this is. */
  readonly term: number;
}

/**
 * losses[step * terms + term] = mean of the rows' losses.
 *
 * Bindings: loss ([rows, 1], read), state (array<f32>), losses (array<f32>, write).
 */
export function rememberRowLoss({ rows, historySize, terms, term }: RowLossSpec): Kernel {
  const bindings = [
    { name: "loss", access: "read" },
    { name: "state", access: "read" },
    { name: "losses", access: "read_write" },
  ] as const;
  const code = /* wgsl */ `
${declareBindings(bindings, { state: "f32", losses: "f32" })}

@compute @workgroup_size(1)
fn main() {
  var sum = 0.0;
  for (var row = 0u; row < ${rows}u; row++) { sum += loss[row].x; }
  losses[(u32(state[0]) % ${historySize}u) * ${terms}u + ${term}u] = sum / ${rows}.0;
}`;
  return { label: `remember_row_loss ${rows}`, code, bindings, grid: [1, 1, 1] };
}
