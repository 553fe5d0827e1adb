// Fake quantization of all weights of a block in one dispatch, with learned scales (LSQ, Esser 2020) in log space:
// scale = exp(log_scale), w = clamp(round(latent / scale), quantMin, quantMax) * scale, one scale an output channel.
// Latent weights and log-scales live in the flat `parameters` buffer; a table says where each row is.
import { literal } from "./activation.ts";
import {
  type Binding,
  COMPONENTS,
  declareBindings,
  flatIndex,
  grid1d,
  type Kernel,
  range,
  type Target,
} from "./kernel.ts";

/** Weights that share one scale, or (depthwise) four channels in the lanes of each vec4 with a scale each. */
export interface WeightRow {
  /** First vec4 of the latent weights in `parameters`. */
  readonly start: number;
  /** vec4s in the row. */
  readonly length: number;
  /** Float index in `parameters` of the log-scale; a multiple of 4 when the lanes are channels. */
  readonly logScale: number;
  /** First vec4 of the row in `w`. */
  readonly output: number;
  /** Smallest code, at most 0; one value, or one per lane when the lanes are channels (0 in padding). */
  readonly quantMin: number | readonly number[];
  /** Largest code, at least 0; as quantMin. */
  readonly quantMax: number | readonly number[];
  /** vec4s from one vec4 of the row to the next, in `parameters` and in `w`; default 1. */
  readonly stride?: number;
}

/** Words of the table per row. */
export const WEIGHT_ROW_WORDS = 8;

/**
 * The table of rows that the kernels bind as `rows`.
 *
 * Words of a row: start, length, logScale, output, quantMin, quantMax, stride, 1 if the lanes are channels; the codes
 * are an i32, or four i8 when the lanes are channels.
 *
 * @param rows the rows, in any order
 * @returns eight words a row
 * @throws RangeError when a code range does not hold 0, or per-lane codes are outside -128 .. 127
 */
export function encodeWeightRows(rows: readonly WeightRow[]): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(rows.length * WEIGHT_ROW_WORDS);
  rows.forEach((row, i) => {
    const lanes = typeof row.quantMin !== "number";
    if (lanes && row.logScale % 4 !== 0) {
      throw new RangeError(
        `Weight row ${i}: log-scale index ${row.logScale} is not a multiple of 4`,
      );
    }
    const low = encodeCodes(row.quantMin, i), high = encodeCodes(row.quantMax, i);
    const { start, length, logScale, output, stride = 1 } = row;
    words.set([start, length, logScale, output, low, high, stride, lanes ? 1 : 0], i * 8);
  });
  return words;
}

/** How many rows the table has. */
export interface WeightQuantizationSpec {
  readonly rows: number;
}

/** As {@linkcode WeightQuantizationSpec}, with what the gradient is scaled by. */
export interface WeightGradientSpec extends WeightQuantizationSpec {
  /** delta of EWGS (Lee, Kim, Ham 2021); 0, the default, is LSQ. */
  readonly delta?: number;
}

/**
 * Sets each row's scale to the smallest that clips none of its weights: max(latent / quantMax, latent / quantMin), where
 * a bound of 0 counts as 1. A row of zeros keeps its scale.
 *
 * Bindings: parameters (read_write, f32), rows (read, u32).
 */
export function coverWeights(spec: WeightQuantizationSpec, target: Target): Kernel {
  return scaleKernel({
    label: `cover_weights ${spec.rows}`,
    rows: spec.rows,
    combine: "max",
    body: "sum = max(sum, max(latent / max(hi, vec4f(1.0)), -latent / max(-lo, vec4f(1.0))));",
    lanes: "sum",
    whole: "max(max(sum.x, sum.y), max(sum.z, sum.w))",
  }, target);
}

/** A kernel that sets the scales of rows from their latent weights. */
export interface ScaleKernelSpec extends Pick<RowKernelSpec, "label" | "rows" | "combine"> {
  /** Statements for vec4 `latent` of a row; see lo, hi (vec4f), lanes (bool), and add to sum. */
  readonly body: string;
  /** vec4f: scales of four channels from sum; those that are not above 0 change nothing. */
  readonly lanes: string;
  /** f32: the scale of a row. */
  readonly whole: string;
}

/** Bindings: parameters (read_write, f32), rows (read, u32). */
export function scaleKernel(
  { label, rows, combine = "sum", body, lanes, whole }: ScaleKernelSpec,
  target: Target,
): Kernel {
  return rowKernel({
    label,
    rows,
    bindings: [
      { name: "parameters", access: "read_write" },
      { name: "rows", access: "read" },
    ],
    types: { parameters: "f32" },
    combine,
    body: `let at = (start + i * stride) * 4u;
    let latent = vec4f(${range(4).map((lane) => `parameters[at + ${lane}u]`).join(", ")});
    ${body}`,
    finish: `if (lanes) {
      let scales = ${lanes};
      ${
      COMPONENTS.map((lane, i) =>
        `if (scales.${lane} > 0.0) { parameters[log_scale + ${i}u] = log(scales.${lane}); }`
      ).join("\n      ")
    }
    } else {
      let whole = ${whole};
      if (whole > 0.0) { parameters[log_scale] = log(whole); }
    }`,
  }, target);
}

/**
 * w = clamp(round(latent / scale), quantMin, quantMax) * scale.
 *
 * Bindings: parameters (read), rows (read, u32), w (write).
 */
export function quantizeWeights(spec: WeightQuantizationSpec, target: Target): Kernel {
  return rowKernel({
    label: `quantize_weights ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "w", access: "read_write" },
    ],
    body: `w[output + i * stride] =
      clamp(round(parameters[start + i * stride] / scale), lo, hi) * scale;`,
  }, target);
}

/**
 * With v = latent / scale, q = clamp(round(v), quantMin, quantMax), inside = quantMin - 1/2 < v < quantMax + 1/2 and
 * p = inside * (1 + delta * sign(dw) * (v - q) / (quantMax - quantMin)):
 * dL/dlatent = dw * p, dL/dlog_scale = scale * sum(dw * (q - v * p)).
 *
 * Bindings: parameters, dw (read), rows (read, u32), gradients (write, f32: the rows' weights and log-scales only).
 */
export function quantizeWeightsBackward(spec: WeightGradientSpec, target: Target): Kernel {
  const { delta = 0 } = spec;
  const scaling = delta === 0
    ? "g"
    : `g + abs(g) * (v - q) / max(hi - lo, vec4f(1.0)) * ${literal(delta)}`;
  return rowKernel({
    label: `quantize_weights_backward ${spec.rows}`,
    rows: spec.rows,
    bindings: [
      { name: "parameters", access: "read" },
      { name: "rows", access: "read" },
      { name: "dw", access: "read" },
      { name: "gradients", access: "read_write" },
    ],
    types: { gradients: "f32" },
    body: `let at = start + i * stride;
      let v = parameters[at] / scale;
      let g = dw[output + i * stride];
      let inside = (v > lo - 0.5) & (v < hi + 0.5);
      let q = clamp(round(v), lo, hi);
      let d = select(vec4f(0.0), ${scaling}, inside);
      let seen = select(vec4f(0.0), v, inside); // v may be infinite outside
      sum += ${delta === 0 ? "g * (q - seen)" : "g * q - d * seen"};
      ${storeFloats("at", "d")}`,
    finish: `let terms = sum * scale;
    if (lanes) {
      ${storeFloats("log_scale / 4u", "terms")}
    } else {
      gradients[log_scale] = terms.x + terms.y + terms.z + terms.w;
    }`,
  }, target);
}

/** WGSL of the code next to a vec4f `v`: odd ones where quantMin = -quantMax, else any. */
export function codeOrOddCode(v: string): string {
  const step = "select(vec4f(1.0), vec4f(2.0), lo == -hi)";
  const first = "select(vec4f(0.0), vec4f(1.0), lo == -hi)";
  return `clamp(round((${v} - ${first}) / ${step}) * ${step} + ${first}, lo, hi)`;
}

/** A kernel over the rows of the table. */
export interface RowKernelSpec {
  readonly label: string;
  readonly rows: number;
  readonly bindings: readonly Binding[];
  readonly types?: Readonly<Record<string, string>>;
  /** Statements for vec4 `i` of a row; see start, stride, output (u32), scale, lo, hi (vec4f), and add to sum. */
  readonly body: string;
  /** Statements once a row, with the final `sum: vec4f`. */
  readonly finish?: string;
  /** How the sums of invocations combine; default "sum". "max" is for what is never below 0. */
  readonly combine?: "sum" | "max";
}

/** One invocation a row on CPU adapters; on GPUs a workgroup of 64 a row, its sums added in a tree. */
export function rowKernel(spec: RowKernelSpec, target: Target): Kernel {
  const { label, rows, bindings, body, finish, combine = "sum" } = spec;
  const software = target.family === "software";
  const size = software ? Math.max(8, target.subgroupSize) : 64;
  const tree = `for (var half = 32u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) {
      sums[local] = ${
    combine === "sum" ? "sums[local] + sums[local + half]" : "max(sums[local], sums[local + half])"
  };
    }
  }`;
  const finishing = finish === undefined ? "" : software ? finish : `sums[local] = sum;
  ${tree}
  if (local == 0u) {
    sum = sums[0];
    ${finish}
  }`;
  const code = /* wgsl */ `${
    declareBindings(bindings, { rows: "u32", state: "f32", ...spec.types })
  }
${finish === undefined || software ? "" : "var<workgroup> sums: array<vec4f, 64>;"}

fn signed_bytes(word: u32) -> vec4f {
  let codes = bitcast<i32>(word);
  return vec4f(vec4i(${range(4).map((i) => `extractBits(codes, ${8 * i}u, 8u)`).join(", ")}));
}

@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let row = ${software ? flatIndex(size) : "workgroup.y * groups.x + workgroup.x"};
  if (row >= arrayLength(&rows) / ${WEIGHT_ROW_WORDS}u) { return; }
  let entry = row * ${WEIGHT_ROW_WORDS}u;
  let start = rows[entry];
  let length = rows[entry + 1u];
  let log_scale = rows[entry + 2u];
  let output = rows[entry + 3u];
  let stride = rows[entry + 6u];
  let lanes = rows[entry + 7u] != 0u;
  let quad = log_scale / 4u${spec.types?.parameters === "f32" ? " * 4u" : ""};
  let logs = ${
    spec.types?.parameters === "f32"
      ? `vec4f(${range(4).map((i) => `parameters[quad + ${i}u]`).join(", ")})`
      : "parameters[quad]"
  };
  let scale = exp(select(vec4f(logs[log_scale % 4u]), logs, lanes));
  let lo = select(vec4f(f32(bitcast<i32>(rows[entry + 4u]))), signed_bytes(rows[entry + 4u]), lanes);
  let hi = select(vec4f(f32(bitcast<i32>(rows[entry + 5u]))), signed_bytes(rows[entry + 5u]), lanes);
  ${finish === undefined ? "" : "var sum = vec4f(0.0);"}
  for (var i = ${software ? "0u" : "local"}; i < length; i += ${software ? 1 : 64}u) {
    ${body}
  }
  ${finishing}
}
`;
  return { label, code, bindings, grid: grid1d(rows, software ? size : 1) };
}

/** Stores of a vec4f into `gradients: array<f32>`: rows share vec4s there, and a lane store may write all four. */
export function storeFloats(quad: string, value: string): string {
  return COMPONENTS.map((lane, i) => `gradients[(${quad}) * 4u + ${i}u] = ${value}.${lane};`)
    .join("\n      ");
}

function encodeCodes(codes: number | readonly number[], row: number): number {
  if (typeof codes === "number") return codes | 0;
  let word = 0;
  for (const lane of range(4)) {
    const code = codes[lane] ?? 0;
    if (code < -128 || code > 127) {
      throw new RangeError(`Weight row ${row}: code ${code} of lane ${lane} is not in -128 .. 127`);
    }
    word |= (code & 255) << (8 * lane);
  }
  return word;
}
