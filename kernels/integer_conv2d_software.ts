// Integer convolution for CPU adapters (family "software"): a workgroup is one subgroup, a lane owns runs of neighbouring
// pixels, all lanes share `tile.rows` output channels. A run's input columns are loaded once for all taps of a kernel
// row; each weight vec4 (4 output channels) is loaded by one lane and handed to the others with subgroupShuffle.
// Lavapipe would take words apart for every dot4I8Packed, and CPUs multiply int32 at half the speed of float32. So words
// are taken apart once where they are loaded and multiplied in float32, which is exact for 1024 products of int8 codes;
// longer sums go on in int32.
import { leavesInput } from "./conv2d_plan.ts";
import { LANES_WITHOUT_SUBGROUPS, type SoftwareTile, windowOf } from "./conv2d_software_tile.ts";
import type { IntegerConvolution } from "./integer_conv2d.ts";
import {
  integerEpilogueBindings,
  integerEpilogueFunctions,
  integerEpilogueSetup,
  integerEpilogueStore,
  integerEpilogueTypes,
  loadChannel,
} from "./integer_epilogue.ts";
import {
  type Binding,
  COMPONENTS,
  declareBindings,
  type Kernel,
  range,
  type Target,
} from "./kernel.ts";

/** |code * code| <= 2^14, and float32 holds every integer up to 2^24. */
const EXACT_PRODUCTS = 1024;

/**
 * Kernel of an integer convolution for a CPU adapter.
 *
 * @param convolution what to compute
 * @param target subgroup size; 0 selects plain loads instead of shuffles
 * @param tile register tile, of `softwareTiles` for the taps
 * @returns the kernel
 */
export function integerConvolutionSoftware(
  convolution: IntegerConvolution,
  target: Target,
  tile: SoftwareTile,
): Kernel {
  const { taps: { label, batch, group, rows, columns }, outputWords, epilogue } = convolution;
  const lanes = target.subgroupSize || LANES_WITHOUT_SUBGROUPS;
  const bindings: Binding[] = [
    { name: "x", access: "read" },
    { name: "w", access: "read" },
    ...integerEpilogueBindings(epilogue),
    { name: "y", access: "read_write" },
  ];
  const types = { ...integerEpilogueTypes(epilogue), x: "u32", w: "vec4u" };
  const runsPerRow = Math.ceil(columns.positions / tile.run);
  const units = batch * rows.positions * runsPerRow;
  const tiles = Math.ceil(units / (lanes * tile.runs));
  const fold = Math.ceil(tiles / 65535);
  const across = Math.ceil(tiles / fold);
  const channelTiles = Math.ceil(outputWords * 4 / tile.rows);
  const chunked = chunkWords(convolution) !== undefined;
  const code = /* wgsl */ `${declareBindings(bindings, types)}

${integerEpilogueFunctions(epilogue)}

@compute @workgroup_size(${lanes})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = workgroup.z * ${across}u + workgroup.x;
  let group = workgroup.y / ${channelTiles}u;
  let m4 = (workgroup.y % ${channelTiles}u) * ${tile.rows / 4}u;
  ${integerEpilogueSetup(epilogue)}
${positions(convolution, tile, lanes, units, runsPerRow)}
${indented(sums(tile, (name) => `var ${name} = 0.0;`))}
${chunked ? indented(sums(tile, (name) => `var total_${name} = 0;`)) : ""}
${sum(convolution, tile, lanes, target.subgroupSize > 0)}
${store(convolution, tile, lanes, units)}
}
`;
  return { label, code, bindings, grid: [across, channelTiles * group, fold] };
}

/** Where the runs of a lane lie: image n, row a, first column b. */
function positions(
  { taps: { rows, columns } }: IntegerConvolution,
  tile: SoftwareTile,
  lanes: number,
  units: number,
  runsPerRow: number,
): string {
  const lines = range(tile.runs).flatMap((g) => [
    `let flat${g} = (tile * ${tile.runs}u + ${g}u) * ${lanes}u + lane;`,
    `let unit${g} = min(flat${g}, ${units - 1}u);`,
    `let b${g} = i32(unit${g} % ${runsPerRow}u) * ${tile.run};`,
    `let a${g} = i32(unit${g} / ${runsPerRow}u % ${rows.positions}u);`,
    `let n${g} = i32(unit${g} / ${runsPerRow * rows.positions}u);`,
    ...windowOf(columns, tile.run).flatMap((offset, o) => [
      `let column${g}_${o} = b${g} * ${columns.inputStep} + ${offset};`,
      `let inside${g}_${o} = u32(column${g}_${o}) < ${columns.inputSize}u;`,
    ]),
  ]);
  return indented(lines);
}

/** The loops over kernel rows and words of depth. */
function sum(
  convolution: IntegerConvolution,
  tile: SoftwareTile,
  lanes: number,
  shuffles: boolean,
): string {
  const { taps: { rows, columns, kernelWidth, group }, inputWords, outputWords } = convolution;
  const quads = tile.rows / 4;
  const elements = kernelWidth * quads;
  const loads = range(shuffles ? Math.ceil(elements / lanes) : elements);
  const window = windowOf(columns, tile.run);
  // Runs may reach past the last output; what they load there is replaced, too.
  const checks = leavesInput(rows) || leavesInput({
    ...columns,
    positions: Math.ceil(columns.positions / tile.run) * tile.run,
  });
  const bases = loads.map((q) => {
    const element = shuffles ? `min(${q * lanes}u + lane, ${elements - 1}u)` : `${q}u`;
    const word = `group * ${
      rows.taps.count * kernelWidth * inputWords
    }u + ${element} / ${quads}u * ${inputWords}u`;
    return `let base${q} = (${word}) * ${outputWords}u + min(m4 + ${element} % ${quads}u, ${
      outputWords - 1
    }u);`;
  });
  const inputs = range(tile.runs).flatMap((g) => [
    `let row${g} = a${g} * ${rows.inputStep} + ${rows.taps.offsetStart} + i32(t) * ${rows.taps.offsetStep};`,
    `let row_inside${g} = u32(row${g}) < ${rows.inputSize}u;`,
    `let line${g} = (n${g} * ${rows.inputSize} + select(0, row${g}, row_inside${g})) * ${columns.inputSize};`,
    ...window.flatMap((_, o) => [
      `let mask${g}_${o} = row_inside${g} && inside${g}_${o};`,
      `let index${g}_${o} = (u32(line${g} + select(0, column${g}_${o}, mask${g}_${o})) * ${group}u + group) * ${inputWords}u;`,
    ]),
  ]);
  const step = [
    ...loads.map((q) =>
      `let w${q} = w[base${q} + (t * ${kernelWidth * inputWords}u + k) * ${outputWords}u];`
    ),
    ...range(tile.runs).flatMap((g) =>
      window.map((_, o) => {
        const load = `x[index${g}_${o} + k]`;
        const word = checks ? `select(${convolution.zeros}, ${load}, mask${g}_${o})` : load;
        return `let x${g}_${o} = vec4f(unpack4xI8(${word}));`;
      })
    ),
    ...loads.flatMap((q) =>
      COMPONENTS.map((c) => `let a${q}_${c} = vec4f(unpack4xI8(w${q}.${c}));`)
    ),
    ...range(quads).flatMap((i) => products(convolution, tile, shuffles ? lanes : 1, i, window)),
  ];
  const chunk = chunkWords(convolution);
  const chunked = [
    `for (var chunk = 0u; chunk < ${inputWords}u; chunk += ${chunk}u) {`,
    `for (var k = chunk; k < min(chunk + ${chunk}u, ${inputWords}u); k++) {`,
    ...step,
    "}",
    ...sums(tile, (name) => `total_${name} += i32(${name}); ${name} = 0.0;`),
    "}",
  ];
  const whole = [`for (var k = 0u; k < ${inputWords}u; k++) {`, ...step, "}"];
  return indented([
    ...bases,
    `for (var t = 0u; t < ${rows.taps.count}u; t++) {`,
    ...inputs,
    ...(chunk === undefined ? whole : chunked),
    "}",
  ]);
}

/** Words of depth between two additions in int32; undefined where float32 holds the whole sum. */
function chunkWords(
  { taps: { label, rows, kernelWidth }, inputWords }: IntegerConvolution,
): number | undefined {
  if (rows.taps.count * kernelWidth * inputWords * 4 <= EXACT_PRODUCTS) return undefined;
  const words = Math.floor(EXACT_PRODUCTS / (4 * kernelWidth));
  if (words === 0) throw new RangeError(`${label}: the kernel is ${kernelWidth} columns wide`);
  return words;
}

/** One line an output channel of the tile, with a statement for each of its sums. */
function sums(tile: SoftwareTile, statement: (name: string) => string): string[] {
  return range(tile.rows).map((m) =>
    range(tile.run * tile.runs).map((p) => statement(`c${m}_${p}`)).join(" ")
  );
}

/** All products of a step with the i-th 4 output channels; each of `lanes` holds some of the weights. */
function products(
  { taps: { columns } }: IntegerConvolution,
  tile: SoftwareTile,
  lanes: number,
  i: number,
  window: readonly number[],
): string[] {
  const taps = range(columns.taps.count);
  return COMPONENTS.flatMap((channel, c) => [
    ...taps.map((tap) => {
      const element = tap * tile.rows / 4 + i;
      const weight = `a${Math.floor(element / lanes)}_${channel}`;
      const shared = lanes === 1 ? weight : `subgroupShuffle(${weight}, ${element % lanes}u)`;
      return `let r${i}_${channel}_${tap} = ${shared};`;
    }),
    ...range(tile.run * tile.runs).map((p) => {
      const sum = `c${i * 4 + c}_${p}`;
      const terms = taps.flatMap((tap) => {
        const offset = (p % tile.run) * columns.inputStep + columns.taps.offsetStart +
          tap * columns.taps.offsetStep;
        const input = `x${Math.floor(p / tile.run)}_${window.indexOf(offset)}`;
        return COMPONENTS.map((u) => `r${i}_${channel}_${tap}.${u}, ${input}.${u}`);
      });
      return `${sum} = ${terms.reduce((inner, term) => `fma(${term}, ${inner})`, sum)};`;
    }),
  ]);
}

function store(
  convolution: IntegerConvolution,
  tile: SoftwareTile,
  lanes: number,
  units: number,
): string {
  const { taps: { rows, columns, group, channels }, outputWords, epilogue } = convolution;
  const chunked = chunkWords(convolution) !== undefined;
  const quads = tile.rows / 4;
  const lines = range(quads).flatMap((i) => [
    `let channel${i} = group * ${outputWords}u + min(m4 + ${i}u, ${outputWords - 1}u);`,
    loadChannel(`${i}`, `channel${i}`),
  ]);
  for (const p of range(tile.run * tile.runs)) {
    const g = Math.floor(p / tile.run), j = p % tile.run;
    const guards = [
      units % (lanes * tile.runs) === 0 ? "" : `flat${g} < ${units}u`,
      j === 0 || columns.positions % tile.run === 0 ? "" : `b${g} + ${j} < ${columns.positions}`,
    ].filter(Boolean);
    lines.push(
      `let at${p} = u32((n${g} * ${rows.positions} + a${g}) * ${columns.positions} + b${g} + ${j}) * ${
        outputWords * group
      }u;`,
      `if (${guards.join(" && ") || "true"}) {`,
      ...range(quads).map((i) => {
        const sums = range(4).map((c) => `c${i * 4 + c}_${p}`)
          .map((name) => chunked ? `total_${name}` : `i32(${name})`);
        const store = integerEpilogueStore(epilogue, {
          sum: `vec4i(${sums.join(", ")})`,
          index: `at${p} + channel${i}`,
          name: `${i}`,
          channel: `channel${i}`,
          channels: channels * group,
        });
        return outputWords % quads === 0 ? store : `if (m4 + ${i}u < ${outputWords}u) ${store}`;
      }),
      "}",
    );
  }
  return indented(lines);
}

function indented(lines: readonly string[]): string {
  return lines.map((line) => "  " + line).join("\n");
}
