// One step of an LSTM (Hochreiter & Schmidhuber 1997, with a forget gate) for all samples, as ONNX LSTM computes it
// without peepholes; the products of inputs and states with the weights are GEMMs before it.
//   i, o, f = sigmoid(z) of their rows, g = tanh(z)      c = f c' + i g      h = o tanh(c)
// z: [N, 4 H], rows of i, o, f, g; h, c and c' of the step before: [N, H]; gates: as z, after their functions.
// Going back, dh being the whole gradient of h, and dc' f of the step after already in dc:
//   dc += o (1 - tanh(c)^2) dh      dz = [dc g i (1 - i), dh tanh(c) o (1 - o), dc c' f (1 - f), dc i (1 - g^2)]
//   and f dc is left in dc
import { flatKernel, read, write } from "./flat_kernel.ts";
import { type Binding, COMPONENTS, type Kernel, padded } from "./kernel.ts";

/** A step. */
export interface LstmCellSpec {
  readonly samples: number;
  /** H. */
  readonly hidden: number;
  /** Whether there is no step before it: c' is 0, and its binding is left out. */
  readonly first: boolean;
}

/**
 * Gates, cell and state of a step.
 *
 * @param spec sizes
 * @param keepsGates whether the gates are kept for going back
 * @returns a kernel with bindings z, before (unless first; c'), cells, h, and with `keepsGates` gates. `before` and
 * `cells` may lie in one buffer
 */
export function lstmCellForward(spec: LstmCellSpec, keepsGates: boolean): Kernel {
  const bindings = [read("z"), ...before(spec), write("cells"), write("h")];
  if (keepsGates) bindings.push(write("gates"));
  return cellKernel("lstm_cell_forward", spec, bindings, ({ type, gate }) => ({
    body: `let i = ${sigmoid(`z[${gate(0)}]`)};
    let o = ${sigmoid(`z[${gate(1)}]`)};
    let f = ${sigmoid(`z[${gate(2)}]`)};
    let g = ${tanh(`z[${gate(3)}]`, type)};
    let cell = ${spec.first ? "i * g" : "f * before[at] + i * g"};
    cells[at] = cell;
    h[at] = o * ${tanh("cell", type)};
    ${keepsGates ? keep("gates", ["i", "o", "f", "g"], gate) : ""}`,
    padding: ["cells", "h"],
  }));
}

/**
 * The gradient of a step.
 *
 * @param spec sizes
 * @param last whether no step follows it: dc is only written
 * @returns a kernel with bindings dh, gates, before (unless first; c'), cells, dc, dz. `before` and `cells` may lie in
 * one buffer
 */
export function lstmCellBackward(spec: LstmCellSpec, last: boolean): Kernel {
  const bindings = [
    read("dh"),
    read("gates"),
    ...before(spec),
    write("cells"),
    write("dc"),
    write("dz"),
  ];
  return cellKernel(`lstm_cell_backward${last ? " last" : ""}`, spec, bindings, (cell) => ({
    body: `let i = gates[${cell.gate(0)}];
    let o = gates[${cell.gate(1)}];
    let f = gates[${cell.gate(2)}];
    let g = gates[${cell.gate(3)}];
    let t = ${tanh("cells[at]", cell.type)};
    let own = dh[at];
    let slope = own * o * (1.0 - t * t)${last ? "" : " + dc[at]"};
    dc[at] = slope * f;
    let to_i = slope * g * i * (1.0 - i);
    let to_o = own * t * o * (1.0 - o);
    let to_f = ${spec.first ? `${cell.type}(0.0)` : "slope * before[at] * f * (1.0 - f)"};
    let to_g = slope * i * (1.0 - g * g);
    ${keep("dz", ["to_i", "to_o", "to_f", "to_g"], cell.gate)}`,
    padding: ["dc"],
  }));
}

/** Cells of the step before: bound for writing, as what lies in their buffer beside them is. */
function before({ first }: LstmCellSpec): Binding[] {
  return first ? [] : [write("before")];
}

/** What the body of a kernel over units may use. */
interface Cell {
  /** Four units where no gate ends within a vec4, else one. */
  readonly type: "f32" | "vec4f";
  /** Index of a gate's row in z. */
  readonly gate: (g: number) => string;
}

function cellKernel(
  name: string,
  spec: LstmCellSpec,
  bindings: readonly Binding[],
  write: (cell: Cell) => { readonly body: string; readonly padding: readonly string[] },
): Kernel {
  const { samples, hidden, first } = spec;
  const type = hidden % 4 === 0 ? "vec4f" : "f32";
  const width = type === "vec4f" ? COMPONENTS.length : 1;
  const units = padded(hidden) / width, rows = hidden / width;
  const gate = (g: number) => `(i0 + ${g * rows}u)`;
  const { body, padding } = write({ type, gate });
  const zeros = padding.map((binding) => `${binding}[at] = 0.0;`).join(" ");
  return flatKernel({
    label: `${name} ${samples}x${hidden}${first ? " first" : ""}`,
    size: samples * units,
    bindings,
    types: Object.fromEntries(bindings.map(({ name }) => [name, type])),
    body: `let at = i;
  let unit = i % ${units}u;
  ${rows === units ? "" : `if (unit >= ${rows}u) { ${zeros} return; }`}
  let i0 = i / ${units}u * ${4 * rows}u + unit;
  {
    ${body}
  }`,
  });
}

function keep(binding: string, values: readonly string[], gate: Cell["gate"]): string {
  return values.map((value, g) => `${binding}[${gate(g)}] = ${value};`).join("\n    ");
}

function sigmoid(x: string): string {
  return `(1.0 / (1.0 + exp(-${x})))`;
}

/** Clamped, because exp inside some drivers' tanh overflows; tanh(10) is 1 in float32. */
function tanh(x: string, type: Cell["type"]): string {
  return `tanh(clamp(${x}, ${type}(-10.0), ${type}(10.0)))`;
}
