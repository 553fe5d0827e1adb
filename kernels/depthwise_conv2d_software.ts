// Depthwise convolution and the gradient of its input for CPU adapters, in strips: the weights and every input row are
// loaded once, and sums that need rows further down are carried along. All phases of a strided gradient are written by
// one kernel from the same input, x or dy [N, H, W, C] with w [KH, KW, C].
import type { TapAxis, TapConvolution } from "./conv2d_plan.ts";
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
  type Use,
  whereabouts,
} from "./depthwise_strip.ts";
import { epilogueBindings, epilogueSetup, epilogueStore, loadBias } from "./epilogue.ts";
import {
  type Binding,
  declareBindings,
  type Kernel,
  padded,
  range,
  type Target,
} from "./kernel.ts";
import { cheapestTiles } from "./tile_choice.ts";

/** Sums that a strip may keep, of a row and of those below that have begun. */
const MOST_SUMS = 64;

/** Input columns of a strip; wider ones gain no more. */
const WIDEST_WINDOW = 16;

/** Which phases of the output read an axis, and how. */
interface Phases {
  readonly axis: StripAxis;
  readonly phases: readonly TapAxis[];
}

/**
 * Kernel of a depthwise convolution for a CPU adapter.
 *
 * @param parts The forward pass, or every phase of the gradient of the input.
 * @param target Subgroup size.
 * @param strip Part of an invocation; {@linkcode depthwiseStrips} gives good ones.
 * @param label Name of the kernel.
 * @returns The kernel; bindings are input, `w`, the epilogue's, output.
 */
export function depthwiseSoftware(
  parts: readonly TapConvolution[],
  target: Target,
  strip: Strip,
  label: string,
): Kernel {
  const { epilogue, inputName, outputName, group, kernelWidth } = parts[0]!; // one at least
  const lanes = lanesOf(target);
  const vectors = padded(group) / 4;
  const rows = phasesOf(parts.map((part) => part.rows));
  const columns = phasesOf(parts.map((part) => part.columns));
  const { across, down, invocations } = layout(parts, strip);
  const bindings: Binding[] = [
    { name: inputName, access: "read" },
    { name: "w", access: "read" },
    ...epilogueBindings(epilogue),
    { name: outputName, access: "read_write" },
  ];
  const workgroups = Math.ceil(invocations / lanes);
  const fold = Math.ceil(workgroups / 65535);
  const groups = Math.ceil(workgroups / fold);
  const weights = [...kernelPositions(rows)].flatMap((row) =>
    [...kernelPositions(columns)].map((column) =>
      `  let w${row}_${column} = w[${(row * kernelWidth + column) * vectors}u + channel];`
    )
  );
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(${lanes})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let flat = (workgroup.y * ${groups}u + workgroup.x) * ${lanes}u + lane;
  ${invocations === groups * fold * lanes ? "" : `if (flat >= ${invocations}u) { return; }`}
  let channel = flat % ${vectors}u;
  let b = i32(flat / ${vectors}u % ${across}u) * ${strip.width};
  let first = i32(flat / ${vectors * across}u % ${down}u) * ${strip.height};
  let n = i32(flat / ${vectors * across * down}u);
  ${epilogueSetup(epilogue)}
  ${loadBias(epilogue, "channel_bias", "channel")}
${weights.join("\n")}
${new Emitter(parts, rows, columns, strip, vectors).text()}
}
`;
  return { label, code, bindings, grid: [groups, fold, 1] };
}

/**
 * Strips worth measuring.
 *
 * @param parts The forward pass, or every phase of the gradient of the input.
 * @param target Subgroup size.
 * @returns the one with the lowest modelled cost first
 */
export function depthwiseStrips(parts: readonly TapConvolution[], target: Target): Strip[] {
  const lanes = lanesOf(target);
  const rows = phasesOf(parts.map((part) => part.rows));
  const columns = phasesOf(parts.map((part) => part.columns));
  const uses = rowUses(rows.axis);
  const sums = parts.length *
    (1 + Math.max(0, ...uses.new.flatMap(({ by }) => by.map(({ position }) => position))));
  const cost = (strip: Strip): number => {
    const { width, height } = strip;
    const window = columnUses(columns.axis, width)
      .filter(({ offset }) => whereabouts(columns.axis, width, offset) !== "outside").length;
    const taps = kernelPositions(rows).size * kernelPositions(columns).size;
    const row = CYCLES.load * window;
    const cycles = CYCLES.load * taps + row * uses.before.length + height * (row * uses.new.length +
          width * (parts.length * CYCLES.store + taps * CYCLES.product + sums * CYCLES.carry));
    const workgroups = Math.ceil(layout(parts, strip).invocations / lanes);
    return cycles * balanced(workgroups);
  };
  const sizes = stripSizes(
    rows.axis.positions,
    columns.axis.positions,
    Math.floor(Math.min(WIDEST_WINDOW / columns.axis.step, MOST_SUMS / sums)),
  );
  return cheapestTiles(sizes, cost, ({ width }) => width);
}

function layout(
  parts: readonly TapConvolution[],
  { width, height }: Strip,
): { across: number; down: number; invocations: number } {
  const { batch, group, rows, columns } = parts[0]!; // the first phase has the most positions
  const across = Math.ceil(columns.positions / width);
  const down = Math.ceil(rows.positions / height);
  return { across, down, invocations: batch * down * across * padded(group) / 4 };
}

/** The phases of an axis, without repetitions. */
function phasesOf(axes: readonly TapAxis[]): Phases {
  const phases = axes.filter((axis, i) =>
    axes.findIndex(({ outputStart }) => outputStart === axis.outputStart) === i
  );
  const { inputStep: step, positions, inputSize } = phases[0]!; // one at least
  const offsets = new Set(phases.flatMap((phase) => tapsOf(phase).map(({ offset }) => offset)));
  return { axis: { offsets: [...offsets], step, positions, inputSize }, phases };
}

function tapsOf({ taps }: TapAxis): { offset: number; kernel: number }[] {
  return range(taps.count).map((tap) => ({
    offset: taps.offsetStart + tap * taps.offsetStep,
    kernel: taps.kernelStart + tap * taps.kernelStep,
  }));
}

/** Kernel position at which a phase reads an offset, if it does. */
function kernelAt(phase: TapAxis, offset: number): number | undefined {
  return tapsOf(phase).find((tap) => tap.offset === offset)?.kernel;
}

function kernelPositions({ phases }: Phases): Set<number> {
  return new Set(phases.flatMap((phase) => tapsOf(phase).map(({ kernel }) => kernel)));
}

/** Writes the body of a strip; names: c<later>_<row phase>_<column>_<column phase> sums of this and later positions. */
class Emitter {
  readonly #parts: readonly TapConvolution[];
  readonly #rows: Phases;
  readonly #columns: Phases;
  readonly #strip: Strip;
  readonly #vectors: number;

  constructor(
    parts: readonly TapConvolution[],
    rows: Phases,
    columns: Phases,
    strip: Strip,
    vectors: number,
  ) {
    this.#parts = parts;
    this.#rows = rows;
    this.#columns = columns;
    this.#strip = strip;
    this.#vectors = vectors;
  }

  text(): string {
    const { axis } = this.#rows;
    const { height } = this.#strip;
    const uses = rowUses(axis);
    const latest = Math.max(0, ...uses.new.flatMap(({ by }) => by.map(({ position }) => position)));
    const sums = range(latest + 1).map((later) => this.#sums(`c${later}`));
    const before = uses.before
      .filter(({ offset }) => whereabouts(axis, height, offset) !== "outside")
      .flatMap((use, i) => this.#row(`above${i}`, "first", height, use));
    const each = uses.new.flatMap((use, i) => this.#row(`row${i}`, "a", 1, use));
    const whole = axis.positions % height === 0;
    const end = whole ? `first + ${height}` : `min(first + ${height}, ${axis.positions})`;
    const indent = (line: string) => "    " + line;
    // Only what goes round the loop is declared outside it: the driver blends such variables in every turn.
    return [
      ...sums.slice(0, -1).flat().map((sum) => `  var ${sum} = vec4f();`),
      ...before.map((line) => "  " + line),
      `  for (var a = first; a < ${end}; a++) {`,
      ...sums.at(-1)!.map((sum) => indent(`var ${sum} = vec4f();`)),
      ...each.map(indent),
      ...this.#store().map(indent),
      ...sums.slice(1).flatMap((later, i) =>
        later.map((sum, s) => indent(`${sums[i]![s]!} = ${sum};`))
      ),
      "  }",
    ].join("\n");
  }

  /** Sums of a row of positions. */
  #sums(prefix: string): string[] {
    return this.#rows.phases.flatMap((_, p) =>
      range(this.#strip.width).flatMap((j) =>
        this.#columns.phases.map((_, q) => `${prefix}_${p}_${j}_${q}`)
      )
    );
  }

  /** Loads an input row, column by column, and adds it to the sums of all positions that read it. */
  #row(name: string, start: string, size: number, { offset, by }: Use): string[] {
    const { axis, phases } = this.#columns;
    const { width } = this.#strip;
    const rows = this.#rows;
    const source: RowSource = {
      array: this.#parts[0]!.inputName, // one at least
      height: rows.axis.inputSize,
      width: axis.inputSize,
      vectors: this.#vectors,
      name,
      row: `${start} * ${rows.axis.step} + (${offset})`,
      checked: whereabouts(rows.axis, size, offset) === "either",
    };
    const uses = by.flatMap((use) =>
      rows.phases.flatMap((phase, p) => {
        const kernel = kernelAt(phase, use.offset);
        return kernel === undefined ? [] : [{ sum: `c${use.position}_${p}`, kernel }];
      })
    );
    const window = columnUses(axis, width).flatMap((column, i) => {
      const where = whereabouts(axis, width, column.offset);
      if (where === "outside") return [];
      const load = loadColumn(
        source,
        i,
        `(b * ${axis.step} + (${column.offset}))`,
        where === "either",
      );
      return [
        load,
        ...uses.flatMap((row) =>
          column.by.flatMap((use) =>
            phases.flatMap((phase, q) => {
              const kernel = kernelAt(phase, use.offset);
              if (kernel === undefined) return [];
              const sum = `${row.sum}_${use.position}_${q}`;
              return [`${sum} = fma(${name}_${i}, w${row.kernel}_${kernel}, ${sum});`];
            })
          )
        ),
      ];
    });
    return [...openRow(source), ...window];
  }

  #store(): string[] {
    const { outputName, epilogue, group } = this.#parts[0]!;
    const { width } = this.#strip;
    const vectors = this.#vectors;
    const columnStarts = Math.ceil(this.#columns.axis.positions / width) * width - width;
    return this.#rows.phases.flatMap((row, p) => {
      const line = `(n * ${row.outputSize} + a * ${row.outputStep} + ${row.outputStart})`;
      const [{ outputSize, outputStep }] = this.#columns.phases as [TapAxis];
      const stores = range(width).flatMap((j) =>
        this.#columns.phases.flatMap((column, q) => {
          if (j >= column.positions) return [];
          const index = `out${p} + ${(j * outputStep + column.outputStart) * vectors}u`;
          const store = epilogueStore(epilogue, {
            value: `c0_${p}_${j}_${q}`,
            output: outputName,
            index,
            channel: "channel",
            bias: "channel_bias",
            channels: group,
          });
          return columnStarts + j < column.positions
            ? [store]
            : [`if (b + ${j} < ${column.positions}) ${store}`];
        })
      );
      return [
        `let out${p} = u32(${line} * ${outputSize} + b * ${outputStep}) * ${vectors}u + channel;`,
        ...(row.positions === this.#rows.axis.positions
          ? stores
          : [`if (a < ${row.positions}) {`, ...stores, "}"]),
      ];
    });
  }
}
