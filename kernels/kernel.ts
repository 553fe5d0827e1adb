// What a kernel is: a function from a typed spec (literal shapes) and a target (what the adapter is) to WGSL text.
//
// Physical layout of every float32 tensor on the GPU: C order, channels last, the last axis padded with zeros to a
// multiple of 4, so that all of them can be bound as array<vec4f>. [N, H, W, C] takes N*H*W*padded(C) floats, a
// convolution weight is [O, KH, KW, padded(I/group)] (depthwise: [KH, KW, padded(C)]), a vector [C] is [padded(C)].
// Padded elements are always zero: every kernel that writes a tensor writes zeros there.

/** How a kernel uses a binding. */
export type Access = "read" | "read_write";

/** One storage buffer of a kernel; binding i of group 0 is `bindings[i]`. */
export interface Binding {
  /** Name in the shader text. */
  readonly name: string;
  /** Whether the kernel may write to it. */
  readonly access: Access;
}

/** A compute shader with everything needed to dispatch it. Its entry point is `main`. */
export interface Kernel {
  /** Name and shape for error messages and profiles, e.g. `conv2d_forward 64x32x32x16`. */
  readonly label: string;
  /** WGSL; also the key of the pipeline cache. */
  readonly code: string;
  /** Its storage buffers, in the order of the binding numbers. */
  readonly bindings: readonly Binding[];
  /** Workgroups, each at most 65535. */
  readonly grid: readonly [number, number, number];
  /** Where other tiles would do: what the tuner measures. */
  readonly choice?: TileChoice;
}

/** Kernels that run one after another, with the scratch buffers they share. */
export interface KernelSequence {
  /** In the order they run. */
  readonly kernels: readonly Kernel[];
  /** Scratch bindings by name, in float32 elements. */
  readonly temporaries: Readonly<Record<string, number>>;
}

/** A choice among tiles, which all give the same result up to the order of sums. */
export interface TileChoice {
  /** Kernel and shape. */
  readonly key: string;
  /** Names of the tiles worth measuring, the cost model's own choice first. */
  readonly tiles: readonly string[];
  /** Logical shapes of the bindings; of integers the number of words. */
  readonly shapes: Readonly<Record<string, readonly number[]>>;
  /** Bindings of words that hold four int8 codes or an int32 each; the others hold float32. */
  readonly integers?: Readonly<Record<string, "codes" | "int32">>;
  /** The kernels with one of the tiles, without an epilogue. */
  readonly build: (tile: string) => KernelSequence;
}

/** Tiles that were measured to be faster than the cost models' own: name of the tile by key of the choice. */
export type TileTable = ReadonlyMap<string, string>;

/**
 * What a kernel must know of the adapter. Family "software" is for CPU adapters such as Mesa lavapipe (subgroup
 * shuffles, no barriers, long unrolled bodies); "gpu" for the rest (workgroup-memory tiles).
 */
export interface Target {
  /** Which of the two variants of a kernel is taken. */
  readonly family: "software" | "gpu";
  /** Lanes of a subgroup; 0 when the device has no subgroups. */
  readonly subgroupSize: number;
  /** Measured tiles; where it has none, the cost models choose. */
  readonly tiles?: TileTable;
}

/** Rounds a channel count up to a multiple of 4. */
export function padded(channels: number): number {
  return (channels + 3) & ~3;
}

/** Floats that a tensor takes: the product of the shape with the last axis padded. */
export function paddedSize(shape: readonly number[]): number {
  if (shape.length === 0) return 4;
  return shape.slice(0, -1).reduce((product, size) => product * size, 1) * padded(shape.at(-1)!);
}

/** `0 .. count - 1`, for unrolling. */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/** Components of a vec4, by index. */
export const COMPONENTS = ["x", "y", "z", "w"] as const;

/** WGSL declarations of the bindings, in order; `types` gives each array's element type (default vec4f). */
export function declareBindings(
  bindings: readonly Binding[],
  types: Readonly<Record<string, string>> = {},
): string {
  return bindings.map((binding, i) =>
    `@group(0) @binding(${i}) var<storage, ${binding.access}> ${binding.name}: array<${
      types[binding.name] ?? "vec4f"
    }>;`
  ).join("\n");
}

/** Workgroups for `invocations` in workgroups of `size`, folded so that no dimension passes 65535. */
export function grid1d(invocations: number, size: number): [number, number, number] {
  const groups = Math.max(1, Math.ceil(invocations / size));
  if (groups <= 65535) return [groups, 1, 1];
  const rows = Math.ceil(groups / 65535);
  return [Math.ceil(groups / rows), rows, 1];
}

/**
 * WGSL that gives the flat index of an invocation dispatched with {@linkcode grid1d}: needs builtins
 * `workgroup: vec3u` (workgroup_id), `groups: vec3u` (num_workgroups) and `local: u32` (local_invocation_index).
 */
export function flatIndex(size: number): string {
  return `(workgroup.y * groups.x + workgroup.x) * ${size}u + local`;
}
