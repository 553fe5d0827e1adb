// Weight gradient of a depthwise convolution for CPU adapters, in strips: dw[tap, c] = sum over pixels of
// x[pixel shifted by tap, c] * dy[pixel, c]. An invocation keeps the sums of all taps of 4 channels, goes down over
// strips of its share, and carries the input rows that the next output row needs, so that each is loaded once.
import type { Conv2dSpec } from "./conv2d_plan.ts";
import {
  balanced,
  columnUses,
  CYCLES,
  lanesOf,
  loadColumn,
  openRow,
  type RowSource,
  rowUses,
  type Strip,
  type StripAxis,
  stripSizes,
  whereabouts,
} from "./depthwise_strip.ts";
import { declareBindings, type Kernel, padded, range, type Target } from "./kernel.ts";
import { cheapestTiles } from "./tile_choice.ts";

/** A strip, and among how many invocations the strips of some channels are shared out. */
export interface DepthwiseWeightTile extends Strip {
  /** Partial sums. */
  readonly splits: number;
}

/** Workgroups worth comparing: many are evenly busy, few leave little to add up. */
const WORKGROUPS = [32, 64, 128];

/** Columns of a strip, times the stride; wider ones gain no more. */
const WIDEST = 16;

/**
 * Kernel of the weight gradient for a CPU adapter.
 *
 * @param spec Shape of the convolution.
 * @param target Subgroup size.
 * @param tile Part of an invocation; {@linkcode depthwiseWeightTiles} gives good ones.
 * @param label Name of the kernel.
 * @returns Kernel with bindings `x`, `dy` and `partials`, or `dw` when there is one split.
 */
export function depthwiseWeightSoftware(
  spec: Conv2dSpec,
  target: Target,
  { width, height, splits }: DepthwiseWeightTile,
  label: string,
): Kernel {
  const { kernelHeight, kernelWidth, outHeight, outWidth } = spec;
  const lanes = lanesOf(target);
  const vectors = padded(spec.inChannels) / 4;
  const across = Math.ceil(outWidth / width);
  const down = Math.ceil(outHeight / height);
  const strips = spec.batch * across * down;
  const invocations = splits * vectors;
  const workgroups = Math.ceil(invocations / lanes);
  const output = splits > 1 ? "partials" : "dw";
  const bindings = [
    { name: "x", access: "read" },
    { name: "dy", access: "read" },
    { name: output, access: "read_write" },
  ] as const;
  const taps = range(kernelHeight).flatMap((kh) => range(kernelWidth).map((kw) => `${kh}_${kw}`));
  const end = outHeight % height === 0
    ? `first + ${height}`
    : `min(first + ${height}, ${outHeight})`;
  const body = stripBody(spec, width, height);
  const lines = (statements: readonly string[], indent: string) =>
    statements.map((statement) => indent + statement).join("\n");
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(${lanes})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let flat = workgroup.x * ${lanes}u + lane;
  ${invocations % lanes === 0 ? "" : `if (flat >= ${invocations}u) { return; }`}
  let channel = flat % ${vectors}u;
  let split = flat / ${vectors}u;
${lines(taps.map((tap) => `var c${tap} = vec4f();`), "  ")}
  for (var strip = split; strip < ${strips}u; strip += ${splits}u) {
    let b = i32(strip % ${across}u) * ${width};
    let first = i32(strip / ${across}u % ${down}u) * ${height};
    let n = i32(strip / ${across * down}u);
${lines(body.before, "    ")}
    for (var a = first; a < ${end}; a++) {
${lines(body.each, "      ")}
    }
  }
${
    lines(
      taps.map((tap, t) =>
        `${output}[(split * ${taps.length}u + ${t}u) * ${vectors}u + channel] = c${tap};`
      ),
      "  ",
    )
  }
}
`;
  return { label, code, bindings, grid: [workgroups, 1, 1] };
}

/**
 * Tiles worth measuring.
 *
 * @param spec Shape of the convolution.
 * @param target Subgroup size.
 * @returns the one with the lowest modelled cost first
 */
export function depthwiseWeightTiles(spec: Conv2dSpec, target: Target): DepthwiseWeightTile[] {
  const { batch, outHeight, outWidth, kernelHeight, kernelWidth } = spec;
  const vectors = padded(spec.inChannels) / 4;
  const lanes = lanesOf(target);
  const taps = kernelHeight * kernelWidth;
  const columns = columnAxis(spec);
  const uses = rowUses(rowAxis(spec));
  const tiles = stripSizes(outHeight, outWidth, Math.floor(WIDEST / spec.strideWidth))
    .flatMap((strip): DepthwiseWeightTile[] => {
      const strips = batch * Math.ceil(outHeight / strip.height) *
        Math.ceil(outWidth / strip.width);
      const splits = WORKGROUPS.map((count) => {
        const turns = Math.ceil(strips / Math.max(1, Math.floor(count * lanes / vectors)));
        return Math.ceil(strips / turns);
      });
      return [...new Set(splits)].map((splits) => ({ ...strip, splits }));
    });
  const cost = ({ width, height, splits }: DepthwiseWeightTile): number => {
    const window = columnUses(columns, width)
      .filter(({ offset }) => whereabouts(columns, width, offset) !== "outside").length;
    const carried = uses.before.length * window + taps;
    const cycles = CYCLES.load * window * uses.before.length + height * (
          CYCLES.load * (window * uses.new.length + width) + CYCLES.product * taps * width +
          CYCLES.carry * carried
        );
    const strips = batch * Math.ceil(outHeight / height) * Math.ceil(outWidth / width);
    const workgroups = Math.ceil(splits * vectors / lanes);
    const sum = CYCLES.load * taps * vectors * splits / lanes;
    return cycles * Math.ceil(strips / splits) * balanced(workgroups) + sum;
  };
  return cheapestTiles(tiles, cost, ({ width, height }) => `${width} ${height}`);
}

function rowAxis(spec: Conv2dSpec): StripAxis {
  return {
    offsets: range(spec.kernelHeight).map((kh) => kh * spec.dilationHeight - spec.padTop),
    step: spec.strideHeight,
    positions: spec.outHeight,
    inputSize: spec.inHeight,
  };
}

function columnAxis(spec: Conv2dSpec): StripAxis {
  return {
    offsets: range(spec.kernelWidth).map((kw) => kw * spec.dilationWidth - spec.padLeft),
    step: spec.strideWidth,
    positions: spec.outWidth,
    inputSize: spec.inWidth,
  };
}

/** Statements before the rows of a strip, and of each row; names: x<input row>_<column>, d_<column>, c<tap> sums. */
function stripBody(
  spec: Conv2dSpec,
  width: number,
  height: number,
): { before: string[]; each: string[] } {
  const rows = rowAxis(spec), columns = columnAxis(spec);
  const uses = rowUses(rows);
  const window = columnUses(columns, width).flatMap(({ offset, by }, i) => {
    const where = whereabouts(columns, width, offset);
    const column = `(b * ${columns.step} + (${offset}))`;
    return where === "outside" ? [] : [{ i, by, column, checked: where === "either" }];
  });
  const name = (offset: number) => `x${offset - Math.min(...rows.offsets)}`;
  const load = (offset: number, start: string, size: number, mutable = false): string[] => {
    const source: RowSource = {
      array: "x",
      height: spec.inHeight,
      width: spec.inWidth,
      vectors: padded(spec.inChannels) / 4,
      name: name(offset),
      row: `${start} * ${rows.step} + (${offset})`,
      checked: whereabouts(rows, size, offset) === "either",
      mutable,
    };
    return [
      ...openRow(source),
      ...window.map(({ i, column, checked }) => loadColumn(source, i, column, checked)),
    ];
  };
  const carried = uses.before.flatMap(({ offset }) =>
    window.map(({ i }) => ({
      to: `${name(offset)}_${i}`,
      from: `${name(offset + rows.step)}_${i}`,
    }))
  );
  const gradient: RowSource = {
    array: "dy",
    height: spec.outHeight,
    width: spec.outWidth,
    vectors: padded(spec.inChannels) / 4,
    name: "d",
    row: "a",
    checked: false,
  };
  const ragged = (Math.ceil(spec.outWidth / width) - 1) * width;
  return {
    before: uses.before.flatMap(({ offset }) =>
      whereabouts(rows, height, offset) === "outside"
        ? window.map(({ i }) => `var ${name(offset)}_${i} = vec4f();`)
        : load(offset, "first", height, true)
    ),
    each: [
      ...openRow(gradient),
      ...range(width).map((j) =>
        loadColumn(gradient, j, `(b + ${j})`, ragged + j >= spec.outWidth)
      ),
      ...uses.new.flatMap(({ offset }) => load(offset, "a", 1)),
      ...range(spec.kernelHeight).flatMap((kh) =>
        window.flatMap(({ i, by }) =>
          by.map(({ position, offset }) => {
            const sum = `c${kh}_${columns.offsets.indexOf(offset)}`;
            return `${sum} = fma(${name(rows.offsets[kh]!)}_${i}, d_${position}, ${sum});`;
          })
        )
      ),
      ...carried.map(({ to, from }) => `${to} = ${from};`),
    ],
  };
}
