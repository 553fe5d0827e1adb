// Pooling over windows of an image, ONNX MaxPool, AveragePool and GlobalAveragePool.
// Shapes: x: [batch, inHeight, inWidth, channels], y: [batch, outHeight, outWidth, channels]. One invocation computes a vec4
// of channels. Backward kernels gather: each element of dx sums over the windows that hold it, in a fixed order.
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type Binding, type Kernel, type KernelSequence, padded, range } from "./kernel.ts";

/** Sizes of a pooling; the output size is given, so ceil_mode is the caller's rounding. */
export interface PoolSpec {
  readonly batch: number;
  readonly inHeight: number;
  readonly inWidth: number;
  readonly channels: number;
  readonly outHeight: number;
  readonly outWidth: number;
  readonly kernelHeight: number;
  readonly kernelWidth: number;
  readonly strideHeight: number;
  readonly strideWidth: number;
  readonly padTop: number;
  readonly padLeft: number;
  readonly padBottom: number;
  readonly padRight: number;
}

/** Sizes of an average pooling. */
export interface AveragePoolSpec extends PoolSpec {
  /** Whether padding counts in the divisor; what ceil_mode adds beyond it never does. */
  readonly countIncludePad: boolean;
}

/** Sizes of a pooling over the whole image: x: [batch, size, channels], y: [batch, channels]. */
export interface GlobalPoolSpec {
  readonly batch: number;
  /** Pixels: height * width. */
  readonly size: number;
  readonly channels: number;
}

const LOWEST = "-3.4028234663852886e38";

// y[p] = max over the window of p of x
/**
 * Max pooling, forward.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, y
 */
export function maxPoolForward(spec: PoolSpec): Kernel {
  const body = `${position("i", spec, "out")}
  var best = vec4f(${LOWEST});
${
    forEachTap(spec, (tap) => /* wgsl */ `
    ${inputOfTap(spec, tap)}
    best = max(best, select(vec4f(${LOWEST}), x[at], inside));`)
  }
  y[i] = best;`;
  return shader("max_pool_forward", spec, "out", [read("x"), write("y")], body);
}

// dx[q] = sum of dy[p] over the windows p whose first maximum is at q
/**
 * Max pooling, backward: finds the first maximum of every window again, then gathers.
 *
 * @param spec sizes
 * @returns kernels with bindings x, dy, dx
 */
export function maxPoolBackward(spec: PoolSpec): KernelSequence {
  const find = `${position("i", spec, "out")}
  var best = vec4f(${LOWEST});
  var first = vec4u(${spec.kernelHeight * spec.kernelWidth}u); // no tap yet
${
    forEachTap(spec, (tap) => /* wgsl */ `
    ${inputOfTap(spec, tap)}
    let value = select(vec4f(${LOWEST}), x[at], inside);
    let better = vec4<bool>(inside) & ((value > best) | (first == vec4u(${
      spec.kernelHeight * spec.kernelWidth
    }u)));
    best = select(best, value, better);
    first = select(first, vec4u(${tap.index}), better);`)
  }
  argmax[i] = first;`;
  const gather = `${position("i", spec, "in")}
  var sum = vec4f(0.0);
${
    forEachWindow(
      spec,
      `let mine = vec4<bool>(inside) & (argmax[at] == vec4u(tap));
    sum += select(vec4f(0.0), dy[at], mine);`,
    )
  }
  dx[i] = sum;`;
  const types = { argmax: "vec4u" };
  const { batch, outHeight, outWidth, channels } = spec;
  return {
    kernels: [
      shader("max_pool_argmax", spec, "out", [read("x"), write("argmax")], find, types),
      shader(
        "max_pool_backward",
        spec,
        "in",
        [read("argmax"), read("dy"), write("dx")],
        gather,
        types,
      ),
    ],
    temporaries: { argmax: batch * outHeight * outWidth * padded(channels) },
  };
}

// y[p] = sum over the window of p of x / count(p)
/**
 * Average pooling, forward.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, y
 */
export function averagePoolForward(spec: AveragePoolSpec): Kernel {
  const body = `${position("i", spec, "out")}
  var sum = vec4f(0.0);
${
    forEachTap(spec, (tap) => /* wgsl */ `
    ${inputOfTap(spec, tap)}
    sum += select(vec4f(0.0), x[at], inside);`)
  }
  y[i] = sum / ${windowSize(spec, "row", "column")};`;
  return shader("average_pool_forward", spec, "out", [read("x"), write("y")], body);
}

// dx[q] = sum over the windows p that hold q of dy[p] / count(p)
/**
 * Average pooling, backward.
 *
 * @param spec sizes
 * @returns a kernel with bindings dy, dx
 */
export function averagePoolBackward(spec: AveragePoolSpec): Kernel {
  const body = `${position("i", spec, "in")}
  var sum = vec4f(0.0);
${
    forEachWindow(
      spec,
      `sum += select(vec4f(0.0), dy[at] / ${
        windowSize(spec, "windowRow", "windowColumn")
      }, inside);`,
    )
  }
  dx[i] = sum;`;
  return shader("average_pool_backward", spec, "in", [read("dy"), write("dx")], body);
}

// y[b, c] = sum_p x[b, p, c] / size
/**
 * Global average pooling, forward.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, y
 */
export function globalAveragePoolForward({ batch, size, channels }: GlobalPoolSpec): Kernel {
  const quads = padded(channels) / 4;
  const body = `let base = i / ${quads}u * ${size * quads}u + i % ${quads}u;
  var sum_0 = vec4f(0.0); var sum_1 = vec4f(0.0); var sum_2 = vec4f(0.0); var sum_3 = vec4f(0.0);
  for (var p = 0u; p < ${size - size % 4}u; p += 4u) {
    ${range(4).map((u) => `sum_${u} += x[base + (p + ${u}u) * ${quads}u];`).join(" ")}
  }
  ${
    range(size % 4).map((u) => `sum_${u} += x[base + ${(size - size % 4 + u) * quads}u];`).join(" ")
  }
  y[i] = ((sum_0 + sum_1) + (sum_2 + sum_3)) * ${1 / size};`;
  const bindings = [read("x"), write("y")];
  const label = `global_average_pool_forward ${batch}x${size}x${channels}`;
  return flatKernel({ label, size: batch * quads, bindings, body });
}

// dx[b, p, c] = dy[b, c] / size
/**
 * Global average pooling, backward.
 *
 * @param spec sizes
 * @returns a kernel with bindings dy, dx
 */
export function globalAveragePoolBackward({ batch, size, channels }: GlobalPoolSpec): Kernel {
  const quads = padded(channels) / 4;
  const body = `dx[i] = dy[i / ${size * quads}u * ${quads}u + i % ${quads}u] * ${1 / size};`;
  const bindings = [read("dy"), write("dx")];
  const label = `global_average_pool_backward ${batch}x${size}x${channels}`;
  return flatKernel({ label, size: batch * size * quads, bindings, body });
}

// ---------------------------------------------------------------------------------------------------------------------

/** WGSL i32 expressions of a place in the window, and its flat u32 index. */
interface Tap {
  readonly row: string;
  readonly column: string;
  readonly index: string;
}

/** Taps up to this many are unrolled; larger windows take a loop. */
const MOST_UNROLLED = 25;

function forEachTap({ kernelHeight, kernelWidth }: PoolSpec, body: (tap: Tap) => string): string {
  if (kernelHeight * kernelWidth > MOST_UNROLLED) {
    const tap = {
      row: "tapRow",
      column: "tapColumn",
      index: `u32(tapRow * ${kernelWidth} + tapColumn)`,
    };
    return /* wgsl */ `  for (var tapRow = 0; tapRow < ${kernelHeight}; tapRow += 1) {
    for (var tapColumn = 0; tapColumn < ${kernelWidth}; tapColumn += 1) { ${body(tap)} }
  }`;
  }
  return range(kernelHeight * kernelWidth).map((index) => {
    const row = `${Math.floor(index / kernelWidth)}`, column = `${index % kernelWidth}`;
    return `  { ${body({ row, column, index: `${index}u` })} }`;
  }).join("\n");
}

/** Splits vec4 index `i` of an image into `image`, `row`, `column`, `quad`. */
function position(i: string, spec: PoolSpec, side: "in" | "out"): string {
  const height = side === "in" ? spec.inHeight : spec.outHeight;
  const width = side === "in" ? spec.inWidth : spec.outWidth;
  const quads = padded(spec.channels) / 4;
  return `let quad = ${i} % ${quads}u;
  let column = i32(${i} / ${quads}u % ${width}u);
  let row = i32(${i} / ${quads * width}u % ${height}u);
  let image = ${i} / ${quads * width * height}u;`;
}

/** `at` and `inside`: the element of x under a tap of the window at `row`, `column`. */
function inputOfTap(spec: PoolSpec, { row, column }: Tap): string {
  const { inHeight, inWidth, strideHeight, strideWidth, padTop, padLeft } = spec;
  return `let inRow = row * ${strideHeight} + ${row} - ${padTop};
    let inColumn = column * ${strideWidth} + ${column} - ${padLeft};
    let inside = inRow >= 0 && inRow < ${inHeight} && inColumn >= 0 && inColumn < ${inWidth};
    ${index(spec, "inRow", "inColumn", inHeight, inWidth)}`;
}

/** Runs `body` for each window that may hold the element at `row`, `column`, by descending coordinates. */
function forEachWindow(spec: PoolSpec, body: string): string {
  const { kernelHeight, kernelWidth, strideHeight, strideWidth } = spec;
  const rows = Math.ceil(kernelHeight / strideHeight);
  const columns = Math.ceil(kernelWidth / strideWidth);
  const window = (down: string, right: string) => `${windowAt(spec, down, right)}\n    ${body}`;
  if (rows * columns > MOST_UNROLLED) {
    return /* wgsl */ `  for (var down = 0; down < ${rows}; down += 1) {
    for (var right = 0; right < ${columns}; right += 1) { ${window("down", "right")} }
  }`;
  }
  return range(rows * columns).map((w) =>
    `  { ${window(`${Math.floor(w / columns)}`, `${w % columns}`)} }`
  ).join("\n");
}

/** `at`, `inside` and `tap`: a window of x's element at `row`, `column`, and which of its taps that is. */
function windowAt(spec: PoolSpec, down: string, right: string): string {
  const { outHeight, outWidth, strideHeight, strideWidth, padTop, padLeft } = spec;
  return `let windowRow = (row + ${padTop}) / ${strideHeight} - ${down};
    let windowColumn = (column + ${padLeft}) / ${strideWidth} - ${right};
    let tapRow = row + ${padTop} - windowRow * ${strideHeight};
    let tapColumn = column + ${padLeft} - windowColumn * ${strideWidth};
    let inside = windowRow >= 0 && windowRow < ${outHeight} && tapRow < ${spec.kernelHeight} &&
      windowColumn >= 0 && windowColumn < ${outWidth} && tapColumn < ${spec.kernelWidth};
    let tap = u32(tapRow * ${spec.kernelWidth} + tapColumn);
    ${index(spec, "windowRow", "windowColumn", outHeight, outWidth)}`;
}

function index(spec: PoolSpec, row: string, column: string, height: number, width: number): string {
  const quads = padded(spec.channels) / 4;
  const pixel = `(i32(image) * ${height} + ${row}) * ${width} + ${column}`;
  return `let at = select(0u, u32(${pixel}) * ${quads}u + quad, inside);`;
}

/** f32 expression: what the sum over a window is divided by. */
function windowSize(spec: AveragePoolSpec, row: string, column: string): string {
  const side = (
    at: string,
    kernel: number,
    stride: number,
    before: number,
    size: number,
    after: number,
  ) => {
    const start = `(${at} * ${stride} - ${before})`;
    return spec.countIncludePad
      ? `(min(${start} + ${kernel}, ${size + after}) - ${start})`
      : `(min(${start} + ${kernel}, ${size}) - max(${start}, 0))`;
  };
  const { inHeight, inWidth, kernelHeight, kernelWidth, strideHeight, strideWidth } = spec;
  const height = side(row, kernelHeight, strideHeight, spec.padTop, inHeight, spec.padBottom);
  const width = side(column, kernelWidth, strideWidth, spec.padLeft, inWidth, spec.padRight);
  return `f32(${height} * ${width})`;
}

/** One invocation for every vec4 of the input or output image. */
function shader(
  name: string,
  spec: PoolSpec,
  side: "in" | "out",
  bindings: readonly Binding[],
  body: string,
  types: Readonly<Record<string, string>> = {},
): Kernel {
  const { batch, inHeight, inWidth, outHeight, outWidth, channels } = spec;
  const pixels = batch * (side === "in" ? inHeight * inWidth : outHeight * outWidth);
  const label = `${name} ${batch}x${inHeight}x${inWidth}x${channels}`;
  return flatKernel({ label, size: pixels * padded(channels) / 4, bindings, types, body });
}
