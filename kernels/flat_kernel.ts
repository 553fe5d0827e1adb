// Kernels with one invocation per vec4 (or row) of their output: the frame around a few lines of WGSL.
import { type Binding, declareBindings, flatIndex, grid1d, type Kernel, range } from "./kernel.ts";

/** A kernel without the frame. */
export interface FlatKernelSpec {
  readonly label: string;
  /** Invocations. */
  readonly size: number;
  readonly bindings: readonly Binding[];
  /** Element types of the bindings, default vec4f. */
  readonly types?: Readonly<Record<string, string>>;
  /** Functions and constants that the body uses. */
  readonly declarations?: string;
  /** Statements with `i: u32`, below `size`. */
  readonly body: string;
  /** How many `i` an invocation takes, a workgroup's width apart; default 1. Pays for short bodies on large tensors. */
  readonly repeat?: number;
}

/**
 * A kernel that runs `body` for every `i` below `size`.
 *
 * @param spec the kernel without the frame
 * @returns the kernel
 */
export function flatKernel(spec: FlatKernelSpec): Kernel {
  const { label, size, bindings, types = {}, declarations = "", body, repeat = 1 } = spec;
  // Larger workgroups cost less on lavapipe; small grids need many workgroups to share.
  const workgroupSize = size >= 1 << 16 ? 256 : size >= 1 << 10 ? 64 : 16;
  const blocks = range(repeat).map((r) =>
    `{
    let i = first + ${r * workgroupSize}u;
    if (i < ${size}u) {
  ${body}
    }
  }`
  );
  const once = `let i = ${flatIndex(workgroupSize)};
  if (i >= ${size}u) { return; }
  ${body}`;
  const repeated = `let first = (workgroup.y * groups.x + workgroup.x) * ${
    repeat * workgroupSize
  }u + local;
  ${blocks.join("\n  ")}`;
  const code = /* wgsl */ `${declareBindings(bindings, types)}
${declarations}
@compute @workgroup_size(${workgroupSize})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  ${repeat === 1 ? once : repeated}
}
`;
  return { label, code, bindings, grid: grid1d(size, repeat * workgroupSize) };
}

/** A binding that is only read. */
export function read(name: string): Binding {
  return { name, access: "read" };
}

/** A binding that is written. */
export function write(name: string): Binding {
  return { name, access: "read_write" };
}
