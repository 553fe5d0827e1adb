// Convolution for real GPUs (family "gpu"): implicit GEMM over [channels] x [pixels], depth = taps x channels. Tiles of
// the weights and of the shifted input go through workgroup memory, transposed so that the inner loop reads vec4s of
// channels and of pixels; the next tile is fetched into registers while the current one is multiplied. Columns of the
// tiles are permuted by xor with their depth, which spreads the transposing stores over the memory banks.
import type { TapAxis, TapConvolution } from "./conv2d_plan.ts";
import { epilogueBindings, epilogueSetup, epilogueStore } from "./epilogue.ts";
import {
  type Binding,
  COMPONENTS,
  declareBindings,
  grid1d,
  type Kernel,
  padded,
  range,
} from "./kernel.ts";
import { TILE_FORMS } from "./tile_storage.ts";

/** Tile of a workgroup of 256 invocations, each with `channelVectors` x `pixelVectors` blocks of 4x4. */
export interface GpuTile {
  /** Output channels, a power of two of at least 16. */
  readonly channels: number;
  readonly pixels: number;
  /** Depth of a step. */
  readonly depth: number;
  readonly channelVectors: number;
  readonly pixelVectors: number;
}

const WORKGROUP = 256;

/** Workgroups below which the largest tile would leave a large GPU idle (two for each of 132 multiprocessors). */
const MANY_WORKGROUPS = 264;

/**
 * Kernel of a tap convolution for a GPU.
 *
 * @param convolution Forward pass or phase of the input gradient; without taps the kernel writes zeros.
 * @param tile Workgroup tile; {@linkcode gpuTiles} gives good ones.
 * @returns The kernel; bindings are input, `w`, the epilogue's, output.
 */
export function convolutionGpu(
  convolution: TapConvolution,
  tile: GpuTile,
): Kernel {
  const { epilogue, inputName, outputName, group, rows, columns } = convolution;
  const form = TILE_FORMS[convolution.tileStorage];
  const bindings: Binding[] = [
    { name: inputName, access: "read" },
    { name: "w", access: "read" },
    ...epilogueBindings(epilogue),
    { name: outputName, access: "read_write" },
  ];
  const channelVectors = padded(convolution.channels) / 4;
  const channelTiles = Math.ceil(channelVectors / (tile.channels / 4));
  const pixels = convolution.batch * rows.positions * columns.positions;
  const [across, fold] = grid1d(pixels, tile.pixels);
  const depth = rows.taps.count * columns.taps.count * padded(convolution.depth) / 4;
  const across4 = tile.channels / 4 / tile.channelVectors;
  const m = range(tile.channelVectors);
  const n = range(tile.pixelVectors);
  const code = /* wgsl */ `${form.enable}${declareBindings(bindings)}

const CHANNELS = ${tile.channels / 4}u;
const PIXELS = ${tile.pixels / 4}u;
const DEPTH = ${depth}u;
var<workgroup> weights: array<${form.type}, ${tile.depth * tile.channels / 4}>;
var<workgroup> inputs: array<${form.type}, ${tile.depth * tile.pixels / 4}>;

${weightLoader(convolution)}

${inputLoader(convolution)}

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let group = workgroup.y / ${channelTiles}u;
  let m4 = (workgroup.y % ${channelTiles}u) * CHANNELS;
  let first = (workgroup.z * ${across}u + workgroup.x) * PIXELS * 4u;
  let mine_m = local % ${across4}u;
  let mine_n = local / ${across4}u;
  ${epilogueSetup(epilogue)}
${
    m.map((i) =>
      n.map((j) => "  " + range(4).map((p) => `var c${i}_${j}_${p} = vec4f();`).join(" ")).join(
        "\n",
      )
    ).join("\n")
  }
${depth > 0 ? product(convolution, tile, depth) : ""}
${store(convolution, tile, pixels, channelVectors)}
}
`;
  return {
    label: convolution.label,
    code,
    bindings,
    grid: [across, channelTiles * group, fold],
  };
}

/** Tiles by their number of channels, smallest first. */
const TILES: readonly GpuTile[] = [
  { channels: 16, pixels: 256, depth: 8, channelVectors: 1, pixelVectors: 1 },
  { channels: 32, pixels: 128, depth: 16, channelVectors: 1, pixelVectors: 1 },
  { channels: 64, pixels: 64, depth: 32, channelVectors: 1, pixelVectors: 1 },
  { channels: 128, pixels: 128, depth: 16, channelVectors: 2, pixelVectors: 2 },
];

/**
 * Tiles worth measuring.
 *
 * @param convolution what they are for
 * @returns the one that suits the number of channels and pixels first
 */
export function gpuTiles(convolution: TapConvolution): GpuTile[] {
  const { channels, rows, columns, batch, group } = convolution;
  const pixels = batch * rows.positions * columns.positions;
  const large = Math.ceil(channels / 128) * Math.ceil(pixels / 128) * group;
  const suited = channels <= 16
    ? 0
    : channels <= 32
    ? 1
    : channels > 64 && large >= MANY_WORKGROUPS
    ? 3
    : 2;
  // A tile of four times the channels would mostly multiply zeros.
  const others = TILES.filter((tile, i) => i !== suited && tile.channels < 4 * channels);
  return [TILES[suited]!, ...others];
}

/** Kernel position and input offset of a tap, from the index `tap` among this convolution's taps. */
function tapExpressions(axis: TapAxis, index: string): { kernel: string; offset: string } {
  const { kernelStart, kernelStep, offsetStart, offsetStep } = axis.taps;
  return {
    kernel: `(${kernelStart}u + ${index} * ${kernelStep}u)`,
    offset: `(${offsetStart} + i32(${index}) * (${offsetStep}))`,
  };
}

/** WGSL function: vec4 of w for depth vec4 `k4`, forward as (channel m), transposed as (depth 4 k4 + u, vec4 m). */
function weightLoader(convolution: TapConvolution): string {
  const { rows, columns, channels, depth, weightVectors, kernelWidth, kernelHeight, transposed } =
    convolution;
  if (rows.taps.count * columns.taps.count === 0) return "";
  const vectors = padded(depth) / 4;
  const kernelRow = tapExpressions(rows, `(tap / ${columns.taps.count}u)`).kernel;
  const kernelColumn = tapExpressions(columns, `(tap % ${columns.taps.count}u)`).kernel;
  const index = transposed
    ? `((group * ${depth}u + k) * ${
      kernelHeight * kernelWidth
    }u + position) * ${weightVectors}u + m`
    : `((group * ${channels}u + m) * ${
      kernelHeight * kernelWidth
    }u + position) * ${weightVectors}u + k`;
  return `fn load_weight(k4: u32, u: u32, m: u32, group: u32) -> vec4f {
  let tap = k4 / ${vectors}u;
  let k = ${transposed ? `k4 % ${vectors}u * 4u + u` : `k4 % ${vectors}u`};
  if (k4 >= DEPTH || m >= ${transposed ? `${weightVectors}u || k >= ${depth}u` : `${channels}u`}) {
    return vec4f();
  }
  let position = ${kernelRow} * ${kernelWidth}u + ${kernelColumn};
  return w[${index}];
}`;
}

/** WGSL function: vec4 of the input for depth vec4 `k4` of the pixel at row a, column b of image n (n < 0: none). */
function inputLoader(convolution: TapConvolution): string {
  const { rows, columns, depth, group, inputName } = convolution;
  if (rows.taps.count * columns.taps.count === 0) return "";
  const vectors = padded(depth) / 4;
  return `fn load_input(k4: u32, pixel: vec3i, group: u32) -> vec4f {
  let tap = k4 / ${vectors}u;
  let row = pixel.y * ${rows.inputStep} + ${
    tapExpressions(rows, `(tap / ${columns.taps.count}u)`).offset
  };
  let column = pixel.z * ${columns.inputStep} + ${
    tapExpressions(columns, `(tap % ${columns.taps.count}u)`).offset
  };
  if (k4 >= DEPTH || pixel.x < 0 || u32(row) >= ${rows.inputSize}u || u32(column) >= ${columns.inputSize}u) {
    return vec4f();
  }
  let at = u32((pixel.x * ${rows.inputSize} + row) * ${columns.inputSize} + column);
  return ${inputName}[at * ${vectors * group}u + group * ${vectors}u + k4 % ${vectors}u];
}

fn pixel_at(flat: u32) -> vec3i {
  let position = vec3i(vec3u(
    flat / ${rows.positions * columns.positions}u,
    flat / ${columns.positions}u % ${rows.positions}u,
    flat % ${columns.positions}u,
  ));
  return select(vec3i(-1, position.yz), position, flat < ${
    convolution.batch * rows.positions * columns.positions
  }u);
}`;
}

/** The loop over depth: fetch, store to workgroup memory, multiply. */
function product(convolution: TapConvolution, tile: GpuTile, depth: number): string {
  const { transposed, tileStorage } = convolution;
  const form = TILE_FORMS[tileStorage];
  const vectors = tile.depth / 4;
  const steps = Math.ceil(depth / vectors);
  const weightBlocks = vectors * tile.channels / 4;
  const inputBlocks = vectors * tile.pixels / 4;
  const guard = (blocks: number, statements: string): string =>
    blocks === WORKGROUP ? statements : `if (local < ${blocks}u) {\n${statements}\n    }`;
  // A transposed weight vec4 already lies along channels: neighbouring invocations take neighbouring channels.
  const weightPlace = transposed
    ? `let weight_m = local % CHANNELS;
  let weight_k = local / CHANNELS;`
    : `let weight_k = local % ${vectors}u;
  let weight_m = local / ${vectors}u;`;
  const fetch = (step: string): string =>
    guard(
      weightBlocks,
      range(4).map((i) =>
        transposed
          ? `    a${i} = load_weight(${step} + weight_k, ${i}u, m4 + weight_m, group);`
          : `    a${i} = load_weight(${step} + weight_k, 0u, (m4 + weight_m) * 4u + ${i}u, group);`
      ).join("\n"),
    ) + "\n    " +
    guard(
      inputBlocks,
      range(4).map((i) => `    b${i} = load_input(${step} + input_k, pixel${i}, group);`).join(
        "\n",
      ),
    );
  const transpose = (name: string, c: string): string =>
    `vec4f(${range(4).map((i) => `${name}${i}.${c}`).join(", ")})`;
  const keep = guard(
    weightBlocks,
    COMPONENTS.map((c, i) =>
      `    weights[(weight_k * 4u + ${i}u) * CHANNELS + (weight_m ^ weight_k)] = ${
        form.keep(transposed ? `a${i}` : transpose("a", c))
      };`
    ).join("\n"),
  ) + "\n    " +
    guard(
      inputBlocks,
      COMPONENTS.map((c, i) =>
        `    inputs[(input_k * 4u + ${i}u) * PIXELS + (input_n ^ input_k)] = ${
          form.keep(transpose("b", c))
        };`
      ).join("\n"),
    );
  const across = tile.channels / 4 / tile.channelVectors;
  const down = tile.pixels / 4 / tile.pixelVectors;
  const inner = range(4).flatMap((u) => [
    ...range(tile.channelVectors).map((i) => {
      const element = `weights[(k * 4u + ${u}u) * CHANNELS + ((mine_m + ${i * across}u) ^ k)]`;
      return `let m${u}_${i} = ${form.load(element)};`;
    }),
    ...range(tile.pixelVectors).map((j) => {
      const element = `inputs[(k * 4u + ${u}u) * PIXELS + ((mine_n + ${j * down}u) ^ k)]`;
      return `let n${u}_${j} = ${form.load(element)};`;
    }),
    ...range(tile.channelVectors).flatMap((i) =>
      range(tile.pixelVectors).flatMap((j) =>
        COMPONENTS.map((c, p) =>
          `c${i}_${j}_${p} = fma(m${u}_${i}, vec4f(n${u}_${j}.${c}), c${i}_${j}_${p});`
        )
      )
    ),
  ]);
  return `  ${weightPlace}
  let input_k = local % ${vectors}u;
  let input_n = local / ${vectors}u;
${range(4).map((i) => `  let pixel${i} = pixel_at(first + input_n * 4u + ${i}u);`).join("\n")}
${range(4).map((i) => `  var a${i} = vec4f(); var b${i} = vec4f();`).join("\n")}
    ${fetch("0u")}
  for (var step = 0u; step < ${steps}u; step++) {
    ${keep}
    workgroupBarrier();
    ${fetch(`(step + 1u) * ${vectors}u`)}
    for (var k = 0u; k < ${vectors}u; k++) {
${inner.map((line) => "      " + line).join("\n")}
    }
    workgroupBarrier();
  }`;
}

function store(
  convolution: TapConvolution,
  tile: GpuTile,
  pixels: number,
  channelVectors: number,
): string {
  const { rows, columns, channels, group, epilogue, outputName } = convolution;
  const across = tile.channels / 4 / tile.channelVectors;
  const down = tile.pixels / 4 / tile.pixelVectors;
  const lines: string[] = [];
  for (const j of range(tile.pixelVectors)) {
    for (const p of range(4)) {
      const flat = `flat${j}_${p}`;
      const row =
        `(${flat} / ${columns.positions}u % ${rows.positions}u) * ${rows.outputStep}u + ${rows.outputStart}u`;
      const column =
        `(${flat} % ${columns.positions}u) * ${columns.outputStep}u + ${columns.outputStart}u`;
      lines.push(
        `let ${flat} = first + (mine_n + ${j * down}u) * 4u + ${p}u;`,
        `let at${j}_${p} = ((${flat} / ${
          rows.positions * columns.positions
        }u * ${rows.outputSize}u + ${row}) * ${columns.outputSize}u + ${column}) * ${
          channelVectors * group
        }u;`,
      );
      for (const i of range(tile.channelVectors)) {
        const channel = `(group * ${channelVectors}u + m4 + mine_m + ${i * across}u)`;
        const index = `(at${j}_${p} + ${channel})`;
        // Rows of w past the last channel were loaded as zeros, so padded channels hold zeros.
        const store = epilogueStore(epilogue, {
          value: `c${i}_${j}_${p}`,
          output: outputName,
          index,
          channel,
          channels: channels * group,
        });
        lines.push(
          `if (${flat} < ${pixels}u && m4 + mine_m + ${i * across}u < ${channelVectors}u) ${store}`,
        );
      }
    }
  }
  return lines.map((line) => "  " + line).join("\n");
}
