// Augmentation of a batch of images x: [N, H, W, C] on the GPU: shift with a constant fill, then horizontal flip, by a
// table of one word an image. Random draws are the host's; a table for many steps replays without uploads.
import {
  type Binding,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  padded,
  type Target,
} from "./kernel.ts";

/** One image's augmentation: y[row][column] = x[row + dy][(flip ? W - 1 - column : column) + dx], or the fill outside. */
export interface ShiftFlip {
  /** -128 .. 127 pixels. */
  readonly dy: number;
  /** -128 .. 127 pixels. */
  readonly dx: number;
  readonly flip: boolean;
}

/**
 * A word of the table: bits 0-7 dy, 8-15 dx (both i8), 16 flip.
 *
 * @param transform shift and flip of one image
 * @returns the word
 */
export function packShiftFlip({ dy, dx, flip }: ShiftFlip): number {
  return (dy & 255) | (dx & 255) << 8 | (flip ? 1 << 16 : 0);
}

/** A batch to augment. */
export interface AugmentSpec {
  /** Images of the batch. */
  readonly images: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  /** Rows of the tables: step t (state[0]) takes row t modulo this; default 1. */
  readonly steps?: number;
  /** True takes image n of the batch from x[indices[n]], x being a whole data set; default false. */
  readonly gather?: boolean;
}

/**
 * Shifts and flips every image.
 *
 * Bindings: x, fill ([C], the value of black), transforms (read, u32, [steps * images]), indices (read, u32, the same;
 * only with `gather`), state (read; only with `steps` > 1), y (write).
 */
export function augmentImages(spec: AugmentSpec, _target: Target): Kernel {
  const { images, height, width, channels, steps = 1, gather = false } = spec;
  const quads = padded(channels) / 4, total = images * height * width * quads;
  const read = ["x", "fill", "transforms"];
  if (gather) read.push("indices");
  if (steps > 1) read.push("state");
  const bindings: Binding[] = [
    ...read.map((name) => ({ name, access: "read" as const })),
    { name: "y", access: "read_write" },
  ];
  const types = { transforms: "u32", indices: "u32", state: "f32" };
  const code = /* wgsl */ `${declareBindings(bindings, types)}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let i = ${flatIndex(64)};
  if (i >= ${total}u) { return; }
  let channel = i % ${quads}u;
  let column = (i / ${quads}u) % ${width}u;
  let row = (i / ${quads * width}u) % ${height}u;
  let image = i / ${quads * width * height}u;
  let entry = image${steps > 1 ? ` + (u32(state[0]) % ${steps}u) * ${images}u` : ""};
  let transform = bitcast<i32>(transforms[entry]);
  let flipped = select(column, ${width - 1}u - column, extractBits(transform, 16u, 1u) != 0);
  let source_row = i32(row) + extractBits(transform, 0u, 8u);
  let source_column = i32(flipped) + extractBits(transform, 8u, 8u);
  let inside = source_row >= 0 && source_row < ${height} && source_column >= 0
    && source_column < ${width};
  let source_image = ${gather ? "indices[entry]" : "image"};
  let source_pixel = select(0, source_row * ${width} + source_column, inside);
  let source = (source_image * ${height * width}u + u32(source_pixel)) * ${quads}u + channel;
  y[i] = select(fill[channel], x[source], inside);
}
`;
  const label = `augment_images ${images}x${height}x${width}x${channels}`;
  return { label, code, bindings, grid: grid1d(total, 64) };
}
