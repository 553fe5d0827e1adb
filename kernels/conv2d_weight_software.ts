// Weight gradient of a convolution for CPU adapters (family "software"): dw[o, tap, c] = sum over pixels of
// dy[pixel, o] * x[pixel shifted by tap, c]. A lane owns one vec4 of input channels of one tap, or of a whole kernel
// row so that neighbouring taps share their loads; all lanes share a tile of output channels, whose dy each lane
// loads in part and hands on with subgroupShuffle. Pixels are split over workgroups into partial sums, and where the
// input channels are too few for all lanes also over parts of a workgroup.
import { type Conv2dSpec, shapeLabel } from "./conv2d_plan.ts";
import { COMPONENTS, declareBindings, type Kernel, padded, range, type Target } from "./kernel.ts";
import { cheapestTiles } from "./tile_choice.ts";

/** Register tile of a lane. */
export interface WeightTile {
  /** Output channels, a multiple of 4. */
  readonly rows: number;
  /** Output pixels of a step, neighbours in a row. */
  readonly run: number;
  /** Taps of a lane: 1 or the kernel's width. */
  readonly taps: number;
}

/** A weight-gradient kernel and the number of partial sums it writes to binding `partials` (or one to `dw`). */
export interface WeightKernel {
  readonly kernel: Kernel;
  readonly splits: number;
}

/** Workgroup size when the device has no subgroups. */
const LANES_WITHOUT_SUBGROUPS = 8;

/** Workgroups to aim at: enough for some threads, few enough to keep the partial sums small. */
const WORKGROUPS = 48;

/**
 * Kernel of the weight gradient for a CPU adapter.
 *
 * @param spec Shape of the convolution.
 * @param target Subgroup size; 0 selects plain loads instead of shuffles.
 * @param tile Register tile; {@linkcode softwareWeightTiles} gives good ones.
 * @returns Kernel with bindings `x`, `dy` and `partials`, or `dw` when one split is enough.
 */
export function weightGradientSoftware(
  spec: Conv2dSpec,
  target: Target,
  tile: WeightTile,
): WeightKernel {
  const lanes = target.subgroupSize || LANES_WITHOUT_SUBGROUPS;
  const shuffles = target.subgroupSize > 0;
  const channels = spec.outChannels / spec.group;
  const vectors = padded(spec.inChannels / spec.group) / 4;
  const outVectors = padded(channels) / 4;
  const units = spec.kernelHeight * (spec.kernelWidth / tile.taps) * vectors;
  const parts = partsOf(spec, target, tile);
  const unitGroups = parts > 1 ? 1 : Math.ceil(units / lanes);
  const rowTiles = Math.ceil(channels / tile.rows);
  const blocksPerRow = Math.ceil(spec.outWidth / tile.run);
  const blocks = spec.batch * spec.outHeight * blocksPerRow;
  const wanted = Math.ceil(WORKGROUPS / (unitGroups * rowTiles * spec.group));
  const blocksPerSplit = Math.ceil(blocks / Math.min(wanted, blocks));
  const splits = Math.ceil(blocks / blocksPerSplit);
  const output = splits * parts > 1 ? "partials" : "dw";
  const bindings = [
    { name: "x", access: "read" },
    { name: "dy", access: "read" },
    { name: output, access: "read_write" },
  ] as const;
  const filter = spec.kernelHeight * spec.kernelWidth * vectors;
  const quarter = tile.rows / 4;
  const rows = range(tile.rows);
  const taps = range(tile.taps);
  const store = rows.map((m) =>
    `    if (row + ${m}u < ${channels}u) {\n` +
    taps.map((tap) => `      ${output}[at + ${m * filter}u + ${tap * vectors}u] = c${m}_${tap};`)
      .join("\n") +
    "\n    }"
  ).join("\n");
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(${lanes})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let flat = workgroup.x * ${lanes}u + lane;
  ${parts > 1 ? `let part = min(lane / ${units}u, ${parts - 1}u);` : ""}
  let unit = ${parts > 1 ? `lane % ${units}u` : `min(flat, ${units - 1}u)`};
  let channel = unit % ${vectors}u;
  let tap = (unit / ${vectors}u) * ${tile.taps}u;
  let shift_row = i32(tap / ${spec.kernelWidth}u) * ${spec.dilationHeight} - ${spec.padTop};
  let shift_column = i32(tap % ${spec.kernelWidth}u) * ${spec.dilationWidth} - ${spec.padLeft};
  let group = workgroup.y / ${rowTiles}u;
  let row = (workgroup.y % ${rowTiles}u) * ${tile.rows}u;
${dyElements(tile, lanes, shuffles, outVectors)}
${rows.map((m) => "  " + taps.map((t) => `var c${m}_${t} = vec4f();`).join(" ")).join("\n")}
  let begin = workgroup.z * ${blocksPerSplit}u;
  let end = min(begin + ${blocksPerSplit}u, ${blocks}u);
  for (var block = begin; block < end; block++) {
    let b = i32(block % ${blocksPerRow}u) * ${tile.run};
    let line = i32(block / ${blocksPerRow}u);
    let in_row = (line % ${spec.outHeight}) * ${spec.strideHeight} + shift_row;
    let inside = u32(in_row) < ${spec.inHeight}u;
    let in_line = ((line / ${spec.outHeight}) * ${spec.inHeight} + in_row) * ${spec.inWidth};
    let in_column = ${
    parts > 1 ? `(b + i32(part) * ${tile.run / parts})` : "b"
  } * ${spec.strideWidth} + shift_column;
${loads(spec, tile, parts, lanes, shuffles, vectors, outVectors)}
${products(spec, tile, parts, lanes, shuffles)}
  }
  if (flat < ${units * parts}u) {
    let split = ${parts > 1 ? `workgroup.z * ${parts}u + part` : "workgroup.z"};
    let at = ((split * ${spec.group}u + group) * ${channels}u + row) * ${filter}u + tap * ${vectors}u + channel;
${store}
  }
}
`;
  return {
    kernel: {
      label: `conv2d_backward_weight ${shapeLabel(spec)}`,
      code,
      bindings,
      grid: [unitGroups, rowTiles * spec.group, splits],
    },
    splits: splits * parts,
  };

  /**
   * Which dy elements this lane loads: element e is for part e % parts; of that part's pixels and the tile's vec4s, pixel
   * e / parts / quarter and vec4 e / parts % quarter.
   */
  function dyElements(
    { run }: WeightTile,
    lanes: number,
    shuffles: boolean,
    outVectors: number,
  ): string {
    return range(dyLoads({ ...tile, run }, lanes, shuffles)).map((q) => {
      const element = shuffles ? `min(${q * lanes}u + lane, ${run * quarter - 1}u)` : `${q}u`;
      const pixel = parts > 1
        ? `${element} % ${parts}u * ${run / parts}u + ${element} / ${parts * quarter}u`
        : `${element} / ${quarter}u`;
      const vector = parts > 1 ? `${element} / ${parts}u` : element;
      return `  let pixel${q} = i32(${pixel});
  let vector${q} = group * ${outVectors}u + min(row / 4u + ${vector} % ${quarter}u, ${
        outVectors - 1
      }u);`;
    }).join("\n");
  }
}

/**
 * Tiles worth measuring.
 *
 * @param spec Shape of the convolution.
 * @param target Subgroup size.
 * @returns the one with the lowest modelled cost first
 */
export function softwareWeightTiles(spec: Conv2dSpec, target: Target): WeightTile[] {
  const channels = padded(spec.outChannels / spec.group);
  const tiles: WeightTile[] = [];
  for (const limit of [32, 24, 16, 8, 4]) {
    const rows = padded(Math.ceil(channels / Math.ceil(channels / limit)));
    if (tiles.some((tile) => tile.rows === rows)) continue;
    for (const taps of new Set([1, spec.kernelWidth])) {
      for (const run of range(Math.min(16, spec.outWidth)).map((i) => i + 1)) {
        const terms = rows * taps * run;
        if (rows * taps > 48 || (terms > 400 && run > 1)) continue;
        tiles.push({ rows, run, taps });
      }
    }
  }
  return cheapestTiles(
    tiles,
    (tile) => modelledCost(spec, target, tile),
    ({ rows, taps }) => `${rows} ${taps}`,
  );
}

/** Cycles of a pass over one row of pixels, roughly; as in the forward pass. */
function modelledCost(spec: Conv2dSpec, target: Target, tile: WeightTile): number {
  const { rows, run, taps } = tile;
  const lanes = target.subgroupSize || LANES_WITHOUT_SUBGROUPS;
  const vectors = padded(spec.inChannels / spec.group) / 4;
  const channels = padded(spec.outChannels / spec.group);
  const ownRun = run / partsOf(spec, target, tile);
  const loads = inputColumns(spec, { ...tile, run: ownRun }).length +
    dyLoads(tile, lanes, target.subgroupSize > 0);
  const units = Math.ceil(spec.kernelHeight * (spec.kernelWidth / taps) * vectors / lanes);
  const cycles = 65 * loads + 4 * rows * taps * ownRun + 4 * rows * taps + 60;
  return cycles * units * Math.ceil(channels / rows) * Math.ceil(spec.outWidth / run);
}

/**
 * Parts of a workgroup that each take some of a run's pixels, because one part's input channels leave lanes idle. Each
 * part's shuffles are from lanes of its own, which is only fast where the driver has an instruction for 8 lanes.
 */
function partsOf(spec: Conv2dSpec, target: Target, { run, taps }: WeightTile): number {
  const units = spec.kernelHeight * (spec.kernelWidth / taps) *
    padded(spec.inChannels / spec.group) / 4;
  const lanes = target.subgroupSize;
  if (lanes !== 8) return 1;
  return [8, 4, 2].find((parts) => parts * units <= lanes && run % parts === 0) ?? 1;
}

function dyLoads({ rows, run }: WeightTile, lanes: number, shuffles: boolean): number {
  const elements = run * rows / 4;
  return shuffles ? Math.ceil(elements / lanes) : elements;
}

/** Distinct input columns of a step, relative to the first pixel's first tap. */
function inputColumns(spec: Conv2dSpec, { run, taps }: WeightTile): number[] {
  const columns = new Set<number>();
  for (const pixel of range(run)) {
    for (const tap of range(taps)) {
      columns.add(pixel * spec.strideWidth + tap * spec.dilationWidth);
    }
  }
  return [...columns].sort((a, b) => a - b);
}

function loads(
  spec: Conv2dSpec,
  tile: WeightTile,
  parts: number,
  lanes: number,
  shuffles: boolean,
  vectors: number,
  outVectors: number,
): string {
  const ragged = spec.outWidth % tile.run !== 0;
  const stride = outVectors * spec.group;
  const dy = range(dyLoads(tile, lanes, shuffles)).map((q) => {
    if (!ragged) {
      return `    let d${q} = dy[u32(line * ${spec.outWidth} + b + pixel${q}) * ${stride}u + vector${q}];`;
    }
    return `    let valid${q} = b + pixel${q} < ${spec.outWidth};
    let d${q} = select(vec4f(), dy[u32(line * ${spec.outWidth} + min(b + pixel${q}, ${
      spec.outWidth - 1
    })) * ${stride}u + vector${q}], valid${q});`;
  });
  const x = inputColumns(spec, { ...tile, run: tile.run / parts }).map((offset, i) =>
    `    let inside${i} = inside && u32(in_column + ${offset}) < ${spec.inWidth}u;
    let x${i} = select(vec4f(), x[u32(select(0, in_line + in_column + ${offset}, inside${i})) * ${
      vectors * spec.group
    }u + group * ${vectors}u + channel], inside${i});`
  );
  return [...dy, ...x].join("\n");
}

function products(
  spec: Conv2dSpec,
  tile: WeightTile,
  parts: number,
  lanes: number,
  shuffles: boolean,
): string {
  const { rows, taps } = tile;
  const run = tile.run / parts;
  const quarter = rows / 4;
  const columns = inputColumns(spec, { ...tile, run });
  const lines: string[] = [];
  for (const i of range(quarter)) {
    for (const pixel of range(run)) {
      const element = (pixel * quarter + i) * parts;
      const value = shuffles
        ? `subgroupShuffle(d${Math.floor(element / lanes)}, ${element % lanes}u${
          parts > 1 ? " + part" : ""
        })`
        : `d${element}`;
      lines.push(`let e${i}_${pixel} = ${value};`);
    }
    for (const component of range(4)) {
      for (const tap of range(taps)) {
        const sum = `c${i * 4 + component}_${tap}`;
        const terms = range(run).reduce((inner, pixel) => {
          const x = columns.indexOf(pixel * spec.strideWidth + tap * spec.dilationWidth);
          return `fma(vec4f(e${i}_${pixel}.${COMPONENTS[component]}), x${x}, ${inner})`;
        }, sum);
        lines.push(`${sum} = ${terms};`);
      }
    }
  }
  return lines.map((line) => "    " + line).join("\n");
}
