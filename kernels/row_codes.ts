// How the activations of all samples are stored between the units that make and read them: as float32; as float16, two
// values a word; or as the codes of a fake quantizer of at most 256 levels, four a word, from which its float32 values
// come back bit for bit. Words follow the order of the tensor's vec4s: one takes 4, 2 or 1 of them.
// qparams: [scale, zeroPoint, quantMin, quantMax]; a stored byte is code - quantMin.
import { type Binding, declareBindings, grid1d, type Kernel, range } from "./kernel.ts";

/** How a vec4 is stored. */
export type RowFormat = "float32" | "float16" | "codes";

/** Larger magnitudes do not go into float16 (its largest number is 65504). */
export const FLOAT16_MOST = 60000;
/** A tensor without any larger magnitude would lose accuracy in float16: adapters may take below 2^-14 for 0. */
export const FLOAT16_LEAST = 2 ** -4;

/** A format in WGSL. */
interface StoredForm {
  /** 32-bit words of a vec4. */
  readonly words: number;
  /** Type of a stored vec4. */
  readonly type: string;
  /** What decoding and encoding read. */
  readonly bindings: readonly Binding[];
  /** Statements that run once an invocation: stores keep compilers from moving loads out. */
  readonly setup: string;
  /** The vec4f of `stored`. */
  readonly decoded: string;
}

const FORMS: Readonly<Record<RowFormat, StoredForm>> = {
  float32: { words: 4, type: "vec4f", bindings: [], setup: "", decoded: "stored" },
  float16: {
    words: 2,
    type: "vec2u",
    bindings: [],
    setup: "",
    decoded: "vec4f(unpack2x16float(stored.x), unpack2x16float(stored.y))",
  },
  codes: {
    words: 1,
    type: "u32",
    bindings: [{ name: "qparams", access: "read" }],
    setup: `let scale = qparams[0]; let zero_point = qparams[1];
  let quant_min = qparams[2]; let quant_max = qparams[3];`,
    // As fakeQuantize() in epilogue.ts ends; code - quantMin is an integer, so adding quantMin back is exact.
    decoded: `((vec4f(vec4i((vec4u(stored) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u))) + quant_min
    - zero_point) * scale)`,
  },
};

/**
 * What a kernel that reads stored rows must know.
 *
 * @param format how they are stored
 * @returns words and type of a vec4; bindings and statements it needs; the vec4f that a variable `stored` decodes to
 */
export function storedForm(format: RowFormat): StoredForm {
  return FORMS[format];
}

/**
 * Stores a tensor as codes: clamp(round(x / scale) + zeroPoint, quantMin, quantMax) - quantMin, a byte each.
 *
 * Bindings: x (read), qparams (array<f32>, read), y (array<u32>, write).
 *
 * @param size vec4s of the tensor
 */
export function encodeCodes(size: number): Kernel {
  const { setup, type, bindings } = FORMS.codes;
  const types = { qparams: "f32", y: type };
  return encoder(`encode_codes ${size}`, size, bindings, types, {
    setup,
    store: (at) =>
      `let code = clamp(round(x[${at}] / scale) + zero_point, vec4f(quant_min), vec4f(quant_max));
    let byte = vec4i(code - quant_min);
    y[${at}] = u32(byte.x | (byte.y << 8u) | (byte.z << 16u) | (byte.w << 24u));`,
  });
}

/**
 * Stores a tensor as float16, and notes in `range` whether it has a magnitude above {@linkcode FLOAT16_MOST} ([0]) and
 * one above {@linkcode FLOAT16_LEAST} ([1]): 1 if so, else as before.
 *
 * Bindings: x (read), range (array<u32>, read_write), y (array<u32>, write).
 *
 * @param size vec4s of the tensor
 */
export function encodeFloat16(size: number): Kernel {
  const bindings = [{ name: "range", access: "read_write" }] as const;
  const types = { range: "atomic<u32>", y: FORMS.float16.type };
  return encoder(`encode_float16 ${size}`, size, bindings, types, {
    setup: "var magnitude = vec4f(0.0);",
    store: (at) =>
      `let v = x[${at}]; magnitude = max(magnitude, abs(v));
    y[${at}] = vec2u(pack2x16float(v.xy), pack2x16float(v.zw));`,
    finish: /* wgsl */ `
  let most = max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
  if (most > ${FLOAT16_MOST}.0) { atomicStore(&range[0], 1u); }
  if (most > ${FLOAT16_LEAST} && atomicLoad(&range[1]) == 0u) { atomicStore(&range[1], 1u); }`,
  });
}

/** Takes 8 vec4s an invocation, a workgroup's width apart. */
function encoder(
  label: string,
  size: number,
  parameters: readonly Binding[],
  types: Readonly<Record<string, string>>,
  { setup, store, finish = "" }: {
    readonly setup: string;
    readonly store: (at: string) => string;
    readonly finish?: string;
  },
): Kernel {
  const bindings: readonly Binding[] = [
    { name: "x", access: "read" },
    ...parameters,
    { name: "y", access: "read_write" },
  ];
  const run = 8;
  const stores = range(run).map((r) => {
    const at = `i + ${64 * r}u`;
    const guard = size % (64 * run) === 0 ? "" : `if (${at} < ${size}u) `;
    return `${guard}{\n    ${store(at)}\n  }`;
  });
  const code = /* wgsl */ `
${declareBindings(bindings, types)}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32) {
  let i = (workgroup.y * groups.x + workgroup.x) * ${64 * run}u + local;
  ${setup}
  ${stores.join("\n  ")}${finish}
}`;
  return { label, code, bindings, grid: grid1d(size, 64 * run) };
}
