// Deterministic sums over many rows in two kernels: invocations sum strided chunks of rows into `partials`
// ([chunks][values][size] vec4), a second kernel reduces the chunks. No atomics; no barriers in family "software".
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  range,
  type Target,
} from "./kernel.ts";

/** How rows are shared out: chunk c takes rows c, c + chunks, c + 2 chunks, ... */
export interface ChunkPlan {
  readonly rows: number;
  readonly chunks: number;
}

/**
 * Chooses how many chunks sum the rows of a [rows, quads] array of vec4, one invocation per chunk and vec4 column.
 *
 * @param rows length of the axis that is summed over
 * @param quads vec4s in a row
 * @param target the adapter: a CPU wants a few SIMD groups per core, a GPU thousands of invocations
 * @returns the plan; no chunk is empty
 */
export function planChunks(rows: number, quads: number, target: Target): ChunkPlan {
  const [invocations, most] = target.family === "software" ? [1024, 1024] : [32768, 8192];
  const wanted = Math.min(most, Math.ceil(invocations / quads), Math.ceil(rows / 8));
  const rowsPerChunk = Math.ceil(rows / Math.max(1, wanted));
  return { rows, chunks: Math.ceil(rows / rowsPerChunk) };
}

/**
 * As {@linkcode planChunks}, for kernels that only map: short runs of rows, so that what is loaded once for a channel is
 * shared by some rows and the work still spreads evenly.
 *
 * @param rows rows to map
 * @param quads vec4s in a row
 * @param target the adapter
 * @returns the plan; no chunk is empty
 */
export function planRuns(rows: number, quads: number, target: Target): ChunkPlan {
  const fewest = Math.ceil((target.family === "software" ? 1024 : 32768) / quads);
  const run = Math.max(1, Math.min(8, Math.floor(rows / fewest)));
  return { rows, chunks: Math.ceil(rows / run) };
}

/**
 * WGSL that runs `body` for every row of a chunk, in order, unrolled by four.
 *
 * @param plan rows and chunks
 * @param body statements that use `row: u32`; their own names are local
 * @returns statements that use `chunk: u32`
 */
export function forEachRow({ rows, chunks }: ChunkPlan, body: string): string {
  const full = Math.floor(rows / chunks), unrolled = full - full % 4;
  const step = (row: string) => `{ let row = ${row};\n${body} }`;
  const loop = unrolled === 0 ? "" : `for (var turn = 0u; turn < ${unrolled}u; turn += 4u) {
    ${range(4).map((i) => step(`chunk + (turn + ${i}u) * ${chunks}u`)).join("\n")}
  }`;
  const rest = range(full - unrolled).map((i) => step(`chunk + ${(unrolled + i) * chunks}u`));
  const last = rows % chunks === 0
    ? ""
    : `if (chunk < ${rows % chunks}u) ${step(`chunk + ${full * chunks}u`)}`;
  return [loop, ...rest, last].join("\n");
}

/** What the reducing kernel reads and does with it. */
export interface ReductionSpec {
  readonly label: string;
  /** Must hold a read binding `partials`. */
  readonly bindings: readonly Binding[];
  /** Element types of the bindings, default vec4f. */
  readonly types?: Readonly<Record<string, string>>;
  readonly chunks: number;
  /** vec4s from one chunk to the next. */
  readonly stride: number;
  /** vec4 offset within a chunk of each value to reduce. */
  readonly offsets: readonly number[];
  /** Reductions of each value: output o reduces partials[chunk * stride + offset + o]. */
  readonly size: number;
  /** How two partials combine; default "sum". */
  readonly combine?: "sum" | "max";
  /** Statements after the reduction, with `o: u32` and `value0`, `value1`, ... : vec4f. */
  readonly finish: string;
}

/** A kernel that reduces chunks and then does `finish`, once per output. */
export function reductionKernel(spec: ReductionSpec, target: Target): Kernel {
  const { label, bindings, types = {}, chunks, size } = spec;
  const serial = target.family === "software" || chunks <= 8;
  const reduction = serial ? serialReduction(spec) : workgroupReduction(spec);
  const code = /* wgsl */ `${declareBindings(bindings, types)}
${reduction.declarations}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  ${reduction.body}
  ${spec.finish}
}
`;
  return { label, code, bindings, grid: serial ? grid1d(size, 64) : grid1d(size, 1) };
}

/** Shape of a buffer of partial sums. */
export interface ReducePartialsSpec {
  readonly chunks: number;
  /** vec4s to sum in each chunk. */
  readonly size: number;
  /** vec4s from one chunk to the next; default `size`. */
  readonly stride?: number;
  /** First vec4 within a chunk; default 0. */
  readonly offset?: number;
}

/**
 * Sums over the chunks of a buffer.
 *
 * Bindings: partials (read, [chunks][stride] vec4), sums (write, [size] vec4).
 */
export function reducePartials(spec: ReducePartialsSpec, target: Target): Kernel {
  const { chunks, size, stride = size, offset = 0 } = spec;
  return reductionKernel({
    label: `reduce_partials ${chunks}x${size}`,
    bindings: [{ name: "partials", access: "read" }, { name: "sums", access: "read_write" }],
    chunks,
    stride,
    offsets: [offset],
    size,
    finish: "sums[o] = value0;",
  }, target);
}

interface Combine {
  readonly identity: string;
  readonly apply: (a: string, b: string) => string;
}

const COMBINES: Readonly<Record<"sum" | "max", Combine>> = {
  sum: { identity: "vec4f(0.0)", apply: (a, b) => `(${a} + ${b})` },
  max: { identity: "vec4f(-3.4028234e38)", apply: (a, b) => `max(${a}, ${b})` },
};

function serialReduction(spec: ReductionSpec): { declarations: string; body: string } {
  const { chunks, stride, offsets, size } = spec;
  const { identity, apply } = COMBINES[spec.combine ?? "sum"];
  const at = (chunk: string, value: number) =>
    `partials[(${chunk}) * ${stride}u + ${offsets[value]!}u + o]`; // value indexes offsets
  const values = range(offsets.length);
  const unrolled = chunks - chunks % 4;
  const body = `let o = ${flatIndex(64)};
  if (o >= ${size}u) { return; }
  ${values.map((v) => `var value${v} = ${identity};`).join("\n  ")}
  for (var chunk = 0u; chunk < ${unrolled}u; chunk += 4u) {
    ${
    values.map((v) => {
      const [a, b, c, d] = range(4).map((i) => at(`chunk + ${i}u`, v)) as [
        string,
        string,
        string,
        string,
      ]; // range(4) has four elements
      return `value${v} = ${apply(`value${v}`, apply(apply(a, b), apply(c, d)))};`;
    }).join("\n    ")
  }
  }
  ${
    range(chunks - unrolled).flatMap((i) =>
      values.map((v) => `value${v} = ${apply(`value${v}`, at(`${unrolled + i}u`, v))};`)
    ).join("\n  ")
  }`;
  return { declarations: "", body };
}

/** One workgroup an output: 64 strided partial reductions, then a tree in workgroup memory. */
function workgroupReduction(spec: ReductionSpec): { declarations: string; body: string } {
  const { chunks, stride, offsets, size } = spec;
  const { identity, apply } = COMBINES[spec.combine ?? "sum"];
  const values = range(offsets.length);
  // a loop: unrolled barriers take drivers a second to compile
  const tree = `for (var half = 32u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) {
      ${
    values.map((v) =>
      `shared${v}[local] = ${apply(`shared${v}[local]`, `shared${v}[local + half]`)};`
    ).join("\n      ")
  }
    }
  }`;
  const body = `let o = workgroup.y * groups.x + workgroup.x;
  if (o >= ${size}u) { return; }
  ${values.map((v) => `var partial${v} = ${identity};`).join("\n  ")}
  for (var chunk = local; chunk < ${chunks}u; chunk += 64u) {
    ${
    values.map((v) =>
      `partial${v} = ${apply(`partial${v}`, `partials[chunk * ${stride}u + ${offsets[v]!}u + o]`)};`
    ).join("\n    ")
  }
  }
  ${values.map((v) => `shared${v}[local] = partial${v};`).join("\n  ")}
  ${tree}
  if (local != 0u) { return; }
  ${values.map((v) => `let value${v} = shared${v}[0];`).join("\n  ")}`;
  const declarations = values.map((v) => `var<workgroup> shared${v}: array<vec4f, 64>;`).join("\n");
  return { declarations, body };
}
