// Kernels that move elements without arithmetic: concatenation and slices, padding, permutation of axes, mini-batches.
// All of them gather: an invocation makes one vec4 of the output. Where channels keep their place in a vec4 whole vec4s move;
// otherwise the input is bound as array<f32> and four elements are collected.
import { literal } from "./activation.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type Kernel, padded, paddedSize, range } from "./kernel.ts";

/** Concatenation along the last axis: x_q: [rows, channels_q], y: [rows, sum of channels]. */
export interface ConcatSpec {
  readonly rows: number;
  /** Channels of each input. */
  readonly channels: readonly number[];
}

/** Batch, height, width and channels (or any four numbers that belong to them). */
export type FourNumbers = readonly [number, number, number, number];

/** y[o] = x[start + o * step] where that lies inside x, else value: slices, flips, crops and constant padding. */
export interface SliceAndPadSpec {
  readonly input: FourNumbers;
  readonly output: FourNumbers;
  /** Coordinate in x of y's first element; negative where padding comes first. */
  readonly start: FourNumbers;
  /** Not zero; negative runs backwards. */
  readonly step: FourNumbers;
  /** What padding holds. */
  readonly value: number;
}

/** A permutation of axes: y's axis i is x's axis permutation[i]. */
export interface TransposeSpec {
  /** Shape of x. */
  readonly shape: readonly number[];
  readonly permutation: readonly number[];
}

/** A mini-batch out of a resident data set: x: [rows, rowSize] vec4, y: [batch, rowSize] vec4. */
export interface GatherRowsSpec {
  readonly rows: number;
  /** vec4 in a row. */
  readonly rowSize: number;
  readonly batch: number;
}

// y[r, offset_q + c] = x_q[r, c]
/**
 * Concatenation along channels, forward.
 *
 * @param spec sizes
 * @returns a kernel with bindings x0, x1, ..., y
 */
export function concatForward({ rows, channels }: ConcatSpec): Kernel {
  const ends = runningEnds(channels);
  const total = ends.at(-1) ?? 0, quads = padded(total) / 4;
  const names = channels.map((_, q) => `x${q}`);
  const bindings = [...names.map(read), write("y")];
  const label = `concat_forward ${rows}x[${channels.join(", ")}]`;
  const starts = [0, ...ends];
  if (channels.slice(0, -1).every((count) => count % 4 === 0)) {
    const branches = channels.map((count, q) => {
      const load = `y[i] = x${q}[row * ${padded(count) / 4}u + quad - ${starts[q]! / 4}u];`;
      return q === channels.length - 1 ? `{ ${load} }` : `if (quad < ${ends[q]! / 4}u) { ${load} }`;
    });
    const body = `let row = i / ${quads}u; let quad = i % ${quads}u;
  ${branches.join(" else ")}`;
    return flatKernel({ label, size: rows * quads, bindings, body });
  }
  const declarations = /* wgsl */ `
fn element(row: u32, channel: u32) -> f32 {
  ${
    channels.map((count, q) =>
      `if (channel < ${ends[q]!}u) { return x${q}[row * ${
        padded(count)
      }u + channel - ${starts[q]!}u]; }`
    ).join("\n  ")
  }
  return 0.0;
}
`;
  const body = `let row = i / ${quads}u; let channel = i % ${quads}u * 4u;
  y[i] = vec4f(${range(4).map((c) => `element(row, channel + ${c}u)`).join(", ")});`;
  const types = Object.fromEntries(names.map((name) => [name, "f32"]));
  return flatKernel({ label, size: rows * quads, bindings, types, declarations, body });
}

// dx_q[r, c] = dy[r, offset_q + c]
/**
 * Concatenation along channels, backward to one input; also splits a tensor along its channels.
 *
 * @param spec sizes of the concatenation
 * @param input the input whose gradient is wanted
 * @returns a kernel with bindings dy, dx
 * @throws RangeError when there is no such input
 */
export function concatBackward({ rows, channels }: ConcatSpec, input: number): Kernel {
  const total = channels.reduce((sum, count) => sum + count, 0);
  const offset = channels.slice(0, input).reduce((sum, count) => sum + count, 0);
  const count = channels[input];
  if (count === undefined) {
    throw new RangeError(`Cannot split off input ${input}: there are ${channels.length}`);
  }
  const spec: SliceAndPadSpec = {
    input: [rows, 1, 1, total],
    output: [rows, 1, 1, count],
    start: [0, 0, 0, offset],
    step: [1, 1, 1, 1],
    value: 0,
  };
  const label = `concat_backward ${rows}x[${channels.join(", ")}] to ${input}`;
  return gatherImage(label, forwardGather(spec, "dy", "dx"));
}

// y[o] = x[start + o * step] inside x, value outside
/**
 * Slice and constant padding of a channels-last image, forward.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, y
 */
export function sliceAndPadForward(spec: SliceAndPadSpec): Kernel {
  const label = `slice_and_pad_forward [${spec.output.join(", ")}]`;
  return gatherImage(label, forwardGather(spec, "x", "y"));
}

// dx[i] = dy[(i - start) / step] where the division is exact and lies inside y, else 0
/**
 * Slice and constant padding, backward.
 *
 * @param spec sizes of the forward kernel
 * @returns a kernel with bindings dy, dx
 */
export function sliceAndPadBackward({ input, output, start, step }: SliceAndPadSpec): Kernel {
  const origin = (at: string, axis: number) => {
    const size = Math.abs(step[axis]!); // axis < 4
    const distance = step[axis]! > 0 ? `(${at} - ${start[axis]})` : `(${start[axis]} - ${at})`;
    const inside = `(${distance} >= 0 && ${distance} % ${size} == 0 && ${distance} / ${size} < ${
      output[axis]
    })`;
    return { index: `(${distance} / ${size})`, inside };
  };
  return gatherImage(`slice_and_pad_backward [${input.join(", ")}]`, {
    source: { name: "dy", size: output },
    destination: { name: "dx", size: input },
    origin,
    ...(start[3] % 4 === 0 && step[3] === 1 ? { quadShift: -start[3] / 4 } : {}),
    value: 0,
  });
}

// y[i_0, i_1, ...] = x[j] with j[permutation[a]] = i[a]
/**
 * Permutation of axes, forward.
 *
 * @param spec shape of x and the permutation
 * @returns a kernel with bindings x, y
 */
export function transposeForward(spec: TransposeSpec): Kernel {
  return permute("transpose_forward", spec, "x", "y");
}

// dx = dy under the inverse permutation
/**
 * Permutation of axes, backward.
 *
 * @param spec of the forward kernel
 * @returns a kernel with bindings dy, dx
 */
export function transposeBackward({ shape, permutation }: TransposeSpec): Kernel {
  const inverse = permutation.map((_, axis) => permutation.indexOf(axis));
  const outShape = permutation.map((axis) => shape[axis]!);
  return permute("transpose_backward", { shape: outShape, permutation: inverse }, "dy", "dx");
}

// y[b] = x[indices[step * batch + b]], step = state[0]
/**
 * The rows of this step's mini-batch; no gradient flows through it.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, indices (array<u32>), state (array<f32>, state[0] the step's number), y
 */
export function gatherRows({ rows, rowSize, batch }: GatherRowsSpec): Kernel {
  return flatKernel({
    label: `gather_rows ${batch} of ${rows}x${4 * rowSize}`,
    size: batch * rowSize,
    bindings: [read("x"), read("indices"), read("state"), write("y")],
    types: { indices: "u32", state: "f32" },
    body: `let row = indices[u32(state[0]) * ${batch}u + i / ${rowSize}u];
  y[i] = x[row * ${rowSize}u + i % ${rowSize}u];`,
  });
}

// ---------------------------------------------------------------------------------------------------------------------

/** An image filled from another: element by element, where it comes from. */
interface ImageGather {
  readonly source: { readonly name: string; readonly size: FourNumbers };
  readonly destination: { readonly name: string; readonly size: FourNumbers };
  /** WGSL i32 and bool expressions: the source's coordinate for the destination's `at` along an axis. */
  origin(at: string, axis: number): { readonly index: string; readonly inside: string };
  /** When whole vec4 of channels move: by how many. */
  readonly quadShift?: number;
  /** What the destination holds where it has no origin. */
  readonly value: number;
}

function forwardGather(spec: SliceAndPadSpec, source: string, destination: string): ImageGather {
  const { input, output, start, step, value } = spec;
  return {
    source: { name: source, size: input },
    destination: { name: destination, size: output },
    origin: (at, axis) => {
      const index = `(${start[axis]} + ${at} * (${step[axis]}))`;
      return { index, inside: `(${index} >= 0 && ${index} < ${input[axis]})` };
    },
    ...(start[3] % 4 === 0 && step[3] === 1 ? { quadShift: start[3] / 4 } : {}),
    value,
  };
}

function gatherImage(label: string, spec: ImageGather): Kernel {
  const { source, destination, origin, quadShift } = spec;
  const [batch, height, width, channels] = destination.size;
  const quads = padded(channels) / 4;
  const [image, row, column] = [origin("image", 0), origin("row", 1), origin("column", 2)];
  const fill = literal(spec.value);
  const pixel = `(${image.index} * ${source.size[1]} + ${row.index}) * ${source.size[2]} + ` +
    column.index;
  const collected = range(4).map((c) => {
    const at = `(channel + ${c})`;
    const { index, inside } = origin(at, 3);
    const place = `pixel * ${padded(source.size[3])} + ${index}`;
    const load = `${source.name}[select(0, ${place}, inside && ${inside})]`;
    const value = `select(${fill}, ${load}, inside && ${inside})`;
    return `select(0.0, ${value}, ${at} < ${channels})`;
  });
  const sourceQuads = padded(source.size[3]) / 4;
  const whole = `let fromQuad = clamp(quad + ${quadShift}, 0, ${sourceQuads - 1});
  let channels = vec4i(channel) + vec4i(0, 1, 2, 3);
  let origin = channels + ${4 * (quadShift ?? 0)};
  let moved = vec4<bool>(inside) & (origin >= vec4i(0)) & (origin < vec4i(${source.size[3]}));
  let value = select(vec4f(${fill}), ${source.name}[pixel * ${sourceQuads} + fromQuad], moved);
  ${destination.name}[i] = select(vec4f(0.0), value, channels < vec4i(${channels}));`;
  return flatKernel({
    label,
    size: batch * height * width * quads,
    bindings: [read(source.name), write(destination.name)],
    types: quadShift === undefined ? { [source.name]: "f32" } : {},
    body: `let quad = i32(i % ${quads}u);
  let channel = quad * 4;
  let column = i32(i / ${quads}u % ${width}u);
  let row = i32(i / ${quads * width}u % ${height}u);
  let image = i32(i / ${quads * width * height}u);
  let inside = ${image.inside} && ${row.inside} && ${column.inside};
  let pixel = select(0, ${pixel}, inside);
  ${
      quadShift === undefined
        ? `${destination.name}[i] = vec4f(\n    ${collected.join(",\n    ")},\n  );`
        : whole
    }`,
  });
}

function permute(
  name: string,
  { shape, permutation }: TransposeSpec,
  source: string,
  destination: string,
): Kernel {
  const rank = shape.length;
  const outShape = permutation.map((axis) => shape[axis]!); // a permutation of the axes
  const keepsChannels = permutation[rank - 1] === rank - 1;
  // Steps in the source, in vec4 when channels stay last, in elements otherwise.
  const steps: number[] = [];
  let step = 1;
  for (const axis of range(rank).reverse()) {
    steps[axis] = step;
    step *= axis < rank - 1
      ? shape[axis]!
      : keepsChannels
      ? padded(shape[axis]!) / 4
      : padded(shape[axis]!);
  }
  const quads = padded(outShape.at(-1) ?? 1) / 4;
  let inner = quads;
  const terms: string[] = [];
  for (const axis of range(rank - 1).reverse()) {
    terms.unshift(`(i / ${inner}u % ${outShape[axis]!}u) * ${steps[permutation[axis]!]!}u`);
    inner *= outShape[axis]!;
  }
  const base = terms.length === 0 ? "0u" : terms.join(" + ");
  const last = outShape.at(-1) ?? 1, lastStep = steps[permutation[rank - 1]!]!;
  const element = (c: number) =>
    `select(0.0, ${source}[base + (channel + ${c}u) * ${lastStep}u], channel + ${c}u < ${last}u)`;
  const body = keepsChannels
    ? `${destination}[i] = ${source}[base + i % ${quads}u];`
    : `let channel = i % ${quads}u * 4u;
  ${destination}[i] = vec4f(${range(4).map(element).join(", ")});`;
  return flatKernel({
    label: `${name} [${shape.join(", ")}] by [${permutation.join(", ")}]`,
    size: paddedSize(outShape) / 4,
    bindings: [read(source), write(destination)],
    types: keepsChannels ? {} : { [source]: "f32" },
    body: `let base = ${base};
  ${body}`,
  });
}

function runningEnds(sizes: readonly number[]): number[] {
  let end = 0;
  return sizes.map((size) => end += size);
}
