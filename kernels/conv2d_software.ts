// Convolution for CPU adapters (family "software"): a workgroup is one subgroup, a lane owns runs of neighbouring
// pixels, all lanes share `tile.rows` output channels. Loads are the dear part there (each is a scalar loop over the
// lanes), so a run's input columns are loaded once for all taps of a kernel row, and each weight vec4 is loaded by
// one lane and handed to the others with subgroupShuffle. No barriers, no workgroup memory, literal shapes.
import { epilogueBindings, epilogueSetup, epilogueStore, loadBias } from "./epilogue.ts";
import { leavesInput, type TapConvolution } from "./conv2d_plan.ts";
import { LANES_WITHOUT_SUBGROUPS, type SoftwareTile, windowOf } from "./conv2d_software_tile.ts";
import { type Binding, COMPONENTS, declareBindings, type Kernel, padded, range } from "./kernel.ts";
import type { Target } from "./kernel.ts";

/**
 * Kernel of a tap convolution for a CPU adapter.
 *
 * @param convolution Forward pass or phase of the input gradient; without taps the kernel writes zeros.
 * @param target Subgroup size; 0 selects plain loads instead of shuffles.
 * @param tile Register tile; {@linkcode softwareTiles} gives good ones.
 * @returns The kernel; bindings are input, `w`, the epilogue's, output.
 */
export function convolutionSoftware(
  convolution: TapConvolution,
  target: Target,
  tile: SoftwareTile,
): Kernel {
  const { rows, columns, inputName, outputName, epilogue } = convolution;
  const lanes = target.subgroupSize || LANES_WITHOUT_SUBGROUPS;
  const bindings: Binding[] = [
    { name: inputName, access: "read" },
    { name: "w", access: "read" },
    ...epilogueBindings(epilogue),
    { name: outputName, access: "read_write" },
  ];
  const runsPerRow = Math.ceil(columns.positions / tile.run);
  const units = convolution.batch * rows.positions * runsPerRow;
  const tiles = Math.ceil(units / (lanes * tile.runs));
  const fold = Math.ceil(tiles / 65535);
  const across = Math.ceil(tiles / fold);
  // Without a fold nothing here names the number of images: all batches that fill their tiles share one pipeline.
  const flatTile = fold === 1 ? "workgroup.x" : `workgroup.z * ${across}u + workgroup.x`;
  const rowTiles = Math.ceil(padded(convolution.channels) / tile.rows);
  const emitter = new Emitter(convolution, tile, lanes, target.subgroupSize > 0);
  const code = /* wgsl */ `${declareBindings(bindings)}

@compute @workgroup_size(${lanes})
fn main(
  @builtin(workgroup_id) workgroup: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = ${flatTile};
  let group = workgroup.y / ${rowTiles}u;
  let m4 = (workgroup.y % ${rowTiles}u) * ${tile.rows / 4}u;
  ${epilogueSetup(epilogue)}
${emitter.positions(units, runsPerRow)}
${emitter.accumulators()}
${emitter.sum()}
${emitter.store(units)}
}
`;
  return {
    label: convolution.label,
    code,
    bindings,
    grid: [across, rowTiles * convolution.group, fold],
  };
}

/**
 * Writes the WGSL of one tile. Names: c<m>_<pixel> sums of 4 rows, x<run>_<column> inputs, a<tap>_<i> weights as loaded,
 * r<tap>_<i> weights of 4 rows. Vectors over rows keep the text short: parsing it is most of a warm start.
 */
class Emitter {
  readonly #convolution: TapConvolution;
  readonly #tile: SoftwareTile;
  readonly #lanes: number;
  readonly #shuffles: boolean;
  readonly #window: number[];
  readonly #depthVectors: number;
  readonly #rowVectors: number;
  readonly #checksRows: boolean;
  readonly #checksColumns: boolean;

  constructor(convolution: TapConvolution, tile: SoftwareTile, lanes: number, shuffles: boolean) {
    this.#convolution = convolution;
    this.#tile = tile;
    this.#lanes = lanes;
    this.#shuffles = shuffles;
    this.#window = windowOf(convolution.columns, tile.run);
    this.#depthVectors = padded(convolution.depth) / 4;
    this.#rowVectors = padded(convolution.channels) / 4;
    this.#checksRows = leavesInput(convolution.rows);
    const { positions } = convolution.columns;
    this.#checksColumns = leavesInput({
      ...convolution.columns,
      positions: Math.ceil(positions / tile.run) * tile.run,
    });
  }

  /** Where the runs of this lane lie: image n, first logical column b, logical row a. */
  positions(units: number, runsPerRow: number): string {
    const { rows, columns } = this.#convolution;
    const { run, runs } = this.#tile;
    const lines = range(runs).map((g) => {
      const whole = units % (this.#lanes * runs) === 0;
      const flat = `(tile * ${runs}u + ${g}u) * ${this.#lanes}u + lane`;
      const lineOfUnit = `  let flat${g} = ${flat};
  let unit${g} = ${whole ? `flat${g}` : `min(flat${g}, ${units - 1}u)`};
  let b${g} = i32(unit${g} % ${runsPerRow}u) * ${run};
  let a${g} = i32((unit${g} / ${runsPerRow}u) % ${rows.positions}u);
  let n${g} = i32(unit${g} / ${runsPerRow * rows.positions}u);`;
      if (!this.#checksColumns) return lineOfUnit;
      return [
        lineOfUnit,
        ...this.#window.map((offset, o) =>
          `  let column${g}_${o} = b${g} * ${columns.inputStep} + ${offset};
  let inside${g}_${o} = u32(column${g}_${o}) < ${columns.inputSize}u;`
        ),
      ].join("\n");
    });
    return lines.join("\n");
  }

  accumulators(): string {
    const { rows, run, runs } = this.#tile;
    return range(rows / 4).map((m) =>
      "  " + range(run * runs).map((p) => `var c${m}_${p} = vec4f();`).join(" ")
    ).join("\n");
  }

  /** The loops over kernel rows and depth. */
  sum(): string {
    const { rows, columns } = this.#convolution;
    if (rows.taps.count === 0 || columns.taps.count === 0) return "";
    const kernelRow = `${rows.taps.kernelStart}u + t * ${rows.taps.kernelStep}u`;
    const body = this.#depthVectors === 1
      ? this.#step()
      : `    for (var k = 0u; k < ${this.#depthVectors}u; k++) {
${this.#step()}
    }`;
    return `${this.#weightBases()}
  for (var t = 0u; t < ${rows.taps.count}u; t++) {
    let kernelRow = (${kernelRow}) * ${
      this.#convolution.kernelWidth * this.#convolution.weightVectors
    }u;
${this.#depthVectors === 1 ? "    let k = 0u;\n" : ""}${this.#inputBases()}
${body}
  }`;
  }

  /** Weight vec4s that each lane loads for a tap and a step of depth. */
  #weightLoads(): number {
    return this.#shuffles ? Math.ceil(this.#tile.rows / this.#lanes) : this.#tile.rows;
  }

  #weightBases(): string {
    const { transposed, channels, depth, weightVectors, kernelHeight, kernelWidth } =
      this.#convolution;
    const filter = kernelHeight * kernelWidth * weightVectors;
    const quarter = this.#tile.rows / 4;
    return range(this.#weightLoads()).map((q) => {
      const element = this.#shuffles
        ? `min(${q * this.#lanes}u + lane, ${this.#tile.rows - 1}u)`
        : `${q}u`;
      if (!transposed) {
        return `  let base${q} = (group * ${channels}u + min(m4 * 4u + ${element}, ${
          channels - 1
        }u)) * ${filter}u;`;
      }
      return `  let depth${q} = ${element} / ${quarter}u;
  let base${q} = group * ${depth * filter}u + min(m4 + ${element} % ${quarter}u, ${
        weightVectors - 1
      }u);`;
    }).join("\n");
  }

  #weightIndex(q: number, tap: number): string {
    const { transposed, depth, weightVectors, kernelHeight, kernelWidth, columns } =
      this.#convolution;
    const column = columns.taps.kernelStart + tap * columns.taps.kernelStep;
    const shift = `base${q} + kernelRow + ${column * weightVectors}u`;
    if (!transposed) return `${shift} + k`;
    const filter = kernelHeight * kernelWidth * weightVectors;
    const position = `k * 4u + depth${q}`;
    const clamped = depth % 4 === 0 ? position : `min(${position}, ${depth - 1}u)`;
    return `${shift} + (${clamped}) * ${filter}u`;
  }

  #inputBases(): string {
    const { rows, columns, group } = this.#convolution;
    const vectors = this.#depthVectors;
    const stride = vectors * group;
    return range(this.#tile.runs).map((g) => {
      const row =
        `    let row${g} = a${g} * ${rows.inputStep} + (${rows.taps.offsetStart}) + i32(t) * (${rows.taps.offsetStep});`;
      const check = this.#checksRows
        ? `\n    let inside${g} = u32(row${g}) < ${rows.inputSize}u;`
        : "";
      const clamped = this.#checksRows ? `select(0, row${g}, inside${g})` : `row${g}`;
      const line =
        `    let line${g} = (n${g} * ${rows.inputSize} + ${clamped}) * ${columns.inputSize};`;
      const masks = this.#window.map((offset, o) => {
        if (!this.#checksColumns) {
          return `    let index${g}_${o} = u32((line${g} + b${g} * ${columns.inputStep} + (${offset})) * ${stride}) + group * ${vectors}u;`;
        }
        const mask = this.#checksRows ? `inside${g} && inside${g}_${o}` : `inside${g}_${o}`;
        return `    let mask${g}_${o} = ${mask};
    let index${g}_${o} = u32((line${g} + select(0, column${g}_${o}, mask${g}_${o})) * ${stride}) + group * ${vectors}u;`;
      });
      return [row + check, line, ...masks].join("\n");
    }).join("\n");
  }

  /** One step: 4 channels of depth times all taps of a kernel row; every load comes before the arithmetic. */
  #step(): string {
    const { columns, inputName, transposed } = this.#convolution;
    const { rows, run, runs } = this.#tile;
    const taps = range(columns.taps.count);
    const lines: string[] = [];
    for (const tap of taps) {
      for (const q of range(this.#weightLoads())) {
        lines.push(`let a${tap}_${q} = w[${this.#weightIndex(q, tap)}];`);
      }
    }
    for (const g of range(runs)) {
      this.#window.forEach((_, o) => {
        const load = `${inputName}[index${g}_${o} + k]`;
        const mask = this.#checksColumns ? `mask${g}_${o}` : this.#checksRows ? `inside${g}` : "";
        lines.push(
          `let x${g}_${o} = ${mask ? `select(vec4f(), ${load}, ${mask})` : load};`,
        );
      });
    }
    const inputs = (tap: number): string[] =>
      range(runs * run).map((p) => {
        const offset = (p % run) * columns.inputStep + columns.taps.offsetStart +
          tap * columns.taps.offsetStep;
        return `x${Math.floor(p / run)}_${this.#window.indexOf(offset)}`;
      });
    const weight = (tap: number, element: number): string =>
      this.#shuffles
        ? `subgroupShuffle(a${tap}_${Math.floor(element / this.#lanes)}, ${element % this.#lanes}u)`
        : `a${tap}_${element}`;
    const pixels = taps.map(inputs);
    for (const group of range(rows / 4)) {
      for (const tap of taps) {
        // In a transposed tile element u * rows / 4 + group holds 4 rows for component u of depth; otherwise element
        // group * 4 + i holds 4 components of depth for row i.
        for (const i of range(4)) {
          const element = transposed ? i * (rows / 4) + group : group * 4 + i;
          lines.push(
            `let ${transposed ? "r" : "e"}${tap}_${group * 4 + i} = ${weight(tap, element)};`,
          );
        }
        if (transposed) continue;
        for (const u of range(4)) {
          const parts = range(4).map((i) => `e${tap}_${group * 4 + i}.${COMPONENTS[u]}`);
          lines.push(`let r${tap}_${group * 4 + u} = vec4f(${parts.join(", ")});`);
        }
      }
      for (const p of range(run * runs)) {
        const sum = `c${group}_${p}`;
        const products = taps.flatMap((tap) =>
          range(4).map((u) =>
            `r${tap}_${group * 4 + u}, vec4f(${pixels[tap]![p]}.${COMPONENTS[u]})`
          )
        );
        lines.push(
          `${sum} = ${products.reduce((inner, product) => `fma(${product}, ${inner})`, sum)};`,
        );
      }
    }
    return lines.map((line) => "      " + line).join("\n");
  }

  store(units: number): string {
    const { rows, columns, group, outputName, channels, epilogue } = this.#convolution;
    const { rows: tileRows, run, runs } = this.#tile;
    const vectors = this.#rowVectors;
    const wholeRows = vectors % (tileRows / 4) === 0;
    const wholeUnits = units % (this.#lanes * runs) === 0;
    const lines: string[] = [];
    for (const i of range(tileRows / 4)) {
      lines.push(`let channel${i} = group * ${vectors}u + m4 + ${i}u;`);
      lines.push(loadBias(epilogue, `bias${i}`, `channel${i}`));
      if (channels % 4) {
        const kept = range(4).map((c) => c < channels % 4 ? 1 : 0).join(", ");
        lines.push(
          `let kept${i} = select(vec4f(1), vec4f(${kept}), m4 + ${i}u == ${vectors - 1}u);`,
        );
      }
    }
    for (const g of range(runs)) {
      const row = `(n${g} * ${rows.outputSize} + a${g} * ${rows.outputStep} + ${rows.outputStart})`;
      lines.push(
        `let out${g} = u32(${row} * ${columns.outputSize} + b${g} * ${columns.outputStep} + ${columns.outputStart}) * ${
          vectors * group
        }u;`,
      );
      for (const j of range(run)) {
        const guards = [
          wholeUnits ? "" : `flat${g} < ${units}u`,
          j === 0 || columns.positions % run === 0 ? "" : `b${g} + ${j} < ${columns.positions}`,
        ].filter(Boolean);
        const stores = range(tileRows / 4).map((i) => {
          const sum = `c${i}_${g * run + j}`;
          const value = channels % 4 ? `${sum} * kept${i}` : sum;
          const index = `at${g}_${j} + channel${i}`;
          const store = epilogueStore(epilogue, {
            value,
            output: outputName,
            index,
            channel: `channel${i}`,
            bias: `bias${i}`,
            channels: channels * group,
          });
          return wholeRows ? store : `if (m4 + ${i}u < ${vectors}u) ${store}`;
        });
        lines.push(`let at${g}_${j} = out${g} + ${j * columns.outputStep * vectors * group}u;`);
        if (guards.length > 0) lines.push(`if (${guards.join(" && ")}) {`);
        lines.push(...stores);
        if (guards.length > 0) lines.push("}");
      }
    }
    return lines.map((line) => "  " + line).join("\n");
  }
}
