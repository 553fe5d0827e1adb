// Weight gradient of a convolution for real GPUs (family "gpu"): a GEMM of [output channels] x [taps x input channels]
// summed over pixels, in workgroup-memory tiles. Both operands already lie along what the tile needs (dy along output
// channels, x along input channels), so nothing is transposed. Pixels are split over workgroups.
import { type Conv2dSpec, shapeLabel } from "./conv2d_plan.ts";
import type { WeightKernel } from "./conv2d_weight_software.ts";
import { COMPONENTS, declareBindings, padded, range } from "./kernel.ts";

const WORKGROUP = 256;

/** Pixels of a step. */
const DEPTH = 16;

/** Workgroups that keep a large GPU busy. */
const WORKGROUPS = 528;

/** Tile of a workgroup, and how finely the pixels are split. */
export interface GpuWeightTile {
  /** vec4s of output channels; the other side takes what is left of the workgroup. */
  readonly rows: number;
  /** Workgroups to aim at. */
  readonly workgroups: number;
}

/**
 * Kernel of the weight gradient for a GPU.
 *
 * @param spec Shape of the convolution.
 * @param tile Workgroup tile; {@linkcode gpuWeightTiles} gives good ones.
 * @returns Kernel with bindings `x`, `dy` and `partials`, or `dw` when one split is enough.
 */
export function weightGradientGpu(spec: Conv2dSpec, tile: GpuWeightTile): WeightKernel {
  const channels = spec.outChannels / spec.group;
  const outVectors = padded(channels) / 4;
  const vectors = padded(spec.inChannels / spec.group) / 4;
  const columns = spec.kernelHeight * spec.kernelWidth * vectors;
  const rowVectors = tile.rows;
  const columnVectors = WORKGROUP / rowVectors;
  const rowTiles = Math.ceil(outVectors / rowVectors);
  const columnTiles = Math.ceil(columns / columnVectors);
  const pixels = spec.batch * spec.outHeight * spec.outWidth;
  const steps = Math.ceil(pixels / DEPTH);
  const wanted = Math.ceil(tile.workgroups / (rowTiles * columnTiles * spec.group));
  const stepsPerSplit = Math.ceil(steps / Math.min(wanted, Math.ceil(steps / 4)));
  const splits = Math.ceil(steps / stepsPerSplit);
  const output = splits > 1 ? "partials" : "dw";
  const bindings = [
    { name: "x", access: "read" },
    { name: "dy", access: "read" },
    { name: output, access: "read_write" },
  ] as const;
  const dyLoads = loads("dy", "a", DEPTH * rowVectors, rowVectors);
  const xLoads = loads("x", "b", DEPTH * columnVectors, columnVectors);
  const code = /* wgsl */ `${declareBindings(bindings)}

const ROWS = ${rowVectors}u;
const COLUMNS = ${columnVectors}u;
var<workgroup> dy_tile: array<vec4f, ${DEPTH * rowVectors}>;
var<workgroup> x_tile: array<vec4f, ${DEPTH * columnVectors}>;

fn load_dy(pixel: u32, vector: u32, group: u32) -> vec4f {
  if (pixel >= ${pixels}u || vector >= ${outVectors}u) { return vec4f(); }
  return dy[pixel * ${outVectors * spec.group}u + group * ${outVectors}u + vector];
}

fn load_x(pixel: u32, column: u32, group: u32) -> vec4f {
  let tap = column / ${vectors}u;
  let row = i32(pixel / ${spec.outWidth}u % ${spec.outHeight}u) * ${spec.strideHeight} - ${spec.padTop}
    + i32(tap / ${spec.kernelWidth}u) * ${spec.dilationHeight};
  let in_column = i32(pixel % ${spec.outWidth}u) * ${spec.strideWidth} - ${spec.padLeft}
    + i32(tap % ${spec.kernelWidth}u) * ${spec.dilationWidth};
  if (pixel >= ${pixels}u || column >= ${columns}u || u32(row) >= ${spec.inHeight}u || u32(in_column) >= ${spec.inWidth}u) {
    return vec4f();
  }
  let image = pixel / ${spec.outHeight * spec.outWidth}u;
  let at = (image * ${spec.inHeight}u + u32(row)) * ${spec.inWidth}u + u32(in_column);
  return x[at * ${vectors * spec.group}u + group * ${vectors}u + column % ${vectors}u];
}

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let group = workgroup.y / ${rowTiles}u;
  let dy_first = (workgroup.y % ${rowTiles}u) * ROWS;
  let x_first = workgroup.x * COLUMNS;
  let begin = workgroup.z * ${stepsPerSplit}u;
  let end = min(begin + ${stepsPerSplit}u, ${steps}u);
  let mine_row = local / COLUMNS;
  let mine_column = local % COLUMNS;
  var c0 = vec4f(); var c1 = vec4f(); var c2 = vec4f(); var c3 = vec4f();
${dyLoads.declare}
${xLoads.declare}
${dyLoads.fetch("begin")}
${xLoads.fetch("begin")}
  for (var step = begin; step < end; step++) {
${dyLoads.keep}
${xLoads.keep}
    workgroupBarrier();
${dyLoads.fetch("(step + 1u)")}
${xLoads.fetch("(step + 1u)")}
    for (var k = 0u; k < ${DEPTH}u; k++) {
      let a = dy_tile[k * ROWS + mine_row];
      let b = x_tile[k * COLUMNS + mine_column];
${COMPONENTS.map((c, i) => `      c${i} = fma(vec4f(a.${c}), b, c${i});`).join("\n")}
    }
    workgroupBarrier();
  }
  let column = x_first + mine_column;
  let row = (dy_first + mine_row) * 4u;
  if (column < ${columns}u) {
    let at = ((workgroup.z * ${spec.group}u + group) * ${channels}u + row) * ${columns}u + column;
${
    range(4).map((i) =>
      `    if (row + ${i}u < ${channels}u) { ${output}[at + ${i * columns}u] = c${i}; }`
    ).join("\n")
  }
  }
}
`;
  return {
    kernel: {
      label: `conv2d_backward_weight ${shapeLabel(spec)}`,
      code,
      bindings,
      grid: [columnTiles, rowTiles * spec.group, splits],
    },
    splits,
  };
}

/**
 * Tiles worth measuring.
 *
 * @param spec Shape of the convolution.
 * @returns 16 x 16 blocks of 4 channels x 1 vec4, or flatter when there are few output channels, first
 */
export function gpuWeightTiles(spec: Conv2dSpec): GpuWeightTile[] {
  const channels = spec.outChannels / spec.group;
  const rows = channels <= 16 ? 4 : channels <= 32 ? 8 : 16;
  return [rows, ...[4, 8, 16].filter((other) => other !== rows)].flatMap((rows) =>
    [WORKGROUPS, WORKGROUPS / 2].map((workgroups) => ({ rows, workgroups }))
  );
}

/** Statements that move `elements` vec4s of an operand, `width` to a pixel, through registers into its tile. */
function loads(
  name: string,
  register: string,
  elements: number,
  width: number,
): { declare: string; keep: string; fetch: (step: string) => string } {
  const rounds = range(Math.ceil(elements / WORKGROUP));
  const guard = (statement: string): string =>
    elements >= WORKGROUP ? statement : `if (local < ${elements}u) { ${statement} }`;
  const element = (round: number): string => `(local + ${round * WORKGROUP}u)`;
  return {
    declare: rounds.map((round) => `  var ${register}${round} = vec4f();`).join("\n"),
    keep: rounds.map((round) =>
      "    " + guard(`${name}_tile[local + ${round * WORKGROUP}u] = ${register}${round};`)
    ).join("\n"),
    fetch: (step) =>
      rounds.map((round) =>
        "    " + guard(
          `${register}${round} = load_${name}(${step} * ${DEPTH}u + ${
            element(round)
          } / ${width}u, ${name}_first + ${element(round)} % ${width}u, group);`,
        )
      ).join("\n"),
  };
}
