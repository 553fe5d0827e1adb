// Integer convolution for real GPUs (family "gpu"): implicit GEMM over [channels] x [pixels], depth = taps x words of
// the input. An invocation computes 4 pixels x 4 or 8 output channels. Words of the weights and of the shifted input go
// through workgroup memory, 4 output channels or 4 pixels a vec4; the next tile is fetched into registers while the
// current one is multiplied. Columns of the input's tile are permuted by xor with their depth, which spreads the stores
// over the memory banks.
import type { IntegerConvolution } from "./integer_conv2d.ts";
import {
  integerEpilogueBindings,
  integerEpilogueFunctions,
  integerEpilogueSetup,
  integerEpilogueStore,
  integerEpilogueTypes,
  loadChannel,
} from "./integer_epilogue.ts";
import { type Binding, COMPONENTS, declareBindings, grid1d, type Kernel, range } from "./kernel.ts";

/** Tile of a workgroup of 256 invocations, each with 4 pixels and `vectors` vec4s of channels. */
export interface IntegerGpuTile {
  readonly channels: number;
  readonly pixels: number;
  readonly vectors: number;
}

const WORKGROUP = 256;

/** Words of depth in a step. */
const DEPTH = 16;

/** Workgroups from which a large GPU is busy (two for each of 132 multiprocessors). */
const MANY_WORKGROUPS = 264;

/** By number of channels. */
const TILES: readonly IntegerGpuTile[] = [
  { channels: 16, pixels: 256, vectors: 1 },
  { channels: 32, pixels: 128, vectors: 1 },
  { channels: 64, pixels: 64, vectors: 1 },
  { channels: 64, pixels: 128, vectors: 2 },
];

/**
 * Tiles worth having.
 *
 * @param convolution what they are for
 * @returns the one that suits the number of channels and pixels first
 */
export function integerGpuTiles({ taps, outputWords }: IntegerConvolution): IntegerGpuTile[] {
  const { batch, group, rows, columns } = taps;
  const pixels = batch * rows.positions * columns.positions;
  const large = Math.ceil(outputWords / 16) * Math.ceil(pixels / 128) * group;
  const suited = outputWords <= 4 ? 0 : outputWords <= 8 ? 1 : large >= MANY_WORKGROUPS ? 3 : 2;
  return [TILES[suited]!, ...TILES.filter((_, i) => i !== suited)];
}

/**
 * Kernel of an integer convolution for a GPU.
 *
 * @param convolution what to compute
 * @param tile workgroup tile, of {@linkcode integerGpuTiles}
 * @returns the kernel
 */
export function integerConvolutionGpu(
  convolution: IntegerConvolution,
  tile: IntegerGpuTile,
): Kernel {
  const { taps, outputWords, epilogue } = convolution;
  const { label, batch, group, rows, columns } = taps;
  const bindings: Binding[] = [
    { name: "x", access: "read" },
    { name: "w", access: "read" },
    ...integerEpilogueBindings(epilogue),
    { name: "y", access: "read_write" },
  ];
  const types = { ...integerEpilogueTypes(epilogue), x: "u32", w: "vec4u" };
  const channelTiles = Math.ceil(outputWords * 4 / tile.channels);
  const pixels = batch * rows.positions * columns.positions;
  const [across, fold] = grid1d(pixels, tile.pixels);
  const sums = range(tile.vectors).flatMap((i) => range(4).map((p) => `var c${i}_${p} = vec4i();`));
  const code = /* wgsl */ `${declareBindings(bindings, types)}

const CHANNELS = ${tile.channels / 4}u;
const PIXELS = ${tile.pixels / 4}u;
var<workgroup> weights: array<vec4u, ${DEPTH * tile.channels / 4}>;
var<workgroup> inputs: array<vec4u, ${DEPTH * tile.pixels / 4}>;

${loaders(convolution)}

${integerEpilogueFunctions(epilogue)}

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let group = workgroup.y / ${channelTiles}u;
  let m4 = (workgroup.y % ${channelTiles}u) * CHANNELS;
  let first = (workgroup.z * ${across}u + workgroup.x) * PIXELS * 4u;
  ${integerEpilogueSetup(epilogue)}
  ${sums.join(" ")}
${product(convolution, tile)}
${store(convolution, tile, pixels)}
}
`;
  return { label, code, bindings, grid: [across, channelTiles * group, fold] };
}

/** WGSL functions: 4 output channels of weight word k, and input word k of a pixel (image < 0: none). */
function loaders({ taps, inputWords, outputWords, zeros }: IntegerConvolution): string {
  const { batch, rows, columns, kernelWidth, group } = taps;
  const depth = rows.taps.count * kernelWidth * inputWords;
  const image = rows.positions * columns.positions;
  return `const LAST = ${depth}u;

fn load_weight(k: u32, m: u32, group: u32) -> vec4u {
  if (k >= LAST || m >= ${outputWords}u) { return vec4u(); }
  return w[(group * LAST + k) * ${outputWords}u + m];
}

fn load_input(k: u32, pixel: vec3i, group: u32) -> u32 {
  let tap = i32(k / ${inputWords}u);
  let row = pixel.y * ${rows.inputStep} + ${rows.taps.offsetStart} + tap / ${kernelWidth} * ${rows.taps.offsetStep};
  let column = pixel.z * ${columns.inputStep} + ${columns.taps.offsetStart} + tap % ${kernelWidth} * ${columns.taps.offsetStep};
  if (k >= LAST || pixel.x < 0 || u32(row) >= ${rows.inputSize}u || u32(column) >= ${columns.inputSize}u) {
    return ${zeros};
  }
  let at = u32((pixel.x * ${rows.inputSize} + row) * ${columns.inputSize} + column);
  return x[(at * ${group}u + group) * ${inputWords}u + k % ${inputWords}u];
}

fn pixel_at(flat: u32) -> vec3i {
  let position = vec3i(vec3u(
    flat / ${image}u,
    flat / ${columns.positions}u % ${rows.positions}u,
    flat % ${columns.positions}u,
  ));
  return select(vec3i(-1, position.yz), position, flat < ${batch * image}u);
}`;
}

/** The loop over depth: fetch, store to workgroup memory, multiply. */
function product(
  { taps: { rows, kernelWidth }, inputWords }: IntegerConvolution,
  tile: IntegerGpuTile,
): string {
  const depth = rows.taps.count * kernelWidth * inputWords;
  const weightBlocks = DEPTH * tile.channels / 4;
  const guard = (statement: string): string =>
    weightBlocks === WORKGROUP ? statement : `if (local < ${weightBlocks}u) { ${statement} }`;
  // An invocation fetches one word of depth for 4 pixels, `blocks` times.
  const blocks = range(DEPTH * tile.pixels / 4 / WORKGROUP);
  const step = WORKGROUP / DEPTH;
  const across = tile.channels / 4 / tile.vectors;
  const fetch = (start: string): string =>
    [
      guard(
        `weight = load_weight(${start} + local / CHANNELS, m4 + local % CHANNELS, group);`,
      ),
      ...blocks.map((b) => {
        const words = range(4).map((p) => `load_input(${start} + mine_k, pixel${b}_${p}, group)`);
        return `input${b} = vec4u(${words.join(", ")});`;
      }),
    ].join("\n    ");
  const keep = [
    guard("weights[local] = weight;"),
    ...blocks.map((b) =>
      `inputs[mine_k * PIXELS + ((mine_quad + ${b * step}u) ^ mine_k)] = input${b};`
    ),
  ];
  const inner = range(4).flatMap((u) => [
    `let n${u} = inputs[(k + ${u}u) * PIXELS + (mine_n ^ (k + ${u}u))];`,
    ...range(tile.vectors).flatMap((i) => [
      `let m${u}_${i} = weights[(k + ${u}u) * CHANNELS + mine_m + ${i * across}u];`,
      ...COMPONENTS.map((pixel, p) => {
        const dots = COMPONENTS.map((c) => `dot4I8Packed(m${u}_${i}.${c}, n${u}.${pixel})`);
        return `c${i}_${p} += vec4i(${dots.join(", ")});`;
      }),
    ]),
  ]);
  const pixels = blocks.flatMap((b) =>
    range(4).map((p) =>
      `  let pixel${b}_${p} = pixel_at(first + (mine_quad + ${b * step}u) * 4u + ${p}u);`
    )
  );
  return `  let mine_m = local % ${across}u;
  let mine_n = local / ${across}u;
  let mine_k = local % ${DEPTH}u;
  let mine_quad = local / ${DEPTH}u;
${pixels.join("\n")}
  var weight = vec4u();
  ${blocks.map((b) => `var input${b} = vec4u();`).join(" ")}
    ${fetch("0u")}
  for (var start = 0u; start < ${depth}u; start += ${DEPTH}u) {
    ${keep.join("\n    ")}
    workgroupBarrier();
    ${fetch(`start + ${DEPTH}u`)}
    for (var k = 0u; k < ${DEPTH}u; k += 4u) {
${inner.map((line) => "      " + line).join("\n")}
    }
    workgroupBarrier();
  }`;
}

function store(
  { taps: { group, channels }, outputWords, epilogue }: IntegerConvolution,
  tile: IntegerGpuTile,
  pixels: number,
): string {
  const across = tile.channels / 4 / tile.vectors;
  const lines = range(tile.vectors).flatMap((i) => {
    const m = `m4 + mine_m + ${i * across}u`;
    return [
      `if (${m} < ${outputWords}u) {`,
      `let channel = group * ${outputWords}u + ${m};`,
      loadChannel("0", "channel"),
      ...range(4).map((p) => {
        const flat = `(first + mine_n * 4u + ${p}u)`;
        const store = integerEpilogueStore(epilogue, {
          sum: `c${i}_${p}`,
          index: `${flat} * ${outputWords * group}u + channel`,
          name: "0",
          channel: "channel",
          channels: channels * group,
        });
        return `if (${flat} < ${pixels}u) ${store}`;
      }),
      "}",
    ];
  });
  return lines.map((line) => "  " + line).join("\n");
}
