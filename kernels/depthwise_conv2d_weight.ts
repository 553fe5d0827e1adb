// Weight gradient of a depthwise convolution, a reduction over pixels for each tap and channel: an invocation owns 4
// channels of all taps (of one filter row when the filter is large) and sums every chunks-th block of output pixels;
// a second kernel adds the chunks in a fixed order. On CPU adapters strips (depthwise_conv2d_weight_software) take the
// place of the blocks, except for large filters.
import { type Conv2dSpec, shapeLabel } from "./conv2d_plan.ts";
import { fitsStrips } from "./depthwise_strip.ts";
import {
  depthwiseWeightSoftware,
  depthwiseWeightTiles,
} from "./depthwise_conv2d_weight_software.ts";
import {
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  type KernelSequence,
  padded,
  paddedSize,
  range,
  type Target,
} from "./kernel.ts";
import { planChunks, reductionKernel } from "./reduce_partials.ts";
import { decideTile, tileName } from "./tile_choice.ts";

const WORKGROUP = 64;

/** Filters with more taps are summed one row an invocation. */
const UNROLLED_TAPS = 25;

/** dw[tap, c] = sum over images and output pixels of x[n, pixel of tap, c] * dy[n, pixel, c]; see depthwise_conv2d. */
export function depthwiseWeightGradient(spec: Conv2dSpec, target: Target): KernelSequence {
  if (target.family === "gpu" || !fitsStrips(spec)) return blocks(spec, target);
  const { batch, inChannels } = spec;
  const label = `depthwise_conv2d_backward_weight ${shapeLabel(spec)}`;
  const { tile, choice } = decideTile({
    key: label,
    shapes: {
      x: [batch, spec.inHeight, spec.inWidth, inChannels],
      dy: [batch, spec.outHeight, spec.outWidth, inChannels],
      dw: [spec.kernelHeight, spec.kernelWidth, inChannels],
    },
    tiles: depthwiseWeightTiles(spec, target),
    build: (tile) => {
      const kernel = depthwiseWeightSoftware(spec, target, tile, label);
      return tile.splits === 1
        ? { kernels: [kernel], temporaries: {} }
        : sumOfChunks(spec, kernel, tile.splits, target);
    },
  }, target);
  const { kernels: [first, ...rest], temporaries } = choice.build(tileName(tile));
  return { kernels: [{ ...first!, choice }, ...rest], temporaries };
}

/** A weight gradient that wrote partial sums, with their sum. */
function sumOfChunks(
  { kernelHeight, kernelWidth, inChannels }: Conv2dSpec,
  kernel: Kernel,
  chunks: number,
  target: Target,
): KernelSequence {
  const size = paddedSize([kernelHeight, kernelWidth, inChannels]);
  const reduction = reductionKernel({
    label: `${kernel.label} sum`,
    bindings: [{ name: "partials", access: "read" }, { name: "dw", access: "read_write" }],
    chunks,
    stride: size / 4,
    offsets: [0],
    size: size / 4,
    finish: "dw[o] = value0;",
  }, target);
  return { kernels: [kernel, reduction], temporaries: { partials: chunks * size } };
}

function blocks(spec: Conv2dSpec, target: Target): KernelSequence {
  const { kernelHeight, kernelWidth, outHeight, outWidth, batch, inChannels } = spec;
  const vectors = padded(inChannels) / 4;
  const wholeFilter = kernelHeight * kernelWidth <= UNROLLED_TAPS;
  const units = vectors * (wholeFilter ? 1 : kernelHeight);
  const height = wholeFilter ? Math.min(2, outHeight) : 1;
  const width = [4, 3].find((run) => outWidth % run === 0) ?? Math.min(4, outWidth);
  const across = Math.ceil(outWidth / width);
  const down = Math.ceil(outHeight / height);
  const blocks = batch * down * across;
  const { chunks } = planChunks(blocks, units, target);
  const bindings = [
    { name: "x", access: "read" },
    { name: "dy", access: "read" },
    { name: "partials", access: "read_write" },
  ] as const;
  const filterRows = range(wholeFilter ? kernelHeight : 1);
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let flat = ${flatIndex(WORKGROUP)};
  if (flat >= ${chunks * units}u) { return; }
  let channel = flat % ${vectors}u;
  let filter_row = flat / ${vectors}u % ${units / vectors}u;
  let chunk = flat / ${units}u;
${
    filterRows.map((kh) =>
      "  " + range(kernelWidth).map((kw) => `var c${kh}_${kw} = vec4f();`).join(" ")
    ).join("\n")
  }
  for (var block = chunk; block < ${blocks}u; block += ${chunks}u) {
    let b = i32(block % ${across}u) * ${width};
    let a = i32(block / ${across}u % ${down}u) * ${height};
    let n = i32(block / ${across * down}u);
${step(spec, vectors, height, width, filterRows)}
  }
${
    filterRows.map((kh) =>
      range(kernelWidth).map((kw) =>
        `  partials[((chunk * ${kernelHeight}u + filter_row + ${kh}u) * ${kernelWidth}u + ${kw}u) * ${vectors}u + channel] = c${kh}_${kw};`
      ).join("\n")
    ).join("\n")
  }
}
`;
  const label = `depthwise_conv2d_backward_weight ${shapeLabel(spec)}`;
  const kernel = { label, code, bindings, grid: grid1d(chunks * units, WORKGROUP) };
  return sumOfChunks(spec, kernel, chunks, target);
}

/** Loads a block of dy and every input pixel its taps read, and adds the products. */
function step(
  spec: Conv2dSpec,
  vectors: number,
  height: number,
  width: number,
  filterRows: readonly number[],
): string {
  const { strideHeight, strideWidth, dilationHeight, dilationWidth, inHeight, inWidth } = spec;
  const { outHeight, outWidth, kernelWidth } = spec;
  const lines: string[] = [];
  for (const i of range(height)) {
    for (const j of range(width)) {
      const guards = [
        i === 0 || outHeight % height === 0 ? "" : `a + ${i} < ${outHeight}`,
        j === 0 || outWidth % width === 0 ? "" : `b + ${j} < ${outWidth}`,
      ].filter(Boolean);
      const row = i === 0 ? "a" : `min(a + ${i}, ${outHeight - 1})`;
      const column = j === 0 ? "b" : `min(b + ${j}, ${outWidth - 1})`;
      const load =
        `dy[u32((n * ${outHeight} + ${row}) * ${outWidth} + ${column}) * ${vectors}u + channel]`;
      lines.push(
        `let d${i}_${j} = ${
          guards.length > 0 ? `select(vec4f(), ${load}, ${guards.join(" && ")})` : load
        };`,
      );
    }
  }
  const rows = new Set(
    range(height).flatMap((i) => filterRows.map((kh) => i * strideHeight + kh * dilationHeight)),
  );
  const columns = new Set(
    range(width).flatMap((j) =>
      range(kernelWidth).map((kw) => j * strideWidth + kw * dilationWidth)
    ),
  );
  for (const r of rows) {
    lines.push(
      `let row${r} = a * ${strideHeight} + ${r} - ${spec.padTop} + i32(filter_row) * ${dilationHeight};`,
      `let inside${r} = u32(row${r}) < ${inHeight}u;`,
    );
    for (const s of columns) {
      lines.push(
        `let column${r}_${s} = b * ${strideWidth} + ${s} - ${spec.padLeft};`,
        `let inside${r}_${s} = inside${r} && u32(column${r}_${s}) < ${inWidth}u;`,
        `let x${r}_${s} = select(vec4f(), x[u32(select(0, (n * ${inHeight} + row${r}) * ${inWidth} + column${r}_${s}, inside${r}_${s})) * ${vectors}u + channel], inside${r}_${s});`,
      );
    }
  }
  for (const kh of filterRows) {
    for (const kw of range(kernelWidth)) {
      for (const i of range(height)) {
        for (const j of range(width)) {
          const x = `x${i * strideHeight + kh * dilationHeight}_${
            j * strideWidth + kw * dilationWidth
          }`;
          lines.push(`c${kh}_${kw} = fma(${x}, d${i}_${j}, c${kh}_${kw});`);
        }
      }
    }
  }
  return lines.map((line) => "    " + line).join("\n");
}
