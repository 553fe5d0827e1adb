// Softmax over the last axis and the losses built on it. Shapes: x, y, logits: [rows, classes]; labels: [rows] words;
// loss: [rows, 1] (one vec4 a row); one invocation computes one row, in a fixed order.
// Distillation: Hinton, Vinyals, Dean 2015 (the gradient of the soft term scales with 1/T^2, hence the factor T^2).
import { flatKernel, read, write } from "./flat_kernel.ts";
import { literal } from "./activation.ts";
import { COMPONENTS, type Kernel, padded, range } from "./kernel.ts";

/** Sizes of a softmax or of a loss over it. */
export interface SoftmaxSpec {
  readonly rows: number;
  readonly classes: number;
}

/** Sizes of a loss over a softmax. */
export interface CrossEntropySpec extends SoftmaxSpec {
  /** Factor of the loss and of its gradient, 1 by default. */
  readonly weight?: number;
}

/** Sizes of a distillation loss. */
export interface DistillationSpec extends CrossEntropySpec {
  /** T: both logits are divided by it. */
  readonly temperature: number;
}

// y_i = exp(x_i - max x) / sum_j exp(x_j - max x)
/**
 * Softmax, forward.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, y
 */
export function softmaxForward(spec: SoftmaxSpec): Kernel {
  const body = `${maximum(spec, "x", "largest")}
  ${exponentials(spec, "x", "largest", "1.0", "total", "y[base + q] = e;")}
  let scale = 1.0 / total;
  ${forEachQuad(spec, "y[base + q] *= scale;")}`;
  return rowKernel("softmax_forward", spec, ["x"], ["y"], body);
}

// dx_i = y_i (dy_i - sum_j dy_j y_j)
/**
 * Softmax, backward.
 *
 * @param spec sizes
 * @returns a kernel with bindings y, dy, dx
 */
export function softmaxBackward(spec: SoftmaxSpec): Kernel {
  const body = `var sum = vec4f(0.0);
  ${forEachQuad(spec, "sum += dy[base + q] * y[base + q];")}
  let inner = dot(sum, vec4f(1.0));
  ${forEachQuad(spec, "dx[base + q] = y[base + q] * (dy[base + q] - inner);")}`;
  return rowKernel("softmax_backward", spec, ["y", "dy"], ["dx"], body);
}

// y_i = x_i - max x - log sum_j exp(x_j - max x)
/**
 * Log-softmax, forward.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, y
 */
export function logSoftmaxForward(spec: SoftmaxSpec): Kernel {
  const body = `${maximum(spec, "x", "largest")}
  ${exponentials(spec, "x", "largest", "1.0", "total", "")}
  let shift = largest + log(total);
  ${forEachQuad(spec, `y[base + q] = ${unpadded(spec, "x[base + q] - shift")};`)}`;
  return rowKernel("log_softmax_forward", spec, ["x"], ["y"], body);
}

// dx_i = dy_i - exp(y_i) sum_j dy_j
/**
 * Log-softmax, backward.
 *
 * @param spec sizes
 * @returns a kernel with bindings y, dy, dx
 */
export function logSoftmaxBackward(spec: SoftmaxSpec): Kernel {
  const body = `var sum = vec4f(0.0);
  ${forEachQuad(spec, "sum += dy[base + q];")}
  let total = dot(sum, vec4f(1.0));
  ${
    forEachQuad(
      spec,
      `dx[base + q] = ${unpadded(spec, "dy[base + q] - exp(y[base + q]) * total")};`,
    )
  }`;
  return rowKernel("log_softmax_backward", spec, ["y", "dy"], ["dx"], body);
}

// loss_r = -weight log softmax(x_r)[label_r]; dlogits = weight (softmax(x) - onehot(label)) / rows
/**
 * Cross-entropy with integer labels: the loss of each row, and the gradient of their mean.
 *
 * @param spec sizes
 * @returns a kernel with bindings logits, labels (array<u32>), loss: [rows, 1], dlogits
 */
export function crossEntropy(spec: CrossEntropySpec): Kernel {
  const { weight = 1 } = spec;
  const hot = `vec4f(vec4u(4u * q, 4u * q + 1u, 4u * q + 2u, 4u * q + 3u) == vec4u(label))`;
  const body = `${maximum(spec, "logits", "largest")}
  ${exponentials(spec, "logits", "largest", "1.0", "total", "dlogits[base + q] = e;")}
  let label = labels[i];
  let scale = 1.0 / total;
  var wanted = vec4f(0.0);
  ${
    forEachQuad(
      spec,
      `let hot = ${hot};
    wanted += select(vec4f(0.0), logits[base + q], hot == vec4f(1.0));
    dlogits[base + q] = (dlogits[base + q] * scale - hot) * ${literal(weight / spec.rows)};`,
    )
  }
  let row_loss = largest + log(total) - dot(wanted, vec4f(1.0));
  loss[i] = vec4f(row_loss * ${literal(weight)}, 0.0, 0.0, 0.0);`;
  return rowKernel("cross_entropy", spec, ["logits", "labels"], ["loss", "dlogits"], body, {
    labels: "u32",
  });
}

// p = softmax(teacher / T), q = softmax(logits / T); loss_r = weight T^2 sum_i p_i (log p_i - log q_i)
// dlogits = weight T (q - p) / rows
/**
 * Distillation loss of Hinton et al.: T^2 KL(teacher || student) of each row, and the gradient of the rows' mean.
 *
 * @param spec sizes, temperature and weight
 * @returns a kernel with bindings teacher, logits (the student's), loss: [rows, 1], dlogits
 */
export function distillationLoss(spec: DistillationSpec): Kernel {
  const { temperature, rows, weight = 1 } = spec;
  const inverse = literal(1 / temperature);
  const difference = `(teacher[base + q] - logits[base + q]) * ${inverse} + shift`;
  const body = `${maximum(spec, "teacher", "teacherLargest")}
  ${maximum(spec, "logits", "largest")}
  ${exponentials(spec, "teacher", "teacherLargest", inverse, "teacherTotal", "")}
  ${exponentials(spec, "logits", "largest", inverse, "total", "")}
  let shift = (largest - teacherLargest) * ${inverse} + log(total) - log(teacherTotal);
  var sum = vec4f(0.0);
  ${
    forEachQuad(
      spec,
      `let p = ${unpadded(spec, exponential("teacher", "teacherLargest", inverse))} / teacherTotal;
    let s = ${unpadded(spec, exponential("logits", "largest", inverse))} / total;
    sum += p * (${difference});
    dlogits[base + q] = (s - p) * ${literal(weight * temperature / rows)};`,
    )
  }
  loss[i] = vec4f(dot(sum, vec4f(1.0)) * ${literal(weight * temperature ** 2)}, 0.0, 0.0, 0.0);`;
  return rowKernel(
    "distillation_loss",
    spec,
    ["teacher", "logits"],
    ["loss", "dlogits"],
    body,
  );
}

// y_r = the first i at which x_r is largest
/**
 * Top-1 class of each row.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, y (array<u32>, one word a row)
 */
export function argMax(spec: SoftmaxSpec): Kernel {
  const { rows, classes } = spec;
  const body = `${firstMaximum(spec, "x")}
  y[i] = best;`;
  return rowKernel("arg_max", { rows, classes }, ["x"], ["y"], body, { y: "u32" });
}

// y_r = 1 if the first largest logit of the row is at its label, else 0
/**
 * Whether the top-1 class of each row is its label; the sum over rows counts the hits.
 *
 * @param spec sizes
 * @returns a kernel with bindings x, labels (array<u32>), y: [rows, 1]
 */
export function topOneCorrect(spec: SoftmaxSpec): Kernel {
  const body = `${firstMaximum(spec, "x")}
  y[i] = vec4f(select(0.0, 1.0, best == labels[i]), 0.0, 0.0, 0.0);`;
  return rowKernel("top_one_correct", spec, ["x", "labels"], ["y"], body, { labels: "u32" });
}

// ---------------------------------------------------------------------------------------------------------------------

const LOWEST = "-3.4028234663852886e38";

/** Runs `body` for each vec4 `q` of the row, unrolled by four where rows are long. */
function forEachQuad({ classes }: SoftmaxSpec, body: string): string {
  const quads = padded(classes) / 4;
  const unrolled = quads - quads % 4;
  const loop = unrolled === 0 ? "" : `for (var start = 0u; start < ${unrolled}u; start += 4u) {
    ${range(4).map((u) => `{ let q = start + ${u}u; ${body} }`).join("\n    ")}
  }`;
  const rest = range(quads - unrolled).map((u) => `{ let q = ${unrolled + u}u; ${body} }`);
  return [loop, ...rest].join("\n  ");
}

/** `value` in the classes, `other` in the padding of the row's last vec4. */
function unpadded({ classes }: SoftmaxSpec, value: string, other = "vec4f(0.0)"): string {
  if (classes % 4 === 0) return `(${value})`;
  const padding = range(4).map((c) => c >= classes % 4);
  const last = padded(classes) / 4 - 1;
  return `select(${value}, ${other}, vec4<bool>(${padding}) & vec4<bool>(q == ${last}u))`;
}

/** f32 `name`: the largest element of the row. */
function maximum(spec: SoftmaxSpec, x: string, name: string): string {
  const value = unpadded(spec, `${x}[base + q]`, `vec4f(${LOWEST})`);
  return `var ${name}_4 = vec4f(${LOWEST});
  ${forEachQuad(spec, `${name}_4 = max(${name}_4, ${value});`)}
  let ${name} = max(max(${name}_4.x, ${name}_4.y), max(${name}_4.z, ${name}_4.w));`;
}

function exponential(x: string, largest: string, inverse: string): string {
  return `exp((${x}[base + q] - ${largest}) * ${inverse})`;
}

/** f32 `total`: the sum of the row's exponentials; `each` may use each vec4 `e` of them. */
function exponentials(
  spec: SoftmaxSpec,
  x: string,
  largest: string,
  inverse: string,
  total: string,
  each: string,
): string {
  const value = unpadded(spec, exponential(x, largest, inverse));
  return `var ${total}_4 = vec4f(0.0);
  ${forEachQuad(spec, `let e = ${value}; ${total}_4 += e; ${each}`)}
  let ${total} = dot(${total}_4, vec4f(1.0));`;
}

/** u32 `best`: where the row is largest, first of equals. */
function firstMaximum({ classes }: SoftmaxSpec, x: string): string {
  const quads = padded(classes) / 4;
  const step = (at: string, components: number) =>
    range(components).map((c) =>
      `if (v.${COMPONENTS[c]} > largest) { largest = v.${
        COMPONENTS[c]
      }; best = ${at} * 4u + ${c}u; }`
    ).join("\n    ");
  const whole = classes % 4 === 0 ? quads : quads - 1;
  const last = classes % 4 === 0
    ? ""
    : `{ let v = ${x}[base + ${whole}u]; ${step(`${whole}u`, classes % 4)} }`;
  return `var best = 0u;
  var largest = ${x}[base].x;
  for (var q = 0u; q < ${whole}u; q += 1u) {
    let v = ${x}[base + q];
    ${step("q", 4)}
  }
  ${last}`;
}

function rowKernel(
  name: string,
  spec: SoftmaxSpec,
  inputs: readonly string[],
  outputs: readonly string[],
  body: string,
  types: Readonly<Record<string, string>> = {},
): Kernel {
  const { rows, classes } = spec;
  return flatKernel({
    label: `${name} ${rows}x${classes}`,
    size: rows,
    bindings: [...inputs.map(read), ...outputs.map(write)],
    types,
    body: `let base = i * ${padded(classes) / 4}u;
  ${body}`,
  });
}
