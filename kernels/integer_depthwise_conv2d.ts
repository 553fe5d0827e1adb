// Depthwise 2-D convolution of packed int8 codes (one filter a channel), accumulated in int32; with weights of 1, the sums
// of an average pooling. x: [N, H, W, ceil(C / 4)] words, w: [KH, KW, ceil(C / 4)] words, y: as x, or float32.
// There is nothing to sum over within a word, so words are taken apart. An invocation owns a word of a run of neighbouring
// output pixels, so that an input word it loads serves every tap and output of the run. Both families run the same text.
import {
  forwardConvolution,
  shapeLabel,
  type TapAxis,
  type TapConvolution,
} from "./conv2d_plan.ts";
import { windowOf } from "./conv2d_software_tile.ts";
import { flatKernel, read, write } from "./flat_kernel.ts";
import {
  integerBindings,
  type IntegerConv2dSpec,
  PLAIN_EPILOGUE,
  repeatedCode,
} from "./integer_conv2d.ts";
import {
  type IntegerEpilogue,
  integerEpilogueBindings,
  integerEpilogueFunctions,
  integerEpilogueSetup,
  integerEpilogueStore,
  integerEpilogueTypes,
  loadChannel,
} from "./integer_epilogue.ts";
import { type Kernel, padded, range, type Target } from "./kernel.ts";
import { cheapestTiles, decideTile } from "./tile_choice.ts";

/** Filters with more columns are walked by a loop, one output an invocation. */
const UNROLLED_COLUMNS = 16;

/** What an invocation owns. */
interface RunTile {
  /** Neighbouring output pixels. */
  readonly run: number;
}

/**
 * The convolution with its epilogue.
 *
 * @param spec shape; `group`, `inChannels` and `outChannels` are equal
 * @param epilogue what is fused into the store
 * @param target kind of adapter
 * @returns a kernel with bindings `x`, `w`, those of the epilogue, and `y`
 */
export function integerDepthwiseConv2d(
  spec: IntegerConv2dSpec,
  epilogue: IntegerEpilogue,
  target: Target,
): Kernel {
  const taps = forwardConvolution(spec, {});
  const words = padded(spec.outChannels) / 4;
  const build = (end: IntegerEpilogue, tile: RunTile) => runKernel(spec, taps, end, tile);
  const { tile, choice } = decideTile({
    key: `integer_depthwise_conv2d ${shapeLabel(spec)}`,
    ...integerBindings(taps, {
      pixel: words,
      weight: spec.kernelHeight * spec.kernelWidth * words,
    }),
    tiles: runTiles(taps.columns, target),
    build: (tile) => ({ kernels: [build(PLAIN_EPILOGUE, tile)], temporaries: {} }),
  }, target);
  return { ...build(epilogue, tile), choice };
}

function runKernel(
  spec: IntegerConv2dSpec,
  { batch, rows, columns }: TapConvolution,
  epilogue: IntegerEpilogue,
  { run }: RunTile,
): Kernel {
  const words = padded(spec.outChannels) / 4;
  const runsPerRow = Math.ceil(columns.positions / run);
  const stores = range(run).map((j) => {
    const store = integerEpilogueStore(epilogue, {
      sum: `c${j}`,
      index: `at + ${j * words}u`,
      name: "0",
      channel: "channel",
      channels: spec.outChannels,
    });
    const whole = j === 0 || columns.positions % run === 0;
    return whole ? store : `if (b + ${j} < ${columns.positions}) ${store}`;
  });
  return flatKernel({
    label: `integer_depthwise_conv2d ${shapeLabel(spec)}`,
    size: batch * rows.positions * runsPerRow * words,
    bindings: [read("x"), read("w"), ...integerEpilogueBindings(epilogue), write("y")],
    types: { ...integerEpilogueTypes(epilogue), x: "u32", w: "u32" },
    declarations: integerEpilogueFunctions(epilogue),
    body: `let channel = i % ${words}u;
  let b = i32(i / ${words}u % ${runsPerRow}u) * ${run};
  let a = i32(i / ${words * runsPerRow}u % ${rows.positions}u);
  let n = i32(i / ${words * runsPerRow * rows.positions}u);
  ${integerEpilogueSetup(epilogue)}
  ${range(run).map((j) => `var c${j} = vec4i();`).join(" ")}
  for (var t = 0; t < ${rows.taps.count}; t++) {
    let row = a * ${rows.inputStep} + ${rows.taps.offsetStart} + t * ${rows.taps.offsetStep};
    let row_inside = u32(row) < ${rows.inputSize}u;
    let line = (n * ${rows.inputSize} + select(0, row, row_inside)) * ${columns.inputSize};
    ${kernelRow(columns, run, words, repeatedCode(spec.zeroPoint)).join("\n    ")}
  }
  ${loadChannel("0", "channel")}
  let at = u32((n * ${rows.positions} + a) * ${columns.positions} + b) * ${words}u + channel;
  ${stores.join("\n  ")}`,
  });
}

/** Runs worth measuring, the one with the fewest loads and stores for a useful output first. */
function runTiles(columns: TapAxis, target: Target): RunTile[] {
  if (columns.taps.count > UNROLLED_COLUMNS) return [{ run: 1 }];
  const most = Math.min(target.family === "software" ? 8 : 4, columns.positions);
  // Among equals the longest wins: its addresses are cheaper.
  return cheapestTiles(
    range(most).map((i) => ({ run: most - i })),
    ({ run }) =>
      (windowOf(columns, run).length + columns.taps.count + run) *
      Math.ceil(columns.positions / run),
    ({ run }) => run,
  );
}

/** Statements that add the products of kernel row `t`. */
function kernelRow(columns: TapAxis, run: number, words: number, zeros: string): string[] {
  const { count, offsetStart, offsetStep } = columns.taps;
  const weight = (tap: string) =>
    `unpack4xI8(w[(u32(t) * ${count}u + ${tap}) * ${words}u + channel])`;
  const input = (name: string, column: string): string[] => [
    `let inside_${name} = row_inside && u32(${column}) < ${columns.inputSize}u;`,
    `let at_${name} = u32(line + select(0, ${column}, inside_${name})) * ${words}u + channel;`,
    `let ${name} = unpack4xI8(select(${zeros}, x[at_${name}], inside_${name}));`,
  ];
  if (count > UNROLLED_COLUMNS) {
    const column = `(b * ${columns.inputStep} + ${offsetStart} + s * ${offsetStep})`;
    return [
      `for (var s = 0; s < ${count}; s++) {`,
      ...input("x0", column),
      `c0 += x0 * ${weight("u32(s)")};`,
      "}",
    ];
  }
  const window = windowOf(columns, run);
  return [
    ...range(count).map((tap) => `let w${tap} = ${weight(`${tap}u`)};`),
    ...window.flatMap((offset, o) => input(`x${o}`, `(b * ${columns.inputStep} + ${offset})`)),
    ...range(run).flatMap((j) =>
      range(count).map((tap) => {
        const offset = j * columns.inputStep + offsetStart + tap * offsetStep;
        return `c${j} += x${window.indexOf(offset)} * w${tap};`;
      })
    ),
  ];
}
